"""The audit of a patch file: certificates, the change at the requested points, and nowhere else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.certify.patch_check import Checked, Claim, check
from jaxunlearn.primitives.patch_files import PatchFile, fits_together
from jaxunlearn.primitives.patches import Collision, apply_patched, collisions, gate, live
from jaxunlearn.primitives.regions import dense_layers, finite_rows
from jaxunlearn.types import Dataset

# A row's gate of its own patch: 1 but for a pre-activation that is 0 up to rounding.
INSIDE = 0.99


class PatchAudit(NamedTuple):
    """Result of :func:`audit_patches`.

    Attributes:
      certificates: one :class:`~jaxunlearn.certify.patch_check.Checked` a patch.
      flipped: rows that the file names, whose answer was their label and is another now.
      not_flipped: rows that the file names, whose answer is their label now.
      already_wrong: rows that the file names, whose answer was not their label and is not.
      misplaced: patches that do not contain the row that they name, or that answer something
        else there than the class that they are certified for.
      changed_elsewhere: rows that the file does not name, whose logits differ at all, though no
        patch is bound to reach them: they lie in a collar, or in a region that leaves neurons
        out and are not of its row's class.
      answers_elsewhere: rows that the file does not name, whose answer differs, for any reason.
      collisions: rows that a patch reaches which is not for them.
      outside: rows outside of the box that the certificates are for.
    """

    certificates: list[Checked]
    flipped: list[int]
    not_flipped: list[int]
    already_wrong: list[int]
    misplaced: list[int]
    changed_elsewhere: list[int]
    answers_elsewhere: list[int]
    collisions: list[Collision]
    outside: list[int]

    @property
    def passed(self) -> bool:
        """No named row with its answer, none changed without cause, and no false certificate.

        A patch that claims no region fails nothing by that; a file that flips nothing fails.
        """
        good = all(c.valid for c in self.certificates if c.claim is Claim.REGION)
        wrong = self.not_flipped or self.misplaced or self.changed_elsewhere
        return good and bool(self.flipped or self.already_wrong) and not wrong


def audit_patches(file: PatchFile, params: Any, data: Dataset, *, chunk: int = 4096) -> PatchAudit:
    """What an auditor checks, with the weights in hand and no solver.

    Certificates by :func:`~jaxunlearn.certify.patch_check.check`; the answers of the network
    with and without its patches from one compiled call, so that "unchanged" means every bit.

    Args:
      file: the patches.
      params: the dense layers that they are for.
      data: inputs of these layers with labels, among them the rows that the file names, by
        number.
      chunk: rows at once.

    Returns:
      :class:`PatchAudit`.

    Cost: two passes over the data, and 2 L forward passes a certificate.

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
    fits_together(file, "file")
    certificates = check(file, layers)
    rows, n = np.asarray(file.rows), data.y.shape[0]
    finite_rows("data.x", data.x, layers[0].kernel.shape[0])
    _validate.dataset(data, num_classes=layers[-1].bias.shape[0])
    if rows.max(initial=-1) >= n:
        raise ValueError(
            f"data has {n} rows, but the file names row {rows.max()}: give the data of the request."
        )
    patches = jax.tree.map(jnp.asarray, file.patches)
    reached = collisions(
        layers, patches, data.x, own=jnp.asarray(rows), sharpness=file.sharpness, chunk=chunk
    )
    y, works = np.asarray(data.y), np.asarray(live(patches))
    named = np.unique(rows[rows >= 0])
    explained = set(named.tolist()) | _explained(file, certificates, reached, y)
    base, now, changed = np.empty_like(y), np.empty_like(y), []
    for start in range(0, n, chunk):
        part = jnp.asarray(data.x[start : start + chunk])
        before, after = map(
            np.asarray, apply_patched(layers, patches, part, sharpness=file.sharpness)
        )
        there = slice(start, start + len(before))
        base[there], now[there] = before.argmax(1), after.argmax(1)
        differs = start + np.flatnonzero((before != after).any(1))
        changed += [row for row in differs.tolist() if row not in explained]
    knew, knows = base[named] == y[named], now[named] == y[named]
    elsewhere = np.setdiff1d(np.flatnonzero(base != now), named)
    misplaced = []
    if (own := np.flatnonzero(works & (rows >= 0))).size:
        gates = gate(layers, patches, jnp.asarray(data.x)[rows[own]], sharpness=file.sharpness)
        there = np.asarray(gates)[np.arange(len(own)), own] > INSIDE
        claimed = {c.patch for c in certificates if c.claim is Claim.REGION}
        group = np.arange(len(works)) if file.patches.group is None else file.patches.group
        target = np.asarray(file.patches.target)[np.asarray(group)]
        kept = (now[rows[own]] == target[own]) | ~np.isin(own, sorted(claimed))
        misplaced = own[~(there & kept)].tolist()
    outside = []
    if file.low is not None and file.high is not None:
        x = np.asarray(data.x)
        beyond = ((x < file.low[None]) | (x > file.high[None])).any(1)
        outside = np.flatnonzero(beyond).tolist()
    return PatchAudit(
        certificates,
        flipped=named[knew & ~knows].tolist(),
        not_flipped=named[knows].tolist(),
        already_wrong=named[~knew & ~knows].tolist(),
        misplaced=misplaced,
        changed_elsewhere=changed,
        answers_elsewhere=elsewhere.tolist(),
        collisions=reached,
        outside=outside,
    )


def _explained(file: PatchFile, certificates: list[Checked], reached, y) -> set[int]:
    """Rows that a patch cannot spare: in its linear region, or in a wider one and of its class."""
    rows, wider = np.asarray(file.rows), {c.patch for c in certificates if c.claim is Claim.WIDER}

    def bound_to(c: Collision) -> bool:
        own = int(rows[c.patch])
        return c.gate >= 1 and (c.patch not in wider or (own >= 0 and y[own] == y[c.row]))

    return {c.row for c in reached if bound_to(c)}
