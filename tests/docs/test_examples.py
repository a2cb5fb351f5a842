"""Every Python block of the README and the documentation runs.

The blocks of a page run in order and share their names, in an empty folder. A block under the
comment `<!-- no-run: reason -->` is compiled but not run.
"""

import pathlib
import re

import pytest

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- no-run: .+? -->\s*)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: pathlib.Path):
    """The Python blocks of a page, each at its own line, and whether it is to be run."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        before = text[: match.start(2)].count("\n")
        code = compile("\n" * before + match[2], str(page), "exec")
        yield code, match[1] is None


WITH_CODE = [page for page in PAGES if list(blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"page_{page.stem}"}
    for code, run in blocks(page):
        if run:
            exec(code, names)


def test_no_block_is_missed():
    # A block that is indented, or fenced under another name for Python, would not be found.
    assert ROOT / "README.md" in WITH_CODE
    for page in PAGES:
        fences = re.findall(
            r"^ *(?:```|~~~) *\{?\.?(?:python|py)\b", page.read_text(), re.MULTILINE
        )
        assert len(fences) == len(list(blocks(page))), page


def test_links_of_the_readme_lead_somewhere():
    # mkdocs checks those of the other pages.
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
