"""Docstrings are written for a terminal; here they become Markdown for the site.

Loaded by mkdocs.yml. It changes nothing but what mkdocstrings renders:

- ``:func:`~a.b`` and the other roles become links, or plain code where nothing documents them;
- doctests become fenced code, since ``>>>`` is a quotation in Markdown;
- an entry for several names ("config, mask: as in ...") becomes one entry for each;
- a docstring that is only a section ("Attributes:" in the first line) gets the indentation back
  that dedenting takes from it.
"""

import re

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`~?([\w.]+)`")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
NAMES = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 .*)*)", re.MULTILINE)
ONLY_ATTRIBUTES = re.compile(r"\AAttributes:\n(?=\S)")


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader, **kwargs) -> None:
        self._rewrite(pkg, loader.modules_collection)

    def _rewrite(self, thing, modules) -> None:
        if thing.docstring is not None:
            text = thing.docstring.value
            if ONLY_ATTRIBUTES.match(text):
                text = text.replace("\n", "\n  ")
            text = ROLE.sub(lambda match: _link(match[1], thing, modules), text)
            text = NAMES.sub(_one_each, text)
            thing.docstring.value = DOCTEST.sub(_fence, text)
        for member in thing.members.values():
            if not member.is_alias:
                self._rewrite(member, modules)


def _fence(match: re.Match) -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"


def _one_each(match: re.Match) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


def _link(name: str, thing, modules) -> str:
    shown = f"<code>{name.rpartition('.')[2]}</code>"
    try:
        target = modules[name if "." in name else thing.resolve(name)]
        path = target.canonical_path
    except (KeyError, griffe.GriffeError):
        return shown
    return f'<autoref optional identifier="{path}">{shown}</autoref>'
