import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import audit

# ConMU, Table 1: FA, RA, MIA of retraining, then of each method with the printed FRM.
TABLE_1 = [
    (
        (80.46, 91.47, 19.62),
        [
            ((41.62, 41.21, 57.61), 0.051),
            ((66.74, 66.15, 34.15), 0.305),
            ((84.13, 90.96, 15.42), 0.767),
            ((81.22, 81.75, 18.93), 0.855),
        ],
    ),
    (
        (68.22, 89.67, 33.92),
        [
            ((0.01, 20.96, 100.00), 0.024),
            ((15.22, 53.88, 83.23), 0.072),
            ((69.89, 92.10, 27.81), 0.793),
            ((67.23, 86.68, 32.92), 0.925),
        ],
    ),
    (
        (81.49, 92.09, 19.54),
        [((58.98, 90.64, 38.41), 0.283), ((82.52, 84.00, 17.53), 0.816)],
    ),
]
ROWS = [(retrain, row, printed) for retrain, rows in TABLE_1 for row, printed in rows]


@pytest.mark.parametrize(("retrain", "row", "printed"), ROWS)
def test_the_printed_rows_of_the_paper_come_out(retrain, row, printed):
    assert float(audit.frm(jnp.array(row), jnp.array(retrain))) == pytest.approx(printed, abs=0.01)


def test_other_formulas_do_not_give_the_printed_rows():
    def misses(formula):
        return sum(
            abs(formula(np.array(u), np.array(r)) - printed) > 0.01 for r, u, printed in ROWS
        )

    assert misses(lambda u, r: np.exp(-np.sum(np.abs(u - r) / r))) == 0
    assert misses(lambda u, r: np.exp(-np.sum(np.abs(u - r) / u))) >= 5
    assert misses(lambda u, r: np.exp(-np.mean(np.abs(u - r) / r))) >= 5
    assert misses(lambda u, r: np.exp(-np.sum(np.abs(u - r) / 100))) >= 5


def test_frm_is_one_only_for_equal_metrics():
    q = jnp.array([0.8, 0.9, 0.2])
    assert float(audit.frm(q, q)) == 1
    assert float(audit.frm(q + 0.01, q)) < 1


def test_a_reference_of_zero():
    assert float(audit.frm(jnp.array([0.0, 0.9, 1.0]), jnp.array([0.0, 0.9, 1.0]))) == 1
    assert float(audit.frm(jnp.array([0.1, 0.9, 1.0]), jnp.array([0.0, 0.9, 1.0]))) == 0


def test_nan_shows():
    assert np.isnan(audit.frm(jnp.array([0.1, jnp.nan, 1.0]), jnp.ones(3)))


def test_null_compares_each_model_with_the_mean_of_the_others():
    references = np.random.default_rng(0).uniform(0.2, 1, (6, 3))
    expected = [
        float(audit.frm(references[k], np.delete(references, k, axis=0).mean(0))) for k in range(6)
    ]
    np.testing.assert_allclose(audit.frm_null(references), expected, rtol=1e-5)


def test_null_band_holds_a_retrained_model_and_not_another():
    # Spread of the metrics as measured for a small MLP: the MIA term makes the noise.
    rng = np.random.default_rng(0)
    mean, sd = np.array([0.85, 0.92, 0.17]), np.array([0.008, 0.003, 0.015])
    inside, outside = 0, 0
    for _ in range(100):
        models = rng.normal(mean, sd, (11, 3))
        references = models[:10].mean(0)
        band = audit.null_band(audit.frm_null(models[:10]))
        inside += band.low <= audit.frm(models[10], references)
        moved = models[10] + np.array([0.08, 0.0, -0.08])
        outside += audit.frm(moved, references) < band.low
    assert inside >= 88
    assert outside >= 90


def test_batches_jit_and_vmap():
    metrics = jnp.asarray(np.random.default_rng(1).uniform(0.1, 1, (5, 3)), jnp.float32)
    reference = jnp.broadcast_to(metrics[:1], (5, 3))
    rows = [float(audit.frm(u, r)) for u, r in zip(metrics, reference, strict=True)]
    np.testing.assert_allclose(audit.frm(metrics, reference), rows, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(audit.frm))(metrics, reference), rows, rtol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="metrics has shape"):
        audit.frm(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="they must be equal"):
        audit.frm(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="reference has negative"):
        audit.frm(jnp.ones(3), -jnp.ones(3))
    with pytest.raises(ValueError, match="K >= 2"):
        audit.frm_null(jnp.ones((1, 3)))
