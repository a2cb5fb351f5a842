"""The attack of Yeom et al. against counting by hand."""

import jax.numpy as jnp
import numpy as np

from jaxunlearn.audit import yeom_recall


def test_counts_targets_below_the_weighted_mean():
    rng = np.random.default_rng(0)
    train, targets = rng.exponential(size=200), rng.exponential(size=50)
    keep, some = rng.random(200) < 0.7, rng.random(50) < 0.5
    want = (targets[some] <= train[keep].mean()).mean()
    got = yeom_recall(
        jnp.asarray(train),
        jnp.asarray(targets),
        train_weights=jnp.asarray(keep),
        target_weights=jnp.asarray(some),
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_loss_at_the_threshold_is_a_member_and_nan_is_nothing():
    assert yeom_recall(jnp.array([1.0, 3.0]), jnp.array([2.0])) == 1
    assert jnp.isnan(yeom_recall(jnp.array([1.0, jnp.nan]), jnp.array([2.0])))
