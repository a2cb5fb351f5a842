"""Paper tables: their numbers hang together, and ours land in the right cells."""

import json
import shlex

import numpy as np
import pytest
import tyro
from rich.console import Console

from benchmarks.tables import __main__ as command_line
from benchmarks.tables import layout
from jaxunlearn.experiments import CompareConfig
from jaxunlearn.experiments.records import Records


def scores(acc_test):
    return {
        "acc_test": acc_test,
        "acc_forget": 0.8,
        "acc_retain": 0.9,
        "mia": {"efficacy": 0.2, "auc": 0.5, "tpr_at_1fpr": 0.01, "shadow_acc": 0.5},
    }


def store(folder, *, dataset="cifar10", seeds=2):
    """Records of a made-up comparison: test accuracy is .5 + seed / 10, and .1 more for no-op."""
    records = Records(folder, {})
    common = {"dataset": dataset, "arch": "resnet18", "forget_mode": "random"}
    for seed in range(seeds):
        accuracy = 0.5 + seed / 10
        three = [scores(accuracy + d) for d in (-0.01, 0.0, 0.01)]
        nulls = {"frm_null": [0.9, 0.95, 1.0], "jsd_null": [0.1] * 3, "param_l2_null": [1.0] * 2}
        head = {"run_id": f"references/{seed}", "kind": "references", "seed": seed}
        records.append({**head, **common, "scores": three, **nulls})
        for method, gain in (("noop", 0.1), ("retrain", 0.0), ("finetune+pruning", 0.02)):
            head = {"run_id": f"{method}/{seed}", "kind": "method", "method": method, "seed": seed}
            costs = {"unlearn_s": 2.0, "grads": 10.0, "frm": 0.93, "jsd_forget": 0.1}
            records.append({**head, **common, **scores(accuracy + gain), **costs})


@pytest.fixture
def table():
    return layout.load("conmu_table1")


@pytest.fixture
def both():
    """Tables 1 and 4: the blocks of both."""
    return [block for n in (1, 4) for block in layout.load(f"conmu_table{n}")["blocks"]]


def test_the_printed_frm_follows_from_the_printed_row(both):
    """Equation 9 of the paper: a slip of the pen in FA, RA, MIA or FRM would show."""
    marked = 0
    for block in both:
        reference = np.array(block["rows"][0]["paper"][1:4])
        for row in block["rows"]:
            gaps = np.abs(np.array(row["paper"][1:4]) - reference) / reference
            follows = abs(np.exp(-gaps.sum()) - row["paper"][5]) <= 0.01
            assert follows == (row.get("doubt") != "frm"), row["label"]
            marked += not follows
    assert marked == 3


def test_rows_that_contradict_the_others_are_marked(both):
    all_rows = [(block["name"], row) for block in both for row in block["rows"]]
    seen = [tuple(row["paper"][:3]) for _, row in all_rows]
    assert len(all_rows) == 60
    for name, row in all_rows:
        doubt = "frm" if row.get("doubt") == "frm" else ""
        if not 80 < row["paper"][1] + row["paper"][3] < 105:
            doubt = "complement"
        elif seen.count(tuple(row["paper"][:3])) > 1:
            doubt = "repeated"
        assert row.get("doubt", "") == doubt, (name, row["label"])


def test_the_commands_are_comparisons(table, tmp_path):
    for block in layout.fill(table, tmp_path):
        program, subcommand, *arguments = shlex.split(block.command)
        assert (program, subcommand) == ("jaxunlearn", "compare")
        config = tyro.cli(CompareConfig, args=arguments)
        assert config.seeds == 10 and config.train.batch_size == 128
        assert config.out == tmp_path / block.name
        wanted = {line.method for line in block.lines}
        assert wanted <= set(config.method_names())


def test_without_records_it_says_how_to_make_them(table, tmp_path, capsys):
    command_line.main(["conmu_table1", str(tmp_path), "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert printed.count("jaxunlearn compare") == len(table["blocks"])
    assert "79.99" in printed and "IU + Pruning *" in printed
    out = json.loads((tmp_path / "out.json").read_text())
    assert set(out["metrics"].values()) == {None}


def test_records_fill_the_right_cells(table, tmp_path):
    store(tmp_path / "resnet18_cifar10_random")
    blocks = layout.fill(table, tmp_path)
    out = layout.as_json(table, blocks)
    name = "resnet18_cifar10_random"
    assert out["metrics"][f"{name}.noop.acc_test"] == pytest.approx(65.0)
    assert out["metrics"][f"{name}.retrain.acc_test"] == pytest.approx(55.0)
    assert out["metrics"][f"{name}.finetune+pruning.mia"] == pytest.approx(20.0)
    assert out["metrics"][f"{name}.influence+pruning.acc_test"] is None
    block = out["workloads"][name]
    ours = block["rows"][1]["ours"]["acc_test"]
    half = 12.706 * np.std([50, 60], ddof=1) / np.sqrt(2)  # t of one degree of freedom
    assert ours["high"] - ours["mean"] == pytest.approx(half, rel=1e-3)
    low, high = block["null_band"]["acc_test"]
    assert low < 55 < high
    assert block["rows"][0]["paper"] is None and block["rows"][1]["paper"]["acc_test"] == 79.99
    assert block["differs"] == ["2 seeds, not 10"]

    console = Console(width=170, record=True, file=open(tmp_path / "void", "w"))
    with console.file:
        layout.show(table, blocks, console)
    text = console.export_text()
    line = next(line for line in text.splitlines() if "No-op" in line)
    assert "65.0" in line
    assert "Not the paper's setting: 2 seeds, not 10." in text
    assert text.count("No records yet") == len(blocks) - 1


def test_records_of_another_setting_are_said_to_be_so(table, tmp_path):
    store(tmp_path / "resnet18_cifar10_random", dataset="digits", seeds=10)
    first, *_ = layout.fill(table, tmp_path)
    assert first.differs == ["dataset is digits, not cifar10"]


def test_unknown_tables():
    with pytest.raises(ValueError, match=r"'conm'.*Known: conmu, conmu_table1, conmu_table4"):
        layout.load("conm")
    with pytest.raises(SystemExit, match="Known"):
        command_line.main(["conm", "somewhere"])


def test_conmu_on_fashion_mnist_asks_for_comparisons_that_exist(tmp_path):
    from benchmarks.tables import conmu

    options = conmu.Options(folder=tmp_path)
    for request in conmu.BLOCKS:
        config = conmu.comparison(options, request)
        assert config.seeds >= 10 and config.out == tmp_path / request
        configs = config.method_configs()
        assert {method for _, method, _ in conmu.ROWS} == set(configs)
        assert conmu.paper_rows(conmu.BLOCKS[request][1]).keys() == {
            label for *_, label in conmu.ROWS if label is not None
        }
    assert configs["conmu_paper"].alpha == 12 and configs["conmu_paper"].retain.low == 0.2


def test_conmu_table_shows_records_beside_the_paper(tmp_path, capsys):
    from benchmarks.tables import conmu
    from jaxunlearn.experiments import read_records
    from jaxunlearn.experiments.summary import summarise

    store(tmp_path / "random")
    found = {"random": summarise(read_records(tmp_path / "random"))}
    console = Console(width=220, record=True, file=open(tmp_path / "void", "w"))
    with console.file:
        conmu.show(found, console)
    text = console.export_text()
    assert "79.99" not in text and "80.0" in text  # the paper's, to a decimal
    assert "65.0" in next(line for line in text.splitlines() if "No-op" in line)
    assert "one more Retrain" in text
    out = conmu.as_json(found)
    assert out["metrics"]["random.noop.acc_test"] == pytest.approx(0.65)
    assert out["paper"]["random"]["ConMU"]["paper"][5] == 0.855
