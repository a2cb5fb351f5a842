"""ConMU as a method of the registry."""

import jax

from jaxunlearn.methods.conmu.config import ConMUConfig, knobs_of, plan_of
from jaxunlearn.methods.conmu.pipeline import enough_rows, refuse_empty, run
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Array, Dataset, Model, Params, Unlearner


def unlearner(model: Model, train: TrainConfig, config: ConMUConfig = ConMUConfig()) -> Unlearner:
    """:func:`conmu` as an unlearner: a later request starts from the model of the earlier one.

    With ``compat="official"`` its state remembers the initial parameters of the training, where
    the proxy starts too.

    Guarantee: none.

    Raises:
      ValueError: from ``unlearn``, as :func:`conmu`; under ``jax.jit`` the status says
        ``EMPTY_SELECTION`` instead.

    Example:
      >>> from jaxunlearn import models
      >>> method = unlearner(models.mlp(10), TrainConfig())
    """
    knobs, plan = knobs_of(config), plan_of(config, train)
    official = config.compat == "official"

    def initial(key: Array, data: Dataset) -> Params:
        return model.init(jax.random.split(key)[0], data.x[:1])  # as training.fit draws them

    def update(key, params, data, request, memory):
        enough_rows(config, request.retain, request.forget)
        done = run(
            key, params, data, request.forget, request.retain, knobs, train.learning_rate,
            None, memory if official else None, None, model=model, plan=plan,
        )  # fmt: skip
        refuse_empty(done, config)
        return Update(done.params, done.grads, done.status)

    return posthoc(model, train, update, remember=initial if official else None)
