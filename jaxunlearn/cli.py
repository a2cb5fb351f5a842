"""The command line: ``jaxunlearn compare``, ``audit``, ``report``, ``methods`` and so on."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxunlearn import __version__, _validate, registry
from jaxunlearn.experiments import CompareConfig, FrontierConfig, read_records
from jaxunlearn.experiments import compare as run_compare
from jaxunlearn.experiments import frontier as run_frontier
from jaxunlearn.experiments.lab import LabConfig
from jaxunlearn.experiments.lab_run import audit_run as run_audit
from jaxunlearn.experiments.lab_run import read_audit
from jaxunlearn.experiments.records import CONFIG, RECORDS


def compare(
    config: Annotated[CompareConfig, tyro.conf.arg(name="")],
    audit: Literal["table", "full"] = "table",
) -> None:
    """Train, unlearn with several methods, and audit each against retrained models.

    Every result is stored at once: stopped at any moment, the same command goes on from there.
    More methods or more seeds may be added later.

    Args:
      config: what to compare.
      audit: "full" runs the audit laboratory on it too, as jaxunlearn audit does: many models of
        every method, minutes to hours.
    """
    run_compare(config)
    if audit == "full":
        run_audit(config.out, data_dir=config.data_dir)
    _show(read_records(config.out), config.out)


def frontier(config: Annotated[FrontierConfig, tyro.conf.arg(name="")]) -> None:
    """Run a grid of a method's knobs, and show what no setting beats in utility, privacy and cost.

    All settings run together on all seeds. Every chunk is stored at once: stopped at any moment,
    the same command goes on from there, and a larger grid may follow.
    """
    run_frontier(config)
    _show_frontier(read_records(config.out), config.out, config.privacy)


def audit(
    run: pathlib.Path,
    config: Annotated[LabConfig, tyro.conf.arg(name="")],
    data_dir: pathlib.Path | None = None,
) -> None:
    """Audit a finished comparison by many retrained models: per-row attacks, epsilons, RULI.

    Stopped at any moment, the same command goes on from there.

    Args:
      run: the folder given to compare.
      config: how many models, and so on.
      data_dir: folder of prepared TFDS sets, if compare was given one.
    """
    run_audit(run, config=config, data_dir=data_dir)
    _show(read_records(run), run)


def report(out: tyro.conf.Positional[pathlib.Path]) -> None:
    """Print the table and write the report of a comparison or a frontier, finished or not.

    Args:
      out: the folder given to compare or to frontier.
    """
    records = read_records(out)
    if not records:
        raise ValueError(f"out={str(out)!r} has no records yet.")
    if any(isinstance(record, dict) and record.get("kind") == "point" for record in records):
        return _show_frontier(records, out, "jsd")
    _show(records, out)


def methods() -> None:
    """List the methods: guarantee, origin, and settings with their defaults."""
    console = _console()
    console.print("Settings are given as --settings METHOD.FIELD=VALUE\n")
    for method in registry.METHODS.values():
        console.print(f"[bold]{escape(method.name)}[/]")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim", min_width=11)
        grid.add_column()
        settings = ", ".join(f"{name}={value}" for name, value in _settings(method.config))
        for name, text in (
            ("  guarantee", method.guarantee),
            ("  source", method.source),
            ("  keeps", method.needs),
            ("  settings", settings or "none"),
        ):
            grid.add_row(name, escape(text))
        console.print(grid)


def models() -> None:
    """List the built-in models."""
    from jaxunlearn.models import MODELS

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for name, make in MODELS.items():
        about = (make.__doc__ or "").strip().split("\n")[0].replace("``", "")
        grid.add_row(name, escape(about))
    _console().print(grid)


def audit_patch(
    file: tyro.conf.Positional[pathlib.Path],
    model: pathlib.Path,
    data: pathlib.Path,
    requests: tuple[int, ...] = (),
) -> None:
    """Check a patch file without a solver: certificates, the flips, and no change elsewhere.

    The exit code is 1 if something that the file claims does not hold or a request is not met, and
    2 if the files are damaged or do not belong together. All three files are written by
    jaxunlearn.methods.prune.hand_over.

    Args:
      file: the patches.
      model: the dense layers that they are for: a NumPy archive of kernel_0, bias_0, and so on.
      data: a NumPy archive of x, inputs of these layers, and y, labels: the training data in order.
      requests: numbers of the rows that asked, as you know it. Without, the file is believed.
    """
    from jaxunlearn.certify import patch_audit
    from jaxunlearn.experiments.patch_report import lines
    from jaxunlearn.primitives import patch_files

    given = patch_files.load_patches(file)
    network, rows = patch_files.load_network(model), patch_files.load_data(data)
    found = patch_audit.audit_patches(
        given, network, rows, requests=requests or None, progress=True
    )
    console = _console()
    for line in lines(given, found, len(rows.y)):
        console.print(line)
    console.print("[bold]PASSED[/]" if found.passed else "[bold red]FAILED[/]")
    if not found.passed:
        raise SystemExit(1)


COMMANDS = {
    "compare": compare,
    "frontier": frontier,
    "audit": audit,
    "report": report,
    "audit-patch": audit_patch,
    "methods": methods,
    "models": models,
}


def main(argv: list[str] | None = None) -> None:
    """Entry point; bad input ends with its message and exit code 2, without a traceback.

    Args:
      argv: the words after ``jaxunlearn``; those of this process if None.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if name in ("-h", "--help"):
            _help()
        elif name == "--version":
            print(f"jaxunlearn {__version__}")
        else:
            _validate.one_of(COMMANDS, command=name)
            tyro.cli(COMMANDS[name], prog=f"jaxunlearn {name}", args=rest)
    except (ValueError, FileNotFoundError) as error:
        _complain(f"[bold red]Error:[/] {escape(str(error))}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _complain("Stopped. Run the same command to go on.")
        if argv is None:  # an orderly exit crashes while XLA's threads still compile
            sys.stdout.flush()
            os._exit(130)
        raise SystemExit(130) from None


def _help() -> None:
    console = _console()
    console.print(
        "usage: jaxunlearn COMMAND ...\n\nMachine unlearning, audited against retrained models.\n",
        highlight=False,
    )
    grid = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        grid.add_row(f"  [bold]{name}[/]", (command.__doc__ or "").split("\n")[0])
    grid.add_row("  [bold]--version[/]", "Print the version.")
    console.print(grid)
    console.print("\njaxunlearn COMMAND --help tells more.", highlight=False)


def _show(records: list[dict[str, Any]], out: pathlib.Path) -> None:
    """Prints the table and writes the report."""
    from jaxunlearn.experiments.lab_columns import print_lab
    from jaxunlearn.experiments.report import write_report  # matplotlib is slow to import
    from jaxunlearn.experiments.summary import summarise
    from jaxunlearn.experiments.table import print_table

    path = out / CONFIG
    config = json.loads(path.read_text()) if path.exists() else None
    summary = summarise(records, config=config)
    lab = read_audit(out)
    page = write_report(summary, out / "report.html", lab=lab)
    print_table(summary)
    if lab:
        print_lab(lab)
    print(f"\nRecords: {out / RECORDS}\nReport:  {page}")


def _show_frontier(records: list[dict[str, Any]], out: pathlib.Path, privacy: str) -> None:
    """Prints the settings that no other beats, and writes the page."""
    from jaxunlearn.experiments.frontier import frontier_of, print_front, write_front, write_page

    front = frontier_of(records)
    print_front(front, privacy)
    table, page = write_front(front, out / "front.csv"), write_page(front, out / "frontier.html")
    print(f"\nRecords: {out / RECORDS}\nTable:   {table}\nPage:    {page}")


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a configuration, nested ones with dots, as ``--settings`` takes them."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _console() -> Console:
    """Standard output, 120 wide where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _complain(message: str) -> None:
    """One line on standard error, however long."""
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


if __name__ == "__main__":
    main()
