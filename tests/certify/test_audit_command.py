"""`jaxunlearn audit-patch`: what an auditor sees, and the exit codes."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, cli
from jaxunlearn.methods.prune import PruneConfig, prune
from jaxunlearn.primitives import patch_files, regions

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
RNG = np.random.default_rng(0)
LAYERS = [
    (
        jnp.asarray(2 * RNG.normal(size=(a, b)) / a**0.5, jnp.float32),
        jnp.asarray(0.3 * RNG.normal(size=b), jnp.float32),
    )
    for a, b in ((6, 10), (10, 8), (8, 3))
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    x = jnp.asarray(RNG.random((40, 6)), jnp.float32)
    y = regions.preactivations(LAYERS, x)[1].argmax(-1)
    config = PruneConfig(mode="region", low=0.0, high=1.0, iterations=60)
    made = prune(LAYERS, x[:4], y[:4], config=config)
    file = patch_files.PatchFile(
        made.patches,
        patch_files.model_hash(LAYERS),
        config.sharpness,
        config.margin,
        np.arange(4),
        np.zeros(6),
        np.ones(6),
        made.dual,
    )
    patch_files.save_patches(folder / "patches.npz", file)
    patch_files.save_network(folder / "network.npz", LAYERS)
    patch_files.save_data(folder / "rows.npz", Dataset(x, y))
    return folder, file


def audit(folder, name="patches.npz", model="network.npz", rows="rows.npz", more=()):
    words = [folder / name, "--model", folder / model, "--data", folder / rows, *more]
    cli.main(["audit-patch", *map(str, words)])


def test_what_holds_passes(files, capsys):
    audit(files[0])
    text = capsys.readouterr().out
    assert "PASSED" in text and "A patch erases nothing" in text
    assert "changed without cause" in text and "margin" in text and "0 to 1" in text


def test_who_asked_can_be_given(files, capsys):
    audit(files[0], more=["--requests", "0", "1", "2", "3"])
    with pytest.raises(SystemExit, match="1"):
        audit(files[0], more=["--requests", "0", "1", "2", "3", "7"])
    assert re.search(r"asked, and are not in the file +1 \(7\)", capsys.readouterr().out)


def test_a_forged_file_fails(files, capsys):
    folder, file = files
    weak = file._replace(patches=file.patches._replace(delta=0.3 * file.patches.delta))
    patch_files.save_patches(folder / "weak.npz", weak)
    with pytest.raises(SystemExit, match="1"):
        audit(folder, "weak.npz")
    text = capsys.readouterr().out
    assert "FAILED" in text and "not by 0.1" in text


def test_what_cannot_be_checked_is_an_error(files, capsys):
    folder, _ = files
    good = (folder / "patches.npz").read_bytes()
    (folder / "cut.npz").write_bytes(good[: len(good) // 2])
    changed = [*LAYERS[:-1], (LAYERS[-1][0] * 1.001, LAYERS[-1][1])]
    patch_files.save_network(folder / "changed.npz", changed)
    for given, message in (
        ({"name": "cut.npz"}, "damaged"),
        ({"model": "changed.npz"}, "voids all patches"),
        ({"rows": "network.npz"}, "must hold x and y"),
        ({"name": "none.npz"}, "There is no patch file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            audit(folder, **given)
        assert message in capsys.readouterr().err


def test_any_array_of_another_kind_is_an_error(files, capsys):
    """No traceback, whatever the arrays of a file are replaced by, left out, or accompanied by."""
    folder, _ = files
    with np.load(folder / "patches.npz") as archive:
        good = dict(archive)
    strange = np.zeros(3), np.array("word"), np.array(np.nan), np.zeros((2, 2, 2), complex)
    for name, leaf in good.items():
        for other in (*strange, np.zeros(0), leaf.reshape(-1)[:1], leaf[..., None]):
            if name == "model" and other.size == 1 or np.array_equal(other, leaf):
                continue  # a word is a word
            np.savez(folder / "strange.npz", **{**good, name: other})
            with pytest.raises(SystemExit, match="2"):
                audit(folder, "strange.npz")
        np.savez(folder / "strange.npz", **{key: a for key, a in good.items() if key != name})
        if name not in ("low", "high", "dual"):
            with pytest.raises(SystemExit, match="2"):
                audit(folder, "strange.npz")
    np.savez(folder / "strange.npz", **good, more=np.zeros(1))
    with pytest.raises(SystemExit, match="2"):
        audit(folder, "strange.npz")
    assert "which no patch file has" in capsys.readouterr().err
