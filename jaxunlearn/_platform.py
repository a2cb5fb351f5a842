"""Where a program that is being traced will most likely run."""

import jax


def platform() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: the default device's, also under ``jax.default_device``.

    Choices made from it are about speed only; both ways are correct on every device.
    """
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
