"""The audit of a patch file: certificates, the change at the requested points, and nowhere else."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn._progress import track
from jaxunlearn.certify.patch_check import Checked, Claim, check
from jaxunlearn.kernels import region_gate
from jaxunlearn.primitives.outcomes import Outcome
from jaxunlearn.primitives.patch_files import PatchFile, fits_together
from jaxunlearn.primitives.patches import Collision, corrected, live
from jaxunlearn.primitives.regions import dense_layers, finite_rows, preactivations
from jaxunlearn.types import Array, Dataset

# A row's gate of its own patch: 1 but for a pre-activation that is 0 up to rounding.
INSIDE = 0.99
# What the file may say of a row that has another answer than its label now, and knew it before.
CHANGED = (Outcome.FLIPPED, Outcome.SHARED)


class PatchAudit(NamedTuple):
    """Result of :func:`audit_patches`; all rows by number, "requested" as the file says.

    Attributes:
      certificates: one :class:`~jaxunlearn.certify.patch_check.Checked` a patch.
      flipped: requested rows whose answer was their label and is another now.
      not_flipped: requested rows whose answer is their label now.
      already_wrong: requested rows whose answer was not their label and is not.
      misstated: requested rows of which the file tells another outcome than there is.
      missing: rows that are known to have asked, and that the file does not name.
      uninvited: rows that the file names, and that are known not to have asked.
      misplaced: patches that do not contain the row that they name, or that are certified there
        for another class than is answered, or for a box without it.
      changed_elsewhere: rows that nobody asked for, whose logits differ at all, though no patch of
        a requested row is bound to reach them: they lie in a collar, in the region of a patch for
        no row, or in one that leaves neurons out and is for another class.
      answers_elsewhere: rows that nobody asked for, whose answer differs, for any reason.
      collisions: rows that a patch reaches which is not for them.
      outside: rows outside of the box that the certificates are for.
    """

    certificates: list[Checked]
    flipped: list[int]
    not_flipped: list[int]
    already_wrong: list[int]
    misstated: list[int]
    missing: list[int]
    uninvited: list[int]
    misplaced: list[int]
    changed_elsewhere: list[int]
    answers_elsewhere: list[int]
    collisions: list[Collision]
    outside: list[int]

    @property
    def passed(self) -> bool:
        """All that was asked for is done, nothing else without cause, and no claim is false.

        A row that was wrong before is done with. A patch that claims no region fails nothing by
        that; a file without requests fails.
        """
        good = all(c.valid for c in self.certificates if c.claim is Claim.REGION)
        wrong = self.not_flipped or self.misstated or self.missing or self.uninvited
        wrong = wrong or self.misplaced or self.changed_elsewhere
        return good and bool(self.flipped or self.already_wrong) and not wrong


def audit_patches(
    file: PatchFile,
    params: Any,
    data: Dataset,
    *,
    requests: Sequence[int] | None = None,
    chunk: int = 4096,
    progress: bool = False,
) -> PatchAudit:
    """What an auditor checks, with the weights in hand and no solver.

    Certificates by :func:`~jaxunlearn.certify.patch_check.check`; the answers of the network
    with and without its patches from one compiled call, so that "unchanged" means every bit.

    Args:
      file: the patches.
      params: the dense layers that they are for.
      data: inputs of these layers with labels, among them the rows that the file names, by
        number.
      requests: the rows that asked, as the auditor knows it. None believes the file.
      chunk: rows at once.
      progress: show a bar.

    Returns:
      :class:`PatchAudit`.

    Cost: a pass over the data, and 2 L forward passes a certificate. Of weights in float64 all is
    computed in float64.

    Raises:
      ValueError: the weights are others than the file is for; arrays that do not fit; NaN; a
        row that is not there.

    Example:
      >>> from jaxunlearn.methods.prune import prune
      >>> from jaxunlearn.primitives.patch_files import model_hash
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> data = Dataset(jnp.array([[2.0], [-1.0], [3.0]]), jnp.array([0, 1, 0]))
      >>> patches = prune(layers, data.x[:1], data.y[:1]).patches
      >>> file = PatchFile(patches, model_hash(layers), 1000.0, 0.1, np.array([0]))
      >>> found = audit_patches(file, layers, data)
      >>> found.flipped, found.changed_elsewhere, [c.row for c in found.collisions]
      ([0], [], [2])
    """
    _validate.whole(chunk=chunk)
    layers = dense_layers(params)
    if not all(np.isfinite(np.asarray(leaf)).all() for layer in layers for leaf in layer):
        raise ValueError("params has NaN or infinite weights: no answer of it means anything.")
    fits_together(file, "file")
    certificates = check(file, layers, progress=progress)
    finite_rows("data.x", data.x, layers[0].kernel.shape[0])
    _validate.dataset(data, num_classes=layers[-1].bias.shape[0])
    named = _named(file, data.y.shape[0])
    with jax.enable_x64(layers[0].kernel.dtype == np.float64):
        seen = _look(layers, file, data, chunk, progress)

    rows, y = np.asarray(file.rows), np.asarray(data.y)
    wider = np.isin(np.arange(len(rows)), _claiming(certificates, Claim.WIDER))
    # A patch is bound to reach what lies in the region of the row that it is for; if it leaves
    # neurons out, what is of that row's class.
    bound_to = {
        c.row
        for c in seen.reached
        if c.gate >= 1
        and rows[c.patch] >= 0
        and (not wider[c.patch] or y[rows[c.patch]] == y[c.row])
    }
    knew, knows = seen.before[named] == y[named], seen.after[named] == y[named]
    misstated = np.zeros_like(knew)
    if file.outcome is not None:
        wrong = np.asarray(file.outcome) == Outcome.ALREADY_WRONG
        misstated = (np.isin(file.outcome, CHANGED) != (knew & ~knows)) | (wrong & knew)
    asked = named if requests is None else np.asarray(requests, int)
    others = np.setdiff1d(np.arange(len(y)), named)
    return PatchAudit(
        certificates,
        flipped=named[knew & ~knows].tolist(),
        not_flipped=named[knows].tolist(),
        already_wrong=named[~knew & ~knows].tolist(),
        misstated=named[misstated].tolist(),
        missing=np.setdiff1d(asked, named).tolist(),
        uninvited=np.setdiff1d(named, asked).tolist(),
        misplaced=_misplaced(file, certificates, seen),
        changed_elsewhere=[r for r in others[seen.differs[others]].tolist() if r not in bound_to],
        answers_elsewhere=others[(seen.before != seen.after)[others]].tolist(),
        collisions=seen.reached,
        outside=np.flatnonzero(seen.outside).tolist(),
    )


class _Seen(NamedTuple):
    """What the network does on all rows."""

    before: np.ndarray  # answers without patches, int[n]
    after: np.ndarray  # and with them
    differs: np.ndarray  # any logit, bool[n]
    outside: np.ndarray  # of the box, bool[n]
    own: np.ndarray  # each patch's gate at its own row; nan without one, float[K]
    reached: list[Collision]  # at other rows


def _look(layers, file: PatchFile, data: Dataset, chunk: int, progress: bool) -> _Seen:
    patches = jax.tree.map(jnp.asarray, file.patches)
    layers = jax.tree.map(jnp.asarray, layers)
    works, rows, n = np.asarray(live(patches)), np.asarray(file.rows), data.y.shape[0]
    own, reached, found = np.full(len(rows), np.nan), [], []
    x = np.asarray(data.x)
    for start in track(range(0, n, chunk), "rows", enabled=progress):
        part = x[start : start + chunk]
        full = np.pad(part, ((0, min(chunk, n) - len(part)), (0, 0)))  # one compilation for all
        base, now, gates = (
            np.asarray(leaf)[: len(part)]
            for leaf in _both(layers, patches, jnp.asarray(full), file.sharpness)
        )
        found.append((base.argmax(1), now.argmax(1), (base != now).any(1)))
        there = (rows >= start) & (rows < start + len(part))
        own[there] = gates[rows[there] - start, np.flatnonzero(there)]
        for row, k in np.argwhere((gates > 0) & works[None]):
            if rows[k] != start + row:
                reached.append(Collision(int(start + row), int(k), float(gates[row, k])))
    outside = np.zeros(n, bool)
    if file.low is not None and file.high is not None:
        beyond = (x < np.asarray(file.low)[None]) | (x > np.asarray(file.high)[None])
        outside = np.asarray(beyond.any(1))
    before, after, differs = map(np.concatenate, zip(*found, strict=True))
    return _Seen(before, after, differs, outside, np.where(works, own, np.nan), reached)


@jax.jit
def _both(layers, patches, x, sharpness) -> tuple[Array, Array, Array]:
    """Logits without and with patches, and the gates, of one program."""
    z, base = preactivations(layers, x)
    gates = region_gate(z, patches.bits, care=patches.care, sharpness=sharpness)
    return base, corrected(patches, gates, base), gates


def _named(file: PatchFile, n: int) -> np.ndarray:
    """Rows that the file names, in the order of its outcomes if it has some."""
    rows = np.asarray(file.rows)
    named = np.unique(rows[rows >= 0]) if file.requests is None else np.asarray(file.requests)
    if named.max(initial=-1) >= n:
        raise ValueError(
            f"data has {n} rows, but the file names row {named.max()}: give the data of the "
            "request."
        )
    return named.astype(int)


def _claiming(certificates: list[Checked], claim: Claim) -> list[int]:
    return [c.patch for c in certificates if c.claim is claim]


def _misplaced(file: PatchFile, certificates: list[Checked], seen: _Seen) -> list[int]:
    """Patches that are not at the row that they name, or are certified for something else."""
    rows, p = np.asarray(file.rows), file.patches
    target = np.asarray(p.target if p.group is None else np.asarray(p.target)[np.asarray(p.group)])
    certified = np.isin(np.arange(len(rows)), _claiming(certificates, Claim.REGION))
    has = np.isfinite(seen.own)
    there = np.where(has, seen.own, 1) > INSIDE
    meant = (seen.after[rows] == target) & ~seen.outside[rows]
    return np.flatnonzero(has & ~(there & (meant | ~certified))).tolist()
