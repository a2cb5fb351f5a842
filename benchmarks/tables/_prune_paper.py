"""The numbers that the paper prints, and a network of its second kind."""

from typing import cast

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn.models import Conv, max_pool
from jaxunlearn.types import Array, Model

# Dataset, points, method: A_te, A_res, A_u before, A_u after; % as printed.
TABLE_III = {
    "mnist": {
        100: {
            "retrain": (98.17, 99.89, 100.0, 99.0),
            "sisa": (96.01, 96.15, 93.0, 92.0),
            "amnesiac": (86.84, 97.95, 95.0, 0.0),
            "feature_unlearning": (98.58, 99.94, 100.0, 100.0),
            "prune": (98.0, 99.48, 100.0, 3.4),
        },
        200: {
            "retrain": (98.14, 99.89, 100.0, 97.5),
            "sisa": (96.1, 96.16, 98.0, 97.5),
            "amnesiac": (86.52, 98.37, 94.0, 0.0),
            "feature_unlearning": (93.36, 92.91, 100.0, 92.0),
            "prune": (98.0, 99.32, 99.0, 3.43),
        },
        300: {
            "retrain": (98.23, 99.89, 100.0, 98.67),
            "sisa": (96.1, 96.15, 94.33, 94.0),
            "amnesiac": (84.15, 98.91, 97.67, 0.0),
            "feature_unlearning": (91.3, 91.6, 99.67, 92.33),
            "prune": (98.0, 99.15, 99.33, 1.33),
        },
        500: {
            "retrain": (98.06, 99.89, 100.0, 98.4),
            "sisa": (95.98, 96.15, 95.2, 94.8),
            "amnesiac": (83.78, 96.99, 97.0, 0.0),
            "feature_unlearning": (97.71, 97.46, 99.8, 97.6),
            "prune": (98.0, 98.84, 99.2, 2.77),
        },
    },
    "fashion_mnist": {
        100: {
            "retrain": (87.03, 89.62, 87.0, 84.0),
            "sisa": (86.77, 88.67, 87.0, 86.0),
            "amnesiac": (78.16, 90.36, 88.0, 0.0),
            "feature_unlearning": (82.88, 83.21, 90.0, 82.0),
            "prune": (86.95, 89.16, 94.0, 3.0),
        },
        200: {
            "retrain": (87.06, 89.45, 90.0, 88.5),
            "sisa": (86.65, 88.62, 89.5, 89.0),
            "amnesiac": (78.76, 90.9, 91.0, 0.0),
            "feature_unlearning": (83.0, 83.13, 89.5, 87.5),
            "prune": (86.67, 88.78, 89.0, 3.2),
        },
        300: {
            "retrain": (86.97, 89.44, 89.0, 88.67),
            "sisa": (86.8, 88.71, 91.0, 90.0),
            "amnesiac": (77.76, 89.28, 87.0, 0.0),
            "feature_unlearning": (83.82, 80.67, 87.66, 80.4),
            "prune": (86.55, 88.42, 90.67, 0.8),
        },
        500: {
            "retrain": (86.8, 89.27, 90.2, 90.8),
            "sisa": (86.86, 88.61, 90.8, 90.4),
            "amnesiac": (75.92, 90.95, 89.2, 0.0),
            "feature_unlearning": (81.48, 81.49, 87.1, 83.2),
            "prune": (85.84, 87.41, 92.4, 0.77),
        },
    },
}
# At 100 points: recall of the attack before and after.
TABLE_IV = {
    "mnist": {
        "retrain": (92.6, 83.0),
        "sisa": (92.6, 91.0),
        "amnesiac": (77.5, 0.0),
        "feature_unlearning": (90.8, 88.9),
        "prune": (92.9, 1.01),
    },
    "fashion_mnist": {
        "retrain": (79.4, 77.4),
        "sisa": (79.3, 75.0),
        "amnesiac": (65.8, 0.0),
        "feature_unlearning": (83.8, 78.3),
        "prune": (79.8, 0.0),
    },
}
# A_u, A_tes_u, A_res, A_tes_r before and after.
TABLE_V = {
    "mnist": {"before": (98.95, 97.4, 99.8, 98.08), "prune": (0.13, 17.08, 99.26, 96.86)},
    "fashion_mnist": {
        "before": (93.28, 89.37, 88.8, 87.63),
        "prune": (0.0, 12.16, 85.86, 82.83),
    },
}


class _VGGStyle(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            for _ in range(2):
                x = nn.relu(Conv(channels, (3, 3), padding=((1, 1), (1, 1)))(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


def vgg_style() -> Model:
    """Two blocks of two 3 x 3 convolutions and a pooling, then dense 256, 256 and 10.

    M_p and M_c of the paper's VGG16 on CIFAR-10 in small. (The VGG-16 of `jaxunlearn.models` ends
    in one dense layer, which has no regions.)
    """
    module = _VGGStyle()
    return Model(
        lambda key, x: module.init(key, jnp.zeros((1, *x.shape[1:]), x.dtype))["params"],
        lambda params, x: cast(Array, module.apply({"params": params}, x)),
    )
