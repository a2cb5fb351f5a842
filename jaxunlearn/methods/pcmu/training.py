"""PCMU's training: how, and the loop with noise that the model-level guarantee needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.methods.pcmu.transform import pcmu
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.primitives import smoothing
from jaxunlearn.primitives.gradients import clipped_sum
from jaxunlearn.training import fit
from jaxunlearn.training.config import SCHEDULES, TrainConfig, learning_rate
from jaxunlearn.training.fit import check_model, shuffled
from jaxunlearn.types import Array, Dataset, Model, Params

# Per mode, as tuned on Fashion-MNIST with an MLP and a CNN: a step of the hard mode moves every
# weight by the full rate, one of the soft mode by .8 rate / sigma times its gradient.
RATES = {"hard": 0.005, "soft": 0.05, "sampled": 0.005}


@dataclasses.dataclass(frozen=True)
class PCMUConfig:
    """How to train with PCMU, and what certificate to ask for.

    Epochs, batch size and weight-free settings (microbatch, progress) come from the
    :class:`~jaxunlearn.TrainConfig`; its rate, schedule, momentum, weight decay and clipping do
    not apply: a quantized gradient has none of these in the paper.

    Attributes:
      sigma: standard deviation of the smoothing noise.
      lam: width of the zone quantized to 0; ``sigma^2`` if None.
      noise: ``gaussian``, ``laplace``, ``uniform``, or ``none`` (PCMU-N).
      mode: ``hard`` (the paper), ``soft``, or ``sampled``: the one with a guarantee for the model,
        at a price in accuracy.
      relative: None, or ``leaf_rms``: sigma and lam in units of each leaf's gradients.
      learning_rate: .005 (hard, sampled) or .05 (soft) if None; .05 in the paper.
      schedule: as of TrainConfig. ``step`` in the paper; ``cosine``, the default, ends at
        smaller steps, which matters where every step has the full length of its rate.
      clip: largest L2 norm of one row's gradient; sampled mode only.
      epsilon: a request that costs more is beyond the certificate; sampled mode only.
      delta: of the guarantee; sampled mode only.

    Example:
      >>> PCMUConfig(mode="soft").rate
      0.05
    """

    sigma: float = 0.1
    lam: float | None = None
    noise: str = "gaussian"
    mode: str = "hard"
    relative: str | None = None
    learning_rate: float | None = None
    schedule: str = "cosine"
    clip: float = 1.0
    epsilon: float = 1.0
    delta: float = 1e-5

    def __post_init__(self):
        key = None if self.mode != "sampled" else jax.random.key(0)
        pcmu(
            self.sigma,
            self.lam,
            noise=self.noise,
            mode=self.mode,
            relative=self.relative,
            key=key,
        )
        if self.mode == "sampled" and (self.relative is not None or self.noise != "gaussian"):
            raise ValueError(
                f"mode='sampled' with relative={self.relative!r} and noise={self.noise!r} has no "
                "guarantee for the model: it needs Gaussian noise of a fixed size."
            )
        _validate.one_of(SCHEDULES, schedule=self.schedule)
        _validate.positive(learning_rate=self.rate, clip=self.clip, epsilon=self.epsilon)
        _validate.fraction(delta=self.delta)

    @property
    def threshold(self) -> float:
        """Below it a gradient is quantized to 0; in units of the leaf with ``relative``."""
        if self.noise == "none":
            return (self.sigma**2 if self.lam is None else self.lam) / 2
        return smoothing.ternary_threshold(self.sigma, self.lam, self.noise)

    @property
    def rate(self) -> float:
        return RATES[self.mode] if self.learning_rate is None else self.learning_rate


# The paper's own training (Table 19), for all of its tables.
PAPER_TRAIN = TrainConfig(
    epochs=120, batch_size=500, learning_rate=0.05, schedule="step", momentum=0.0
)
PAPER = PCMUConfig(sigma=0.1, learning_rate=0.05, schedule="step")


def train(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    weights: Array | None = None,
    config: TrainConfig = TrainConfig(),
    method: PCMUConfig = PCMUConfig(),
) -> Params:
    """PCMU's training (Algorithm of A.3), on the rows of non-zero weight.

    Hard and soft mode: :func:`jaxunlearn.training.fit` with :func:`pcmu` as direction. Sampled
    mode: the sum of the clipped gradients of the rows of a batch, divided by the fixed batch size,
    plus noise, quantized; a row's batch does not depend on the others, rows of weight 0 keep their
    places and add nothing. That is what the Gaussian guarantee needs.

    Args:
      key: ``jax.random.key``.
      model: what to train.
      data: rows.
      weights: ``bool`` or ``float[n]``; 0 to leave a row out. In sampled mode at most 1.
      config: epochs, batch size, microbatch and progress.
      method: everything else.

    Returns:
      The parameters.

    Guarantee: none in hard and soft mode; in sampled mode see
    :func:`~jaxunlearn.certify.budget.gaussian_unlearning_epsilon`.
    Cost: ``config.epochs`` passes, each as one of SGD; in sampled mode over all rows, those of
    weight 0 included, with per-sample gradients.

    Raises:
      ValueError: as :func:`jaxunlearn.training.fit`.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> params = train(jax.random.key(0), models.logistic(2), data)
      >>> models.logistic(2).apply(params, data.x).argmax(-1).tolist()
      [0, 1]
    """
    if method.mode == "sampled":
        data = _sharding.automatic(data)
        check_model(key, model, data)
        if weights is not None:
            _validate.row_weights(weights, data.y.shape[0])
            if _validate.known(weights) and np.max(np.asarray(weights, float)) > 1:
                raise ValueError("weights above 1 would exceed the clip that the guarantee needs.")
        weights = jnp.ones(data.y.shape[0]) if weights is None else _validate.as_weights(weights)
        return _train_sampled(key, data, weights, model=model, config=config, method=method)
    plain = dataclasses.replace(
        config,
        learning_rate=method.rate,
        schedule=method.schedule,
        momentum=0.0,
        weight_decay=0.0,
        clip=None,
        optimizer="sgd",
    )
    return fit(key, model, data, weights=weights, config=plain, direction=direction(method))


def direction(method: PCMUConfig) -> optax.GradientTransformation:
    """:func:`pcmu` as a configuration describes it, hard or soft: for ``fit`` or ``train_many``.

    Args:
      method: its rate and schedule are not part of it.

    Raises:
      ValueError: sampled mode, which needs a key and a loop of its own.

    Example:
      >>> direction(PCMUConfig(sigma=0.2)) is pcmu(0.2)
      True
    """
    return pcmu(
        method.sigma, method.lam, noise=method.noise, mode=method.mode, relative=method.relative
    )


@functools.partial(jax.jit, static_argnames=("model", "config", "method"))
def _train_sampled(key, data, weights, *, model, config, method):
    n = data.y.shape[0]
    batch = min(config.batch_size, n)
    steps = -(-n // batch)
    init_key, order_key, noise_key = jax.random.split(key, 3)
    loss_fn = cross_entropy(model.apply)
    schedule = dataclasses.replace(
        config, learning_rate=method.rate, schedule=method.schedule, progress=False
    )

    def step(params, inputs):
        number, rows, here = inputs
        examples = jax.tree.map(lambda leaf: leaf[rows], data)
        # A row of weight 0 adds nothing whatever it holds.
        w = weights[rows] * here
        total = clipped_sum(
            loss_fn, params, examples, clip=method.clip, weights=w, chunk=config.microbatch
        )
        g = jax.tree.map(lambda leaf: leaf / batch, total)
        q = smoothing.sample_quantize(
            jax.random.fold_in(noise_key, number), g, method.sigma, method.lam
        )
        rate = learning_rate(schedule, number / (steps * config.epochs))
        q = jax.tree.map(lambda q, p: q.astype(p.dtype), q, params)
        return tree.add_scaled(params, -rate, q), None

    def epoch(params, number):
        order = shuffled(jax.random.fold_in(order_key, number), n)
        order = jnp.pad(order, (0, steps * batch - n)).reshape(steps, batch)
        here = (jnp.arange(steps * batch) < n).reshape(steps, batch)
        numbers = number * steps + jnp.arange(steps)
        params, _ = jax.lax.scan(step, params, (numbers, order, here))
        return params, None

    params = model.init(init_key, jnp.zeros_like(data.x[:1]))  # not from any row's values
    params, _ = jax.lax.scan(epoch, params, jnp.arange(config.epochs))
    return params
