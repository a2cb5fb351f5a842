"""A tiny set that TFDS itself prepares: exact pixels, decoded once, every obstacle named."""

import contextlib
import io
import json
import os
import shutil
import socket

import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from jaxunlearn._files import atomic_write
from jaxunlearn.data import load, prepared

ROWS = {"train": 30, "test": 12, "validation": 5}


def pixels(split, seed=0):
    """``uint8[rows, 4, 5, 3]``; row ``i`` has the label ``i % 3``."""
    rng = np.random.default_rng([seed, ROWS[split]])
    return rng.integers(0, 256, (ROWS[split], 4, 5, 3), np.uint8)


def png(image):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "tfds"


@pytest.fixture
def prepare(data_dir):
    """Prepares the set as its authors would, and returns its folder."""

    def prepare(
        *, version="1.0.0", config="", seed=0, splits=("train", "test"), keys=("image", "label"),
        image=None, label=None, row=lambda image, label: {"image": png(image), "label": label},
    ):  # fmt: skip
        image = image or tfds.features.Image(shape=(4, 5, 3))
        label = label or tfds.features.ClassLabel(num_classes=3)

        def info(self):
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

        def examples(split):
            for i, array in enumerate(pixels(split, seed)):
                yield i, row(array, i % 3)

        members = {
            "VERSION": tfds.core.Version(version),
            "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
            "_info": info,
            "_split_generators": lambda self, downloads: {s: examples(s) for s in splits},
            "_generate_examples": lambda self: None,
        }
        with tfds.core.registered.skip_registration():
            made = type("Tiny", (tfds.core.GeneratorBasedBuilder,), members)
        with contextlib.redirect_stdout(io.StringIO()):
            made(data_dir=data_dir, file_format="array_record").download_and_prepare()
        return data_dir.joinpath("tiny", config, version)

    return prepare


@pytest.fixture
def decoded(monkeypatch):
    """The splits decoded so far."""
    splits = []
    decode = prepared._decode

    def count(builder, split, *rest):
        splits.append(split)
        decode(builder, split, *rest)

    monkeypatch.setattr(prepared, "_decode", count)
    return splits


def by_content(x, y):
    """Rows in an order of their own: TFDS shuffles them."""
    flat = np.asarray(x).reshape(len(x), -1)
    order = np.lexsort(flat.T)
    return flat[order], np.asarray(y)[order]


def assert_tiny(splits, seed=0):
    assert splits.num_classes == 3
    for split, data in (("train", splits.train), ("test", splits.test)):
        assert isinstance(data.x, jax.Array) and data.x.shape == (ROWS[split], 4, 5, 3)
        assert data.x.dtype == np.float32 and data.y.dtype == np.int32
        x = pixels(split, seed) / np.float32(255)
        right = by_content(x, np.arange(len(x)) % 3)
        for found, exact in zip(by_content(*data), right, strict=True):
            np.testing.assert_array_equal(found, exact)


def files(folder):
    return sorted(path.name.split("-")[0] for path in folder.rglob("*.npy"))


# Reading and keeping.


def test_images_are_exact_and_decoded_once(prepare, data_dir, decoded, own_cache):
    folder = prepare()
    first = load("tiny", data_dir=data_dir)
    assert first.name == "tiny"
    assert_tiny(first)
    assert decoded == ["train", "test"]
    assert files(folder) == ["test", "train"] and not own_cache.exists()
    second = load("tiny", data_dir=str(data_dir))
    assert decoded == ["train", "test"]
    for old, new in zip(jax.tree.leaves(first[:2]), jax.tree.leaves(second[:2]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_data_dir_defaults_to_the_one_of_tfds(prepare, data_dir, monkeypatch):
    prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert_tiny(load("tiny"))


def test_long_decoding_shows_a_bar_and_loses_no_row(prepare, data_dir, monkeypatch):
    prepare()
    titles = []
    track = prepared._progress.track

    def shown(items, title, *, enabled):
        titles.append((title, enabled))
        return track(items, title, enabled=enabled)

    monkeypatch.setattr(prepared._progress, "track", shown)
    monkeypatch.setattr(prepared, "_LONG", 20)
    monkeypatch.setattr(prepared, "_CHUNK", 7)
    assert_tiny(load("tiny", data_dir=data_dir))
    assert titles == [("decoding tiny train", True), ("decoding tiny test", False)]


def test_read_only_data_is_kept_in_the_users_cache(prepare, data_dir, decoded, own_cache):
    folder = prepare()
    folder.chmod(0o555)
    try:
        for _ in range(2):
            assert_tiny(load("tiny", data_dir=data_dir))
    finally:
        folder.chmod(0o755)
    assert decoded == ["train", "test"]
    assert files(folder) == [] and files(own_cache / "jaxunlearn") == ["test", "train"]


def test_no_place_to_keep_warns_and_still_loads(prepare, data_dir, own_cache):
    folder = prepare()
    own_cache.write_text("a file where the cache folder should be")
    (folder / "jaxunlearn").write_text("and another")
    with pytest.warns(UserWarning, match="Set XDG_CACHE_HOME"):
        assert_tiny(load("tiny", data_dir=data_dir))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def garble(path):
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': broken")


def drop_rows(path):
    rows = np.load(path)
    np.save(path, rows[1:])


def other_type(path):
    rows = np.load(path)
    np.save(path, rows["label"])


class Trap:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def pickle(path):
    np.save(path, np.array([Trap()] * 30, object), allow_pickle=True)


@pytest.mark.parametrize("damage", [shorten, empty, garble, drop_rows, other_type, pickle])
def test_damaged_cache_is_made_anew(prepare, data_dir, decoded, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = prepare()
    load("tiny", data_dir=data_dir)
    damage(next(folder.rglob("train-*.npy")))
    assert_tiny(load("tiny", data_dir=data_dir))
    assert decoded == ["train", "test", "train"]
    assert_tiny(load("tiny", data_dir=data_dir))
    assert decoded == ["train", "test", "train"]
    assert not (tmp_path / "sprung").exists()


def test_a_set_prepared_again_is_decoded_again(prepare, data_dir):
    folder = prepare()
    assert_tiny(load("tiny", data_dir=data_dir))
    kept = shutil.copytree(folder / "jaxunlearn", data_dir / "kept")
    shutil.rmtree(folder)
    prepare(seed=1)
    shutil.copytree(kept, folder / "jaxunlearn")
    assert_tiny(load("tiny", data_dir=data_dir), seed=1)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    for content in (b"whole", b"again"):
        with atomic_write(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"whole"
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_not_read(prepare, data_dir, monkeypatch):
    folder = prepare()
    with monkeypatch.context() as patch:
        # SIGKILL before the rename: the finished copy stays under its temporary name.
        patch.setattr(os, "replace", lambda old, new: shutil.copy(old, f"{old}.left.tmp"))
        with pytest.warns(UserWarning, match="decodes them again"):
            assert_tiny(load("tiny", data_dir=data_dir))
    left = list(folder.rglob("*.tmp"))
    assert left and files(folder) == []
    for path in left:
        path.write_bytes(path.read_bytes()[:50])
    assert_tiny(load("tiny", data_dir=data_dir))
    assert files(folder) == ["test", "train"]


# Finding.


def test_newest_version_unless_one_is_named(prepare, data_dir):
    for seed, version in enumerate(("1.9.0", "1.10.0")):
        prepare(version=version, seed=seed)
    (data_dir / "tiny" / "incomplete.X_2.0.0").mkdir()
    shutil.copy(data_dir / "tiny/1.9.0/dataset_info.json", data_dir / "tiny/incomplete.X_2.0.0")
    assert_tiny(load("tiny", data_dir=data_dir), seed=1)
    assert_tiny(load("tiny:1.9.0", data_dir=data_dir), seed=0)
    with pytest.raises(FileNotFoundError, match="prepared there: tiny:1.10.0, tiny:1.9.0"):
        load("tiny:3.0.0", data_dir=data_dir)


def test_configs_are_chosen_by_name(prepare, data_dir):
    prepare(config="small", seed=0)
    assert_tiny(load("tiny", data_dir=data_dir), seed=0)
    prepare(config="large", seed=1)
    assert_tiny(load("tiny/large", data_dir=data_dir), seed=1)
    assert_tiny(load("tiny/small:1.0.0", data_dir=data_dir), seed=0)
    with pytest.raises(ValueError, match="choose tiny/large or tiny/small"):
        load("tiny", data_dir=data_dir)


@pytest.mark.parametrize(
    ("name", "near"), [("tinny", "tiny"), ("digit", "digits"), ("mnits", "mnist")]
)
def test_unknown_names_get_the_nearest(prepare, data_dir, name, near):
    prepare()
    with pytest.raises(ValueError, match=f"name='{name}' is unknown. Did you mean '{near}'"):
        load(name, data_dir=data_dir)


@pytest.mark.parametrize("name", ["", None, "../tiny", "/", "xyzzyplugh"])
def test_names_that_are_none(prepare, data_dir, name):
    prepare()
    with pytest.raises(ValueError, match="name="):
        load(name, data_dir=data_dir / "tiny" if name == "../tiny" else data_dir)


@pytest.mark.parametrize("there", [True, False])
def test_missing_data_says_how_to_get_it_and_asks_no_network(data_dir, there, monkeypatch):
    calls = []
    monkeypatch.setattr(socket.socket, "connect", lambda *a: calls.append(a))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: calls.append(a))
    if there:
        data_dir.mkdir()
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", data_dir=data_dir)
    message = str(error.value)
    assert f"tfds build cifar10 --file_format=array_record --data_dir={data_dir}" in message
    assert f"data_dir='{data_dir}'" in message and "pip install tensorflow" in message
    assert ("no such folder" in message) != there
    assert not calls and data_dir.exists() == there


# Sets that cannot be used.


def test_other_file_formats(prepare, data_dir):
    info = prepare() / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    assert json.loads(info.read_text())["fileFormat"] == "tfrecord"
    with pytest.raises(ValueError, match="file format 'tfrecord'") as error:
        load("tiny", data_dir=data_dir)
    assert f"build tiny --file_format=array_record --data_dir={data_dir} --ov" in str(error.value)


@pytest.mark.parametrize("config", ["", "small"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_records(prepare, data_dir, damage, config):
    record = next(prepare(config=config).glob("*test.array_record*"))
    whole = record.read_bytes()
    record.unlink()
    if damage == "short":
        record.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or incomplete") as error:
        load("tiny", data_dir=data_dir)
    name = f"tiny/{config}" if config else "tiny"
    assert f"build {name} --file_format=array_record --data_dir={data_dir} " in str(error.value)


def test_a_set_without_test_split(prepare, data_dir):
    prepare(splits=("train", "validation"))
    with pytest.raises(ValueError, match=r"no split test \(it has: .*validation"):
        load("tiny", data_dir=data_dir)


def text(image, label):
    return {"image": png(image), "label": str(label)}


def several_sizes(image, label):
    return {"image": png(image[: 2 + label]), "label": label}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"label": tfds.features.Text(), "row": text}, "no image-classification set"),
        (lambda: {"keys": ("image", "image")}, "no image-classification set"),
        (
            lambda: {"image": tfds.features.Image(shape=(None, 5, 3)), "row": several_sizes},
            r"shape \(None, 5, 3\)",
        ),
        (
            # Some sets mark the rows whose labels are kept secret so.
            lambda: {"row": lambda image, label: {"image": png(image), "label": label - 1}},
            r"tiny \(train\).y has labels from -1",
        ),
    ],
)
def test_sets_that_are_no_image_classification(prepare, data_dir, changes, message):
    prepare(**changes())
    with pytest.raises(ValueError, match=message):
        load("tiny", data_dir=data_dir)


def test_supervised_keys_may_be_left_out(prepare, data_dir):
    prepare(keys=None)
    assert_tiny(load("tiny", data_dir=data_dir))
