"""U-LiRA for ConMU: is a row's score under unlearned models told from that under retrained ones?

It needs many models of one request, so a small network has to do: 2,000 rows of Fashion-MNIST,
64 hidden units, one request for 20% of the rows, so many originals, each unlearned once, and two
sets of retrained models, the second for the null.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxunlearn import Dataset, TrainConfig, audit, data, models
from jaxunlearn.audit.report import AuditReport
from jaxunlearn.baselines import FineTuneConfig, finetune_sweep
from jaxunlearn.methods.conmu import PAPER, ConMUConfig, sweep
from jaxunlearn.training import train_many
from jaxunlearn.types import Params

ROWS, TRAIN = 2000, TrainConfig(epochs=30, batch_size=128, learning_rate=0.05)
Reports = dict[str, tuple[AuditReport, float]]


def measured(splits: data.Splits, count: int) -> Reports:
    """U-LiRA of each method with ``count`` models an arm, and its mean forget accuracy."""
    rows = Dataset(jnp.asarray(splits.train.x[:ROWS]), jnp.asarray(splits.train.y[:ROWS]))
    model = models.mlp(10, hidden=(64,))
    keys = jax.random.split(jax.random.key(0), 5)
    forget = data.forget_random(keys[0], rows.y, 0.2)
    gone = Dataset(rows.x[forget], rows.y[forget])
    masks = jnp.broadcast_to(forget, (count, ROWS))
    many = lambda key, weights: train_many(
        jax.random.split(key, count), weights, model, rows, config=TRAIN
    )
    originals = many(keys[1], jnp.ones((count, ROWS)))
    retrained, null = many(keys[2], ~masks), many(keys[3], ~masks)
    own = jax.random.split(keys[4], count)

    def swept(run: Callable, config) -> Params:
        (part,) = run(own, model, originals, rows, masks, [config], train=TRAIN, chunk=1)
        return jax.tree.map(lambda leaf: leaf[0], part.params)

    def scores(params: Params) -> tuple[np.ndarray, float]:
        logits = jax.lax.map(lambda p: model.apply(p, gone.x), params, batch_size=8)
        right = (logits.argmax(-1) == gone.y[None]).mean()
        return np.asarray(jax.vmap(audit.logit_confidence, (0, None))(logits, gone.y)), float(right)

    arms = {
        "No-op": originals,
        "FT, rate .05": swept(finetune_sweep.sweep, FineTuneConfig(learning_rate=0.05)),
        "ConMU, paper's knobs": swept(sweep, PAPER),
        "ConMU, default": swept(sweep, ConMUConfig()),
    }
    reference, nothing = scores(retrained)[0], scores(null)
    found = {"Retrain": (audit.ulira(nothing[0], reference, null=nothing[0]), nothing[1])}
    for name, params in arms.items():
        ours, right = scores(params)
        if not np.isfinite(ours).all():
            continue
        found[name] = audit.ulira(ours, reference, null=nothing[0]), right
    return found


def drawn(found: Reports, count: int) -> Table:
    """As a table."""
    table = Table(
        title=f"U-LiRA: mlp, one request for 20% of {ROWS:,} rows, {count} models an arm",
        title_justify="left",
    )
    for head in ("", "FA %", "told from retrained", "95%"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for name, (report, right) in found.items():
        low, high = report.interval.low, report.interval.high
        table.add_row(name, f"{100 * right:.1f}", f"{report.value:.3f}", f"{low:.3f} to {high:.3f}")
    return table
