"""The layout in CONTRIBUTING.md is that of the repository."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def layout() -> dict[pathlib.Path, bool]:
    """Every path of the block under "Layout", and whether it is marked as to come."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"^## Layout\n\n((?: {4}.*\n)+)", text, re.MULTILINE)
    assert block
    found, folder = {}, ROOT
    for line in block[1].splitlines():
        depth = 4 if line[4] != " " else 6
        names, _, about = line[depth:].partition("   ")
        folder = ROOT if depth == 4 else folder
        for name in names.split("  "):
            found[folder / name] = about.strip().startswith("(to come)")
        if depth == 4 and not about:  # a folder whose content follows
            folder = ROOT / names
    return found


def exists(path: pathlib.Path) -> bool:
    """A file, or a folder with source in it: git keeps no empty ones."""
    return path.is_file() or any(path.rglob("*.py"))


def test_paths_exist_or_are_marked():
    paths = layout()
    assert paths[ROOT / "jaxunlearn/types.py"] is False and len(paths) > 15
    assert {path for path, to_come in paths.items() if exists(path) == to_come} == set()


def test_no_module_is_left_out():
    there = {path for path in (ROOT / "jaxunlearn").glob("[!_.]*") if exists(path)}
    there = {path for path in there if path.suffix in ("", ".py")}
    assert there - set(layout()) == set()
