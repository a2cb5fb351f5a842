"""What the documentation says of methods, columns and benchmarks is what the code says."""

import importlib
import pathlib
import re

import pytest

from jaxunlearn import registry
from jaxunlearn.experiments.lab_columns import COLUMNS
from jaxunlearn.experiments.metrics import METRICS
from jaxunlearn.experiments.notes import MARKS

ROOT = pathlib.Path(__file__).parents[2]


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of all tables of a page."""
    lines = re.findall(r"^\|(.*)\|$", (ROOT / page).read_text(), re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def table(page: str) -> dict[str, list[str]]:
    """The rows of a page whose first cell is a name in code, by that name."""
    return {row[0].strip("`"): row[1:] for row in rows(page) if re.fullmatch(r"`\S+`", row[0])}


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_every_method_is_listed_with_its_guarantee(page):
    listed = table(page)
    plain = {name: m for name, m in registry.METHODS.items() if "+" not in name}
    assert list(listed) == list(plain)
    assert {n: row[0] for n, row in listed.items()} == {n: m.guarantee for n, m in plain.items()}


def test_sources_of_methods():
    sources = {name: row[-1] for name, row in table("docs/methods.md").items()}
    assert sources == {name: registry.METHODS[name].source for name in sources}


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_pruned_methods_are_the_ones_named(page):
    text = (ROOT / page).read_text()
    sentence = re.search(r"^(`[^|]*?)(?:also come as|train a magnitude-pruned)", text, re.MULTILINE)
    assert sentence
    named = {f"{n.removesuffix('+pruning')}+pruning" for n in re.findall(r"`(.+?)`", sentence[1])}
    assert named == {name for name in registry.METHODS if "+" in name}


def test_every_column_of_the_audit_is_explained():
    listed = {row[0]: row[1] for row in rows("docs/audit.md") if len(row) == 3}
    for name in ("column", "---"):
        del listed[name]
    assert listed == {one.short: one.title for one in (*METRICS, *COLUMNS)}


def test_every_mark_of_the_audit_is_explained():
    marks = [row[0] for row in rows("docs/audit.md") if len(row) == 2]
    assert marks[2 : 2 + len(MARKS)] == [sign for sign, _ in MARKS]


def test_every_key_of_the_benchmarks_is_explained():
    pytest.importorskip("benchmarks.training")
    keys = set()  # two benchmarks may have a key in common
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if "\nTARGETS = " in path.read_text():
            keys |= set(importlib.import_module(f"benchmarks.{path.stem}").TARGETS)
    assert sorted(table("docs/benchmarks.md")) == sorted(keys) != []


def test_every_entry_of_the_json_file_is_explained():
    harness = pytest.importorskip("benchmarks.harness")
    listed = [row[0] for row in rows("docs/benchmarks.md") if len(row) == 2][2:]
    assert set(listed) == set(harness.main(None, [], {}, argv=[]))


def test_every_state_field_and_status_is_explained():
    from jaxunlearn import State, Status

    assert list(table("docs/concepts.md")) == [*State._fields, *Status.__members__]
