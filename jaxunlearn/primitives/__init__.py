"""What unlearning methods are made of: functions of a user's ``loss_fn`` or ``apply_fn``."""
