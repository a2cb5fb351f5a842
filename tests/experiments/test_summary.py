"""Made-up records with numbers that can be worked out by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from jaxunlearn.audit.band import gap_band, null_band
from jaxunlearn.experiments.metrics import BY_KEY, METRICS
from jaxunlearn.experiments.notes import mark, notes, verdict
from jaxunlearn.experiments.summary import summarise

# Test accuracy of K = 4 retrained models in each of two seeds.
REFERENCES = [[0.90, 0.92, 0.94, 0.96], [0.80, 0.82, 0.84, 0.86]]


def scores(value, mia=0.4, shadow=0.7):
    return {
        "acc_test": value,
        "acc_retain": 0.99,
        "acc_forget": value,
        "mia": {"efficacy": mia, "shadow_acc": shadow, "auc": 0.5, "tpr_at_1fpr": 0.01},
    }


def reference(seed, values=None, **changes):
    values = REFERENCES[seed] if values is None else values
    record = {
        "run_id": f"references/seed-{seed}",
        "kind": "references",
        "seed": seed,
        "dataset": "digits",
        "arch": "mlp",
        "n_train": 1347,
        "n_forget": 269,
        "scores": [scores(value) for value in values],
        "frm_null": [0.90, 0.92, 0.94, 0.96],
        "jsd_null": [0.010, 0.012, 0.014, 0.016],
        "param_l2_null": [10.0, 12.0, 14.0],
    }
    return record | changes


def run(method, seed, value, **changes):
    record = {
        "run_id": f"{method}/seed-{seed}",
        "kind": "method",
        "method": method,
        "seed": seed,
        "guarantee": "none",
        "hparams": {},
        "status": "OK",
        **scores(value),
        "unlearn_s": 1.0,
        "grads": 100.0,
        "compile_s": 2.0,
        "peak_mem_bytes": 2**20,
        "param_l2": 3.0,
        "frm": 0.5,
        "jsd_forget": 0.1,
        "loss_histogram": {
            "log10_edges": [-2.0, -1.0, 0.0, 1.0],
            "forget": [1, 2, 3],
            "test": [3, 2, 1],
        },
    }
    return record | changes


def both(method, *values, **changes):
    return [run(method, seed, value, **changes) for seed, value in enumerate(values)]


def made_up(*extra):
    return [
        reference(0),
        reference(1),
        *both("finetune", 0.95, 0.82),
        *both("retrain", 0.93, 0.84, unlearn_s=4.0, grads=300.0, jsd_forget=0.013, frm=0.93),
        *both("noop", 0.99, 0.99, grads=0.0),
        *extra,
    ]


def test_means_and_intervals_over_seeds():
    cell = summarise(made_up()).row("finetune").cells["acc_test"]
    low, high = stats.t.interval(0.95, 1, loc=0.885, scale=stats.sem([0.95, 0.82]))
    np.testing.assert_allclose(cell.value, [0.885, low, high])


def test_gap_is_to_the_references_of_the_same_seed():
    cell = summarise(made_up()).row("finetune").cells["acc_test"]
    gaps = [0.95 - 0.93, 0.82 - 0.83]
    low, high = stats.t.interval(0.95, 1, loc=0.005, scale=stats.sem(gaps))
    np.testing.assert_allclose(cell.gap, [0.005, low, high])


def test_null_band_by_hand():
    # Deviations of both seeds: -.03, -.01, .01, .03; S (K - 1) = 6 degrees of freedom.
    spread = np.sqrt(2 * (2 * 0.03**2 + 2 * 0.01**2) / 6)
    half = stats.t.ppf(0.975, 6) * spread * np.sqrt(1.25)
    null = summarise(made_up()).null["acc_test"]
    np.testing.assert_allclose([null.mean, *null.band], [0.88, -half, half])


@pytest.mark.parametrize("just, inside", [(1 - 1e-6, True), (1 + 1e-6, False)])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("key", ["acc_test", "jsd"])
def test_marks_switch_at_the_edge_of_the_band(just, inside, side, key):
    null = summarise(made_up()).null[key]
    gap = side * just * null.band.high
    values = {"jsd_forget": null.mean + gap} if key == "jsd" else {}
    records = made_up(*both("edge", 0.93 + gap, 0.83 + gap, **values))
    assert summarise(records).row("edge").cells[key].inside is inside


def covered(share, trials):
    """Whether a share of so many trials is .95, within five standard deviations."""
    return bool(abs(share - 0.95) < 5 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("seeds", [1, 5])
def test_jsd_band_holds_one_more_retrained_model_in_19_of_20_cases(seeds):
    """The divergence of two models is a_i + a_j, and a level that each seed has its own of."""
    rng, trials = np.random.default_rng(0), 3000
    hits, ways = {"summary": 0, "pooled": 0, "no factor": 0}, {}
    assert BY_KEY["jsd"].shared_pairs and not BY_KEY["frm"].shared_pairs
    for trial in range(trials):
        a = rng.gamma(9, 1, (seeds, 6)) + 30 + 10 * rng.random((seeds, 1))
        pairs = a[:, :, None] + a[:, None, :]
        known = pairs[:, :5, :5]
        nulls = (known.sum(-1) - np.diagonal(known, axis1=1, axis2=2)) / 4
        gap = pairs[0, 5, :5].mean() - nulls[0].mean()
        low, high = null_band(nulls.ravel())
        ways["summary"] = gap_band(list(nulls), shared_pairs=True)
        ways["pooled"] = low - nulls.mean(), high - nulls.mean()
        ways["no factor"] = gap_band(list(nulls))
        if not trial:  # the same band, and the same gap, by way of the records
            records = [reference(s, REFERENCES[0], jsd_null=list(n)) for s, n in enumerate(nulls)]
            summary = summarise([*records, run("new", 0, 0.9, jsd_forget=pairs[0, 5, :5].mean())])
            np.testing.assert_allclose(summary.null["jsd"].band, ways["summary"])
            np.testing.assert_allclose(summary.row("new").cells["jsd"].gap.estimate, gap)
        for name, (low, high) in ways.items():
            hits[name] += low <= gap <= high
    assert covered(hits["summary"] / trials, trials)
    assert not covered(hits["pooled"] / trials, trials)
    assert not covered(hits["no factor"] / trials, trials)


@pytest.mark.parametrize("seeds", [1, 5])
def test_frm_band_looks_within_seeds_and_has_no_factor(seeds):
    """A level of each seed moves a score and those of its references alike."""
    rng, trials = np.random.default_rng(1), 3000
    hits = pooled = 0
    for _ in range(trials):
        draws = rng.normal(0.9, 0.02, (seeds, 6)) + 0.1 * rng.normal(size=(seeds, 1))
        groups, gap = draws[:, :5], draws[0, 5] - draws[0, :5].mean()
        records = [reference(s, REFERENCES[0], frm_null=list(n)) for s, n in enumerate(groups)]
        if not hits:
            assert summarise(records).null["frm"].band == gap_band(list(groups))
        low, high = gap_band(list(groups))
        hits += low <= gap <= high
        low, high = null_band(groups.ravel())
        pooled += low <= gap + groups.mean() <= high
    assert covered(hits / trials, trials)
    assert covered(pooled / trials, trials) is (seeds == 1)


@pytest.mark.parametrize("seeds", [1, 5])
def test_band_holds_one_more_retrained_model_in_19_of_20_cases(seeds):
    rng = np.random.default_rng(0)
    draws = rng.normal(0.9, 0.02, (3000, seeds, 6))
    hits = normal = 0
    for draw in draws:
        *references, new = np.moveaxis(draw, -1, 0)
        groups = np.array(references).T
        gap = new[0] - groups[0].mean()
        band = gap_band(list(groups))
        hits += band.low <= gap <= band.high
        normal += abs(gap) <= 1.96 * np.sqrt(groups.var(axis=1, ddof=1).mean())
    assert covered(hits / 3000, 3000)
    assert not covered(normal / 3000, 3000)  # what forgets that spread and mean are estimates


def test_a_steady_shift_inside_the_band_has_its_own_mark():
    cells = {}
    for name, (first, second) in {
        "steady": (0.010, 0.011),
        "steady_below": (-0.010, -0.011),
        "unsteady": (-0.010, 0.031),
        "outside": (0.200, 0.201),
    }.items():
        records = made_up(*both(name, 0.93 + first, 0.83 + second))
        cells[name] = summarise(records).row(name).cells["acc_test"]
    marks = {name: mark(cell) for name, cell in cells.items()}
    assert marks == {"steady": "◐", "steady_below": "◐", "unsteady": "•", "outside": ""}
    assert [cell.inside for cell in cells.values()] == [True, True, True, False]
    one = summarise([reference(0), run("one", 0, 0.94)]).row("one").cells["acc_test"]
    assert one.inside and mark(one) == "•"  # one seed shows no shift
    equal = summarise(made_up()).row("retrain").cells["acc_retain"]
    assert equal.gap == (0, 0, 0) and mark(equal) in "•◦"


def test_verdict_names_who_is_inside_with_a_steady_shift():
    records = made_up(*both("good", 0.94, 0.841, jsd_forget=0.013))
    assert "at once: good. With a steady shift all the same: good." in verdict(summarise(records))
    assert "steady" not in verdict(summarise(made_up()))


def test_equal_references_make_a_band_of_no_width():
    cells = {row.method: row.cells["acc_retain"] for row in summarise(made_up()).rows}
    assert cells["finetune"].inside
    changed = both("other", 0.9, 0.8, acc_retain=0.98)
    assert summarise(made_up(*changed)).row("other").cells["acc_retain"].inside is False


def test_costs():
    summary = summarise(made_up())
    cells = summary.row("finetune").cells
    assert cells["speedup"].value.estimate == 4.0
    assert cells["grad_speedup"].value.estimate == 3.0
    assert cells["memory"].value.estimate == 2**20
    assert BY_KEY["memory"].text(2**20) == "1.00"
    noop = summary.row("noop").cells["grad_speedup"]
    assert np.isnan(noop.value.estimate) and BY_KEY["grad_speedup"].text(noop.value.estimate) == "–"


def test_distances_have_a_floor_and_no_band():
    summary = summarise(made_up())
    assert summary.null["param_l2"].mean == 12.0
    assert summary.null["param_l2"].band is None
    assert summary.row("finetune").cells["param_l2"].gap is None


def test_order_of_rows_and_histograms_of_all_seeds():
    summary = summarise(made_up())
    assert [row.method for row in summary.rows] == ["noop", "retrain", "finetune"]
    histogram = summary.row("finetune").histogram
    assert histogram["forget"].tolist() == [2, 4, 6] and histogram["test"].tolist() == [6, 4, 2]


def test_a_column_that_noop_passes_is_blind():
    # No-op's JSD inside the band: being inside says nothing. Its FRM is outside.
    records = [r for r in made_up() if r.get("method") != "noop"]
    records += both("noop", 0.99, 0.99, jsd_forget=0.013)
    cells = summarise(records).row("retrain").cells
    assert cells["jsd"].inside and cells["jsd"].blind
    assert cells["frm"].inside and not cells["frm"].blind
    assert any("hardly show forgetting" in note for note in notes(summarise(records)))
    seeing = summarise(made_up())
    assert (
        seeing.row("retrain").cells["jsd"].inside and not seeing.row("retrain").cells["jsd"].blind
    )
    assert not any("hardly show forgetting" in note for note in notes(seeing))
    # FRM inside and JSD outside: the task shows forgetting.
    records = [r for r in made_up() if r.get("method") != "noop"]
    found = summarise(records + both("noop", 0.99, 0.99, frm=0.93))
    assert found.row("noop").cells["frm"].blind and not found.row("noop").cells["jsd"].blind
    assert not any("hardly show forgetting" in note for note in notes(found))


def test_killed_on_the_way():
    records = made_up()
    partial = [r for r in records if r["run_id"] not in ("finetune/seed-1", "retrain/seed-1")]
    summary = summarise(partial)
    row = summary.row("finetune")
    assert row.seeds == (0,) and summary.seeds == (0, 1)
    np.testing.assert_allclose(row.cells["acc_test"].gap.estimate, 0.02)
    assert np.isnan(row.cells["acc_test"].value.low)
    assert row.cells["speedup"].value.estimate == 4.0
    assert any("Unfinished: retrain (1 of 2 seeds) and finetune" in n for n in notes(summary))
    assert not any("Unfinished" in note for note in notes(summarise(records)))


def test_every_prefix_of_the_records_can_be_summarised():
    records = json.loads(json.dumps(made_up()))
    for count in range(1, len(records) + 1):
        summary = summarise(records[:count])
        assert verdict(summary) or not summary.rows
        assert notes(summary)
    with pytest.raises(ValueError, match="records is empty"):
        summarise([])


def test_no_references_no_gaps():
    summary = summarise([r for r in made_up() if r["kind"] == "method"])
    assert summary.null == {}
    assert all(cell.inside is None for row in summary.rows for cell in row.cells.values())


def test_a_run_without_a_value_is_not_left_out():
    records = made_up(
        run("broken", 0, 0.9), run("broken", 1, 0.9, acc_test=None, status="NOT_FINITE")
    )
    summary = summarise(records)
    row = summary.row("broken")
    assert np.isnan(row.cells["acc_test"].value.estimate) and row.cells["acc_test"].inside is None
    assert row.failures == {1: "NOT_FINITE"} and row.broken
    assert not row._replace(failures={1: "BEYOND_CERTIFICATE"}).broken
    found = notes(summary)
    assert any("broken reported NOT_FINITE for seed 1" in note for note in found)
    assert any("broken has runs without a finite value of TA" in note for note in found)


def test_the_last_record_of_a_run_counts():
    summary = summarise(made_up(run("finetune", 0, 0.97)))
    np.testing.assert_allclose(
        summary.row("finetune").cells["acc_test"].value.estimate, (0.97 + 0.82) / 2
    )


@pytest.mark.parametrize("shadow, warned", [(0.54, True), (0.56, False)])
def test_note_on_an_attack_without_power(shadow, warned):
    lists = [[scores(v, shadow=shadow) for v in values] for values in REFERENCES]
    records = made_up(*(reference(seed, scores=found) for seed, found in enumerate(lists)))
    assert any("almost no power" in n for n in notes(summarise(records))) is warned


@pytest.mark.parametrize("mia, warned", [(0.09, True), (0.11, False)])
def test_note_on_a_small_denominator_of_frm(mia, warned):
    lists = [[scores(v, mia=mia) for v in values] for values in REFERENCES]
    records = made_up(*(reference(seed, scores=found) for seed, found in enumerate(lists)))
    found = [note for note in notes(summarise(records)) if "FRM hangs on" in note]
    assert bool(found) is warned
    assert not warned or f"by {np.exp(-0.01 / mia):.2f}" in found[0]


def test_notes_on_few_seeds_and_mixed_machines():
    found = notes(summarise(made_up(run("x", 0, 0.9, jax="0.10"), run("x", 1, 0.9, jax="0.11"))))
    assert any("Only 2 seeds" in note for note in found)
    assert any("Only 4 retrained models a seed" in note for note in found)
    assert any("differ in jax" in note for note in found)


def test_verdict_names_who_is_inside_all_three():
    good = both("good", 0.93, 0.83, jsd_forget=0.013)
    text = verdict(summarise(made_up(*good)))
    assert text.startswith("1 of 2 methods lies inside")
    assert "at once: good." in text
    assert "Doing nothing is outside for TA, FA and JSD." in text


@pytest.mark.parametrize(
    "key, value, signed, text",
    [
        ("acc_test", 0.97512, False, "97.5"),
        ("acc_test", -0.00613, True, "−0.6"),
        ("acc_test", -0.0001, True, "0.0"),
        ("auc", 0.5214, False, "0.521"),
        ("jsd", 0.012345, False, "12.3"),
        ("jsd", 0.0012345, False, "1.23"),
        ("unlearn_s", 123.4, False, "123"),
        ("unlearn_s", 0.00018264, False, "0.00018"),
        ("unlearn_s", float("nan"), False, "–"),
    ],
)
def test_numbers_as_printed(key, value, signed, text):
    assert BY_KEY[key].text(value, signed=signed) == text


def test_metrics_are_described_once_each():
    assert len(BY_KEY) == len(METRICS) == len({metric.heading for metric in METRICS})
    assert all(
        m.meaning.endswith(".") and m.group in ("utility", "forgetting", "detail") for m in METRICS
    )


def test_a_row_of_some_seeds_is_compared_with_doing_nothing_on_those_seeds():
    """On the common seed both are equal; on the other one no-op leaves the band."""
    references = [reference(0), reference(1)]
    retrain = both("retrain", 0.93, 0.83)
    noop = both("noop", 0.93, 0.40)
    some = [run("some", 0, 0.93)]
    cells = {row.method: row.cells for row in summarise([*references, *retrain, *noop, *some]).rows}
    assert not cells["noop"]["acc_forget"].inside
    assert cells["some"]["acc_forget"].inside and cells["some"]["acc_forget"].blind


def test_no_conclusion_where_doing_nothing_is_inside():
    records = [reference(0), reference(1)]
    for name in ("retrain", "noop", "good"):
        records += both(name, 0.93, 0.83, jsd_forget=0.013)
    assert verdict(summarise(records)).startswith("No conclusion: doing nothing lies inside")


def test_a_column_that_refuses_retraining_itself_is_named():
    found = notes(summarise(made_up()))
    outside = [note for note in found if note.startswith("Retrain, which is exact, lies outside")]
    broken = both("retrain", 0.5, 0.5, unlearn_s=4.0, grads=300.0, jsd_forget=0.013, frm=0.93)
    worse = [r for r in made_up() if r.get("method") != "retrain"] + broken
    found = notes(summarise(worse))
    assert not outside
    assert any("outside the band of TA and FA itself" in note for note in found)
