"""A paper's table with our numbers beside its own.

    python -m benchmarks.tables NAME RECORDS_DIR [--json PATH]

NAME is a TOML file of this folder without its ending. RECORDS_DIR has one folder of records for
each block of the table; where it is missing, the command that makes it is printed.

    python -m benchmarks.tables NAME [OPTIONS]

where NAME is a Python file of this folder: a table that no run of `jaxunlearn compare` fills.
It trains what it needs itself; `--help` after the name lists its options.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.tables import layout
from jaxunlearn._files import atomic_write
from jaxunlearn.experiments.environment import environment


def run(
    name: Annotated[str, tyro.conf.Positional],
    records_dir: Annotated[pathlib.Path, tyro.conf.Positional],
    /,
    json_path: Annotated[pathlib.Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Fill in and print a table.

    Args:
      name: of the table.
      records_dir: one folder of records for each block.
      json_path: also write everything as JSON to this file.
    """
    table = layout.load(name)
    blocks = layout.fill(table, records_dir)
    console = Console()
    layout.show(table, blocks, console if console.is_terminal else Console(width=160))
    if json_path is not None:
        out = {**layout.as_json(table, blocks), "environment": environment()}
        with atomic_write(json_path) as file:
            file.write(json.dumps(out, indent=2, allow_nan=False).encode())


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in layout.modules():
        return importlib.import_module(f"benchmarks.tables.{argv[0]}").main(argv[1:])
    try:
        tyro.cli(run, args=argv, prog="python -m benchmarks.tables", description=__doc__)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
