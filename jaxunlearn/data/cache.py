"""Decoded images, kept as plain ``.npy`` files and mapped into memory.

One file holds the images and the labels of one split, so that they cannot come apart.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxunlearn._files import atomic_write


def rows(
    folder: Path, split: str, count: int, dtype: np.dtype, decode: Callable[[np.ndarray], None]
) -> np.ndarray:
    """The ``count`` rows of a prepared TFDS split, decoded now or by an earlier call.

    A file that does not hold ``count`` rows of ``dtype``, cut short for instance, counts
    as missing and is written anew. It never holds pickled objects.

    Args:
      folder: of the prepared set, ``.../name[/config]/version``.
      split: its name.
      count: the rows that the set's own metadata promise.
      dtype: of one row.
      decode: fills an empty ``dtype[count]`` with the rows.

    Returns:
      ``dtype[count]``, mapped from the file, read-only.
    """
    paths = _paths(folder, split)
    for path in paths:
        kept = _read(path, count, dtype)
        if kept is not None:
            return kept
    decoded = np.empty(count, dtype)
    decode(decoded)
    for path in paths:
        # A folder marked read-only is left alone even by root, who could write there.
        if path.is_relative_to(folder) and not folder.stat().st_mode & 0o222:
            continue
        try:
            with atomic_write(path) as file:
                np.save(file, decoded, allow_pickle=False)
        except OSError:  # read-only, or the disk is full
            continue
        kept = _read(path, count, dtype)
        if kept is not None:
            return kept
    warnings.warn(
        f"Decoded images of {folder} could be kept neither there nor in {paths[-1].parent}: the "
        "next load decodes them again. Set XDG_CACHE_HOME to a folder with space.",
        stacklevel=2,
    )
    return decoded


def _paths(folder: Path, split: str) -> list[Path]:
    """Where the split may be kept: beside the data, or in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{split}-{_fingerprint(folder)}.npy"
    # The last three parts are name/config/version, or data_dir/name/version.
    place = home.joinpath("jaxunlearn", *folder.absolute().parts[-3:])
    return [folder / "jaxunlearn" / name, place / name]


def _fingerprint(folder: Path) -> str:
    """Tells apart sets of one name and version: metadata, and size and time of the records."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        elif ".array_record" in path.name:
            status = path.stat()
            digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    return digest.hexdigest()[:12]


def _read(path: Path, count: int, dtype: np.dtype) -> np.ndarray | None:
    try:
        kept = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # absent, not ours to read, or damaged in one of many ways
        return None
    return kept if kept.shape == (count,) and kept.dtype == dtype else None
