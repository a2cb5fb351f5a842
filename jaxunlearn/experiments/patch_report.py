"""What ``jaxunlearn audit-patch`` prints."""

from collections import Counter
from collections.abc import Iterator

from rich.markup import escape

from jaxunlearn.certify.patch_audit import PatchAudit
from jaxunlearn.primitives.outcomes import Outcome
from jaxunlearn.primitives.patch_files import PatchFile


def lines(file: PatchFile, found: PatchAudit, rows: int) -> Iterator[str]:
    """The findings, one a line, with rich's markup: what fails the audit in red."""
    box = "none"
    if file.low is not None and file.high is not None:
        box = f"{file.low.min():g} to {file.high.max():g}"
        if len({*file.low.tolist()}) + len({*file.high.tolist()}) > 2:
            box += f", {(file.high - file.low).mean():g} wide on average"
    valid = sum(c.valid for c in found.certificates)
    collisions = sorted({c.row for c in found.collisions})
    for title, text in (
        ("hash of the network", file.model[:12]),
        ("rows looked at", f"{rows}"),
        ("sharpness of the gates", f"{file.sharpness:g}"),
        ("margin", f"{file.margin:g}"),
        ("box of the certificates", box),
        ("patches", f"{len(found.certificates)}"),
        ("  certified for their whole region", f"{valid}"),
    ):
        yield f"{title:41} {text}"
    yield _line("  that are not at their row", found.misplaced, fails=True)
    yield "\nrequested rows"
    if file.outcome is not None:
        counts = Counter(map(int, file.outcome))
        told = (f"{counts[code]} {_words(code)}" for code in Outcome if counts[code])
        yield f"{'  the file says':41} {', '.join(told)}"
    for title, some, fails in (
        ("  whose answer changed", found.flipped, False),
        ("  that were wrong before", found.already_wrong, False),
        ("  answered by their label", found.not_flipped, True),
        ("  of which the file says something else", found.misstated, True),
        ("  that asked, and are not in the file", found.missing, True),
        ("  that are in the file, and did not ask", found.uninvited, True),
        ("\nother rows", None, False),
        ("  changed without cause", found.changed_elsewhere, True),
        ("  that a patch for another row reaches", collisions, False),
        ("  whose answer changed", found.answers_elsewhere, False),
        ("rows outside of the box", found.outside, False),
    ):
        if some is None:
            yield title
        else:
            yield _line(title, some, fails=fails)
    reasons = {c.reason: c.patch for c in reversed(found.certificates) if not c.valid}
    if reasons:
        yield "\npatches without a certificate"
    for reason, patch in reversed(reasons.items()):
        several = sum(c.reason == reason for c in found.certificates)
        yield f"  {several}, first {patch}: {escape(reason)}"
    yield "\nA patch erases nothing: the weights are as they were, and the file tells who asked."


def _line(title: str, rows: list[int], *, fails: bool) -> str:
    """How many, and the first of them."""
    first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    text = f"{title:41} {len(rows)}" + (f" ({first})" if rows else "")
    return f"[bold red]{text}[/]" if rows and fails else text


def _words(code: Outcome) -> str:
    return code.name.lower().replace("_", " ")
