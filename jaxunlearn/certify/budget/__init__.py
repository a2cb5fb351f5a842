"""How many removals a training with smoothed, quantized gradients survives (PCMU).

Of one step, at fixed parameters: the quantized mean gradient of n rows stays the same, coordinate
by coordinate, when k of the rows leave the mean. From the strongest statement to the weakest:

- for ANY k rows, given bounds of the single gradients: :func:`removal_certificate`;
- for ANY k rows, exactly, from the single gradients: :func:`exact_budget`;
- for k rows drawn at random, approximately: :func:`random_flip_probability`.

None of them says anything about the trained model: the steps before were taken with the rows, and
after one changed coordinate everything else changes too. What does is
:func:`gaussian_unlearning_epsilon`, for training with sampled noise. The paper's own budget, which
claims more than its proof gives, is :func:`paper_budget`.
"""

from jaxunlearn.certify.budget.gaussian import (
    gaussian_removal_budget,
    gaussian_unlearning_epsilon,
)
from jaxunlearn.certify.budget.paper import (
    data_budget,
    input_gradient_lipschitz,
    input_radius,
    paper_budget,
)
from jaxunlearn.certify.budget.step import (
    StepCertificate,
    exact_budget,
    random_flip_probability,
    removal_certificate,
    step_certificate,
    verify_clip,
)

__all__ = [
    "StepCertificate",
    "data_budget",
    "exact_budget",
    "gaussian_removal_budget",
    "gaussian_unlearning_epsilon",
    "input_gradient_lipschitz",
    "input_radius",
    "paper_budget",
    "random_flip_probability",
    "removal_certificate",
    "step_certificate",
    "verify_clip",
]
