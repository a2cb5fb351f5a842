"""Every command that the README and the documentation show is one that exists."""

import functools
import pathlib
import re
import shlex

import pytest

from jaxunlearn import cli

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(start: str) -> list[str]:
    """The lines of indented code that begin with ``start``, continuation lines joined."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(rf"^ {{4,}}({start}\b[^#\n]*)", text, re.MULTILINE)
    assert found, start
    return sorted(set(found))


def _like(command, calls):
    """A function of the same arguments that only notes that it was called."""

    @functools.wraps(command)
    def note(*args, **options):
        calls.append(args or options)

    return note


@pytest.mark.parametrize("command", commands("jaxunlearn"))
def test_the_command_line_accepts(command, monkeypatch, capsys):
    parsed = []
    monkeypatch.setattr(cli, "run_compare", lambda config: parsed.append(config))
    monkeypatch.setattr(cli, "run_audit", lambda run, **options: parsed.append(run))
    monkeypatch.setattr(cli, "read_records", lambda out: [out])
    monkeypatch.setattr(cli, "_show", lambda records, out: parsed.append(out))
    monkeypatch.setattr(cli, "run_frontier", lambda config: parsed.append(config))
    monkeypatch.setattr(cli, "_show_frontier", lambda records, out, privacy: parsed.append(out))
    monkeypatch.setitem(cli.COMMANDS, "audit-patch", _like(cli.audit_patch, parsed))
    words = shlex.split(command)[1:]
    if "--help" in words:
        with pytest.raises(SystemExit, match="^0$"):
            cli.main(words)
    else:
        cli.main(words)
    assert parsed or capsys.readouterr().out


def test_a_wrong_option_would_be_noticed(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_compare", lambda config: pytest.fail("ran"))
    with pytest.raises(SystemExit, match="^2$"):
        cli.main(["compare", "--dataset", "digits", "--no-such-option", "1"])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    for command in commands("make"):
        assert set(re.findall(r"^make ([\w-]+)", command)) <= set(phony[1].split()), command


def test_benchmarks_exist():
    for command in commands("python -m benchmarks"):
        name, *options = command.split()[2:]
        if name == "benchmarks.tables":  # whose options are the table's own
            table = ROOT / "benchmarks" / "tables" / options[0]
            assert any(table.with_suffix(end).is_file() for end in (".py", ".toml")), command
            continue
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), command
        assert {word for word in options if word[:2] == "--"} <= {"--quick", "--json", "--threads"}
