"""TFDS image sets that stand prepared in a folder, read without TensorFlow.

Sets are found by their place, ``data_dir/name[/config]/version``, never through the
code of the dataset: that code may ask the network for metadata.
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _progress
from jaxunlearn.data import cache

# Rows decoded at a time; a progress bar from about a second on.
_CHUNK, _LONG = 500, 5000


def find(name: str, data_dir: str | os.PathLike[str] | None, embedded: Sequence[str]) -> Path:
    """The folder of ``name[/config][:version]``; of several versions the newest.

    Raises ``ValueError`` if nobody knows the name or several configs answer to it, and
    ``FileNotFoundError`` if only the data is missing.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    base, _, version = name.partition(":")
    sets = _prepared(root)
    matching = {
        key: folder
        for key, folder in sets.items()
        if f"{key[0]}/".startswith(f"{base}/") and version in ("", key[1])
    }
    configs = sorted({config for config, _ in matching})
    if len(configs) > 1:
        raise ValueError(f"name={name!r} has several configs: choose {' or '.join(configs)}.")
    if not matching:
        raise _absent(name, root, sorted(sets), embedded)
    return matching[max(matching, key=lambda key: [int(part) for part in key[1].split(".")])]


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of train and test, and the number of classes.

    A row is a record ``(image: uint8[H, W, C], label: int32)``. Rows are decoded once,
    then mapped into memory from the cache.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    info: Any = builder.info
    form = getattr(info.file_format, "value", None)
    if form != "array_record":
        raise ValueError(
            f"{info.full_name} in {folder} has the file format {form!r}, which gives no access "
            f"to single rows. {_how_to(*_place(info, folder), overwrite=True)}"
        )
    absent = [split for split in ("train", "test") if split not in info.splits]
    if absent:
        raise ValueError(
            f"{info.full_name} has no split {' and no '.join(absent)} (it has: "
            f"{', '.join(info.splits)}). Only sets with both train and test can be loaded."
        )
    keys, shape, num_classes = _image_and_label(info)
    dtype = np.dtype([("image", np.uint8, shape), ("label", "<i4")])
    train, test = (
        cache.rows(
            folder,
            split,
            info.splits[split].num_examples,
            dtype,
            lambda empty, split=split: _decode(builder, split, keys, empty),
        )
        for split in ("train", "test")
    )
    return train, test, num_classes


def _decode(builder: Any, split: str, keys: tuple[str, str], rows: np.ndarray) -> None:
    """Decodes a whole split into ``rows``."""
    info, folder = builder.info, Path(builder.data_path)
    images, labels = rows["image"], rows["label"]
    starts = range(0, len(rows), _CHUNK)
    title = f"decoding {info.name} {split}"
    try:
        source = builder.as_data_source(split=split)
        for start in _progress.track(starts, title, enabled=len(rows) > _LONG):
            chunk = range(start, min(start + _CHUNK, len(rows)))
            for row, example in zip(chunk, source.__getitems__(list(chunk)), strict=True):
                images[row], labels[row] = (example[key] for key in keys)
    except Exception as error:  # each layer below has exceptions of its own
        raise ValueError(
            f"{info.full_name} in {folder} cannot be decoded, its files are damaged or "
            f"incomplete ({error}). {_how_to(*_place(info, folder), overwrite=True)}"
        ) from error


def _prepared(root: Path) -> dict[tuple[str, str], Path]:
    """What stands prepared under ``root``: (name[/config], version) -> folder."""
    found = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    return {
        (info.parent.parent.relative_to(root).as_posix(), info.parent.name): info.parent
        for info in found
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)  # others are unfinished
    }


def _absent(
    name: str, root: Path, there: list[tuple[str, str]], embedded: Sequence[str]
) -> ValueError | FileNotFoundError:
    """The error for a set that is not under ``root``: unknown, or only not prepared."""
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    names = {config.partition("/")[0] for config, _ in there}
    known = names.union(tfds.list_builders(with_community_datasets=False))
    listed = ", ".join(f"{config}:{version}" for config, version in there) or "nothing"
    where = f"data_dir={str(root)!r}"
    where += f" (prepared there: {listed})" if root.is_dir() else " (no such folder)"
    if base not in known:
        near = difflib.get_close_matches(base, [*embedded, *sorted(known)], n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return ValueError(
            f"name={name!r} is unknown.{hint} Embedded: {', '.join(embedded)}. Others are the "
            f"image-classification sets of TensorFlow Datasets, prepared in {where}."
        )
    return FileNotFoundError(
        f"name={name!r} is not prepared in {where}, and nothing is downloaded unasked. "
        f"{_how_to(name, root)}"
    )


def _place(info: Any, folder: Path) -> tuple[str, Path]:
    """``name[/config]`` and ``data_dir`` of the set in ``folder``."""
    name = info.full_name.rpartition("/")[0]
    return name, folder.parents[name.count("/") + 1]


def _how_to(name: str, root: Path, *, overwrite: bool = False) -> str:
    flags = f"--file_format=array_record --data_dir={root}" + " --overwrite" * overwrite
    return (
        "Prepare it once, on a machine with a network (preparing needs TensorFlow, reading does "
        "not):\n"
        "  pip install tensorflow tensorflow-datasets\n"
        f"  tfds build {name} {flags}\n"
        f"or copy a set prepared elsewhere to {root}, or give another data_dir."
    )


def _image_and_label(info: Any) -> tuple[tuple[str, str], tuple[int, ...], int]:
    """The keys of image and label in an example, the image's shape, the number of classes."""
    from tensorflow_datasets import features as kinds

    features: dict[str, Any] = (
        dict(info.features) if isinstance(info.features, kinds.FeaturesDict) else {}
    )
    keys = info.supervised_keys or ("image", "label")
    image, label = (features.get(key) if isinstance(key, str) else None for key in keys[:2])
    if not (isinstance(image, kinds.Image) and isinstance(label, kinds.ClassLabel)):
        raise ValueError(
            f"{info.full_name} is no image-classification set: it has to give one image and one "
            f"class label, but gives {keys} of {features}."
        )
    shape: Any = image.shape
    if None in shape or image.np_dtype != np.uint8 or not label.num_classes:
        raise ValueError(
            f"{info.full_name} has images of shape {shape} and type {image.np_dtype} in "
            f"{label.num_classes} classes, but images of one size in uint8 and a known number of "
            "classes are needed. Resize the images and prepare the set under a name of its own."
        )
    return (keys[0], keys[1]), shape, label.num_classes
