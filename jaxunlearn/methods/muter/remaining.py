"""Newton steps on the remaining rows, which the paper's method has not."""

import functools
import warnings

from jaxunlearn import _validate, tree
from jaxunlearn.methods.muter.stages import CHUNK, Memory
from jaxunlearn.primitives.adversarial import refine
from jaxunlearn.primitives.balls import Ball
from jaxunlearn.primitives.curvature import total_product
from jaxunlearn.primitives.gradients import gradient_sum
from jaxunlearn.primitives.inner import perturbed
from jaxunlearn.primitives.solve import CG, Cholesky, solve
from jaxunlearn.types import Dataset, LossFn, Params, Status


def refresh(
    loss_fn: LossFn,
    params: Params,
    memory: Memory,
    data: Dataset,
    *,
    ball: Ball,
    solver: CG | Cholesky = Cholesky(),
    steps: int = 1,
    attack_steps: int = 5,
) -> Params:
    """Newton steps on the remaining rows after :func:`remove`: no longer unlearning by the request.

    ``w <- w - M_r^-1 sum_kept grad loss_i(w, delta_i(w))`` with the matrix of the memory and the
    inner maxima found anew, from the old ones. It needs the remaining rows, which the paper's
    method does not, and costs a pass over them; two or three steps are a retraining by Newton's
    method, so say so where you use it.

    Args:
      loss_fn, ball: as before.
      params: the parameters after :func:`remove`.
      memory: after :func:`remove`, with its matrix; the clean methods have none that fits.
      data: all rows.
      solver: of the linear system.
      steps: Newton steps.
      attack_steps: Newton steps for the inner maxima in each.

    Of a system that is indefinite, or was not solved, a warning tells.

    Cost: a step is ``attack_steps`` inner refinements of all rows and one solve.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxunlearn.methods.muter import prepare, remove
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda w, row: 0.25 * jnp.sum((w - row.x) ** 4)
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> delta, ball = jnp.array([[-0.5], [0.5]]), L2Ball(0.5)
      >>> memory = prepare(loss_fn, jnp.array([2.0]), data, delta, ball=ball)
      >>> params, after = remove(loss_fn, memory, data, jnp.array([False, True]), ball=ball)
      >>> again = refresh(loss_fn, params, after, data, ball=ball)
      >>> f"{params[0]:.3f} {again[0]:.3f}"  # the remaining optimum is 1
      '1.500 1.352'
    """
    _validate.whole(steps=steps, attack_steps=attack_steps)
    kept = 1 - _validate.as_weights(memory.removed)
    for _ in range(steps):
        delta = refine(loss_fn, params, data, memory.delta, ball=ball, steps=attack_steps).delta
        g = gradient_sum(
            loss_fn, params, perturbed(data, delta), weights=kept, chunk=min(CHUNK, kept.size)
        )
        system = memory.matrix
        if isinstance(system, tuple):
            how = {"weights": kept, "ball": ball, "trusted": memory.trusted, "chunk": CHUNK}
            system = functools.partial(_product, loss_fn, params, data, delta, how)
        out = solve(system, g, solver=solver)
        if _validate.known(out.status) and out.status != Status.OK:
            warnings.warn(
                f"refresh: the system is {Status(int(out.status)).name} (smallest curvature "
                f"{float(out.curvature):.2g}, residual {float(out.residual):.2g}), so its step may "
                "lead anywhere. Keep the parameters that remove gave.",
                stacklevel=2,
            )
        params = tree.add_scaled(params, -1, out.x)
    return params


def _product(loss_fn, params, data, delta, how, v):
    return total_product(loss_fn, params, data, delta, v, **how)
