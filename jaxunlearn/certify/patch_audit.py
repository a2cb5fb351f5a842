"""The audit of a patch file: certificates, the change at the requested points, and nowhere else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.certify.patch_check import Checked, check
from jaxunlearn.primitives.patch_files import PatchFile
from jaxunlearn.primitives.patches import Collision, apply_patched, collisions, live
from jaxunlearn.primitives.regions import dense_layers, finite_rows
from jaxunlearn.types import Dataset


class PatchAudit(NamedTuple):
    """Result of :func:`audit_patches`.

    Attributes:
      certificates: one :class:`~jaxunlearn.certify.patch_check.Checked` a patch.
      flipped: rows that a patch names, whose answer was their label and is another now.
      not_flipped: rows that a patch names, whose answer still is their label.
      changed_elsewhere: rows that no patch names and no collision explains, whose logits
        differ at all.
      collisions: rows that a patch reaches which is not for them.
      outside: rows outside of the box that the certificates are for.
    """

    certificates: list[Checked]
    flipped: list[int]
    not_flipped: list[int]
    changed_elsewhere: list[int]
    collisions: list[Collision]
    outside: list[int]

    @property
    def passed(self) -> bool:
        """No row that still has its answer, none changed without cause, and no false certificate.

        A patch without any certificate is for its point alone and fails nothing.
        """
        claimed = [c for c in self.certificates if "its point alone" not in c.reason]
        good = all(c.valid for c in claimed)
        return good and not self.not_flipped and not self.changed_elsewhere


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
      ValueError: the weights are others than the file is for; NaN; a row that is not there.

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
    named = np.unique(rows[(rows >= 0) & np.asarray(live(patches))])
    explained = set(named.tolist()) | {c.row for c in reached}
    flipped, stayed, changed = [], [], []
    y = np.asarray(data.y)
    for start in range(0, n, chunk):
        part = jnp.asarray(data.x[start : start + chunk])
        base, now = (
            np.asarray(leaf)
            for leaf in apply_patched(layers, patches, part, sharpness=file.sharpness)
        )
        there = np.arange(start, start + len(base))
        differs = (base != now).any(1)
        changed += [int(row) for row in there[differs] if int(row) not in explained]
        for row in named[(named >= start) & (named < start + len(base))]:
            answer = now[row - start].argmax()
            (stayed if answer == y[row] else flipped).append(int(row))
    outside = []
    if file.low is not None and file.high is not None:
        x = np.asarray(data.x)
        beyond = ((x < file.low[None]) | (x > file.high[None])).any(1)
        outside = np.flatnonzero(beyond).tolist()
    return PatchAudit(certificates, flipped, stayed, changed, reached, outside)
