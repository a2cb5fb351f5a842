"""Records of runs: JSON Lines, appended as they are made, whole or not at all.

A run that is killed leaves at most one broken last line; opening the folder again
cuts it off. Each folder belongs to one configuration.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxunlearn._files import atomic_write

RECORDS = "records.jsonl"
CONFIG = "config.json"
LOCK = ".lock"


class Records:
    """The records of a folder, by run id.

    Args:
      folder: made if it does not exist.
      config: JSON values that decide the records.

    Attributes:
      folder: where they lie.
      by_id: all records by their ``run_id``.

    Raises:
      ValueError: the folder has records of another configuration; the message
        names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any]):
        self.folder = _made(folder)
        path = self.folder / CONFIG
        if path.exists():
            _same_config(json.loads(path.read_text()), config, self.folder)
        else:
            with atomic_write(path) as file:
                file.write(json.dumps(config, indent=2).encode())
        _drop_broken_line(self.folder / RECORDS)
        self.by_id = {record["run_id"]: record for record in read_records(self.folder)}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.by_id

    def refuse_other_settings(self, configs: dict[str, Any]) -> None:
        """A method has one configuration in a folder, for all seeds.

        Args:
          configs: the wanted configuration of each method, dataclasses.

        Raises:
          ValueError: a record of one of these methods was made under another one; the
            message names the first field that differs.
        """
        for record in self.by_id.values():
            config = configs.get(record.get("method", ""))
            if config is None:
                continue
            old, new = flat(record["hparams"]), flat(jsonable(dataclasses.asdict(config)))
            for field in sorted(old.keys() | new.keys()):
                if old.get(field) != new.get(field):
                    raise ValueError(
                        f"out={str(self.folder)!r} has records of {record['method']} under other "
                        f"settings ({record['method']}.{field}: {old.get(field)!r} there, "
                        f"{new.get(field)!r} now). Give another folder, or the same settings."
                    )

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record and makes sure that it is on the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.folder / RECORDS, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.by_id[record["run_id"]] = record


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps the folder, which is made if it does not exist, from other runs.

    The lock ends with the process, however that ends. Without effect where the system or the
    file system has no such locks.

    Raises:
      ValueError: another run has it.
    """
    folder = pathlib.Path(folder)
    folder = _made(folder)
    with open(folder / LOCK, "ab") as file:
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"out={str(folder)!r}: another run is using this folder. "
                "Wait for it to end, or give another folder."
            ) from None
        except (ImportError, OSError):
            pass
        yield


def jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(name): jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, pathlib.Path) else value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names.

    Example:
      >>> flat({"epochs": 5, "then": {"rate": 0.1}})
      {'epochs': 5, 'then.rate': 0.1}
    """
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole records of a folder, in the order in which they were made.

    Raises:
      FileNotFoundError: no such folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Records(folder, {"model": "mlp"}).append({"run_id": "noop/seed-0"})
      ...     read_records(folder)
      [{'run_id': 'noop/seed-0'}]
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; `jaxunlearn compare` makes one.")
    path = folder / RECORDS
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _made(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder, made if it does not exist."""
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out={str(folder)!r} cannot be used as a folder ({error.strerror}): give another."
        ) from None
    return path


def _drop_broken_line(path: pathlib.Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def _same_config(old: dict, new: dict, folder: pathlib.Path) -> None:
    changed = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"out={str(folder)!r} has records of another configuration ({'; '.join(changed)}). "
            "Give another folder, or the same configuration to go on."
        )
