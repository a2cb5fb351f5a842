"""MUter: unlearning from adversarially trained models (Liu et al., ICCV 2023).

Removing rows F moves the optimum of ``sum_i max_delta loss(w, x_i + delta)`` by

    w_u = w* + [M - sum_F D_i]^-1 sum_F grad loss_i(w*),      M = sum_i D_i,       (Eq. 10)

with ``D_i`` the total Hessian of row i. The paper's D (Eq. 4) takes the perturbation for an
unconstrained maximum, which an attack in a ball never is. Ours is that of the constrained
maximum (``mode="kkt"``); the paper's is kept as ``mode="paper"``, and so are the six methods that
it compares with. ``docs/papers/muter.md`` shows the difference.

Three stages: :func:`prepare` the memory, :func:`remove` rows (as often as asked), and the memory
that it returns is ready for the next request. :func:`unlearner` trains as well. Linear models with
one score have closed forms and kinks of their own: :mod:`jaxunlearn.methods.muter.linear`.
"""

from jaxunlearn.methods.muter.leave_one_out import influence
from jaxunlearn.methods.muter.remaining import refresh
from jaxunlearn.methods.muter.stages import RULES, Diagnostics, Memory, Rule, prepare, remove
from jaxunlearn.methods.muter.unlearner import MuterConfig, adopt, unlearner

__all__ = [
    "RULES",
    "Diagnostics",
    "Memory",
    "MuterConfig",
    "Rule",
    "adopt",
    "influence",
    "prepare",
    "refresh",
    "remove",
    "unlearner",
]
