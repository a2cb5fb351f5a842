"""Records of runs: JSON Lines, appended as they are made, whole or not at all.

A run that is killed leaves at most one broken last line; opening the folder again
cuts it off. Each folder belongs to one configuration.
"""

import json
import os
import pathlib
from typing import Any

from jaxunlearn._files import atomic_write

RECORDS = "records.jsonl"
CONFIG = "config.json"


class Records:
    """The records of a folder, by run id.

    Args:
      folder: made if it does not exist.
      config: JSON values that decide the records.

    Raises:
      ValueError: the folder has records of another configuration; the message
        names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any]):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
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

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record and makes sure that it is on the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.folder / RECORDS, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.by_id[record["run_id"]] = record


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole records of a folder, in the order in which they were made.

    Raises:
      FileNotFoundError: no such folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; `jaxunlearn compare` makes one.")
    path = folder / RECORDS
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


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
