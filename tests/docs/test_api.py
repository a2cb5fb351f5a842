"""Every public name is on a page of the API, and everything that the pages name exists."""

import importlib.util
import pathlib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
PUBLIC = (
    "jaxunlearn",
    "jaxunlearn.audit",
    "jaxunlearn.baselines",
    "jaxunlearn.certify.budget",
    "jaxunlearn.data",
    "jaxunlearn.experiments",
    "jaxunlearn.baselines.federated",
    "jaxunlearn.federated",
    "jaxunlearn.kernels",
    "jaxunlearn.experiments.frontier",
    "jaxunlearn.methods.conmu",
    "jaxunlearn.methods.ffmu",
    "jaxunlearn.methods.pcmu",
    "jaxunlearn.methods.prune",
    "jaxunlearn.models",
    "jaxunlearn.training",
)
# Tables of names, each described in the text of its page; and modules.
NO_ENTRY = {"MODELS", "MODES", "DATASETS", "NOISES", "PAPER", "PAPER_TRAIN", "PAPER_CLASS"}
NO_ENTRY |= {"OFFICIAL", "FEDAVG"}
NO_ENTRY |= {"__version__", "audit", "data", "models", "registry", "aggregate", "partition"}
# Modules that need an extra.
EXTRA = {"jaxunlearn.federated.flower": "flwr"}


def entries() -> list[object]:
    """The objects that the pages document: every entry is a module and the members of it."""
    found = []
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for entry in page.read_text().split("\n::: ")[1:]:
            path, _, options = entry.partition("\n")
            if (need := EXTRA.get(path.strip())) and importlib.util.find_spec(need) is None:
                continue
            module = importlib.import_module(path.strip())
            members = yaml.safe_load(options)["options"]["members"]
            found += [getattr(module, name) for name in members]
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    module, documented = importlib.import_module(name), entries()
    names = set(module.__all__) - NO_ENTRY
    assert {n for n in names if not any(getattr(module, n) is d for d in documented)} == set()


def test_nothing_is_documented_twice():
    documented = entries()
    assert len({id(entry) for entry in documented}) == len(documented)
