"""Every public function says what it does in one line and shows it in an example.

Classes may list their attributes instead.
"""

import ast
import importlib.util
import inspect
import textwrap

import pytest

# Packages by their `__all__`; modules, which have none, by the names that they define.
PUBLIC = (
    "jaxunlearn",
    "jaxunlearn.audit",
    "jaxunlearn.baselines",
    "jaxunlearn.baselines.federated",
    "jaxunlearn.certify.budget",
    "jaxunlearn.certify.federated",
    "jaxunlearn.checkpoint",
    "jaxunlearn.data",
    "jaxunlearn.experiments",
    "jaxunlearn.experiments.frontier",
    "jaxunlearn.kernels",
    "jaxunlearn.methods.conmu",
    "jaxunlearn.methods.conmu.config",
    "jaxunlearn.federated",
    "jaxunlearn.federated.aggregate",
    "jaxunlearn.federated.clients",
    "jaxunlearn.federated.federation",
    "jaxunlearn.federated.flower",
    "jaxunlearn.federated.local",
    "jaxunlearn.federated.partition",
    "jaxunlearn.federated.requests",
    "jaxunlearn.federated.rounds",
    "jaxunlearn.methods.ffmu",
    "jaxunlearn.methods.pcmu",
    "jaxunlearn.methods.muter",
    "jaxunlearn.methods.muter.kinks",
    "jaxunlearn.methods.muter.linear",
    "jaxunlearn.models",
    "jaxunlearn.certify.highs",
    "jaxunlearn.certify.patch_audit",
    "jaxunlearn.certify.patch_check",
    "jaxunlearn.certify.region_bound",
    "jaxunlearn.methods.prune",
    "jaxunlearn.methods.prune.classes",
    "jaxunlearn.methods.prune.constants",
    "jaxunlearn.methods.prune.handover",
    "jaxunlearn.methods.prune.memory",
    "jaxunlearn.methods.prune.multipoint",
    "jaxunlearn.methods.prune.points",
    "jaxunlearn.methods.prune.unlearners",
    "jaxunlearn.posthoc",
    "jaxunlearn.primitives.bounds",
    "jaxunlearn.primitives.gradients",
    "jaxunlearn.primitives.smoothing",
    "jaxunlearn.primitives.outcomes",
    "jaxunlearn.primitives.patch_files",
    "jaxunlearn.primitives.patches",
    "jaxunlearn.primitives.regions",
    "jaxunlearn.primitives.splits",
    "jaxunlearn.primitives.adversarial",
    "jaxunlearn.primitives.balls",
    "jaxunlearn.primitives.bounded",
    "jaxunlearn.primitives.curvature",
    "jaxunlearn.primitives.gradients",
    "jaxunlearn.primitives.smoothing",
    "jaxunlearn.primitives.inner",
    "jaxunlearn.primitives.linear",
    "jaxunlearn.primitives.solve",
    "jaxunlearn.primitives.divergence",
    "jaxunlearn.primitives.selection",
    "jaxunlearn.primitives.sparsity",
    "jaxunlearn.registry",
    "jaxunlearn.training",
    "jaxunlearn.training.adversarial",
    "jaxunlearn.training.dynamic",
    "jaxunlearn.training.linear",
    "jaxunlearn.tree",
)
# Modules that need an extra.
EXTRA = {"jaxunlearn.federated.flower": "flwr"}
# Two configurations without fields, and what an example elsewhere shows.
EXEMPT = {
    "jaxunlearn.baselines.noop.NoopConfig",
    "jaxunlearn.baselines.retrain.RetrainConfig",
    "jaxunlearn.posthoc.Request",
    "jaxunlearn.posthoc.Update",
}


def public() -> dict[str, object]:
    """Functions and classes by their names."""
    found = {}
    for path in PUBLIC:
        if (need := EXTRA.get(path)) and importlib.util.find_spec(need) is None:
            continue
        module = importlib.import_module(path)
        for name, value in vars(module).items():
            ours = inspect.isclass(value) or callable(value) and hasattr(value, "__module__")
            listed = name in getattr(module, "__all__", [])
            defined = not hasattr(module, "__all__") and value.__module__ == path if ours else False
            if ours and (listed or defined) and name[0] != "_":
                found[f"{value.__module__}.{name}"] = value
    return found


def written(value) -> str:
    """The docstring in the source: dataclasses and named tuples make one up otherwise."""
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return ast.get_docstring(node) or ""


@pytest.mark.parametrize("name", public())
def test_docstring(name):
    text = written(public()[name])
    first, *rest = text.split("\n\n")
    assert first.endswith(".") and "\n" not in first, "the first line is one sentence"
    there = "\nExample:\n  >>> " in text
    if inspect.isclass(public()[name]):  # the examples of functions show settings and results
        there |= "\nAttributes:\n  " in text
    assert there or name in EXEMPT, "there is no example, or it has no heading 'Example:'"
    assert not (there and name in EXEMPT), "strike it off EXEMPT"


def test_exempt_names_exist():
    assert set(public()) >= EXEMPT
