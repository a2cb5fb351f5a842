"""ConMU in NumPy, float64, one step after the other: what the compiled pipeline is compared with.

A linear classifier with gradients written out; nothing is shared with the library but the random
draws themselves.
"""

import jax
import numpy as np


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(w, x):
    return x @ w["kernel"] + w["bias"]


def onehot(y, classes):
    return np.eye(classes)[y]


def orders(key, n, chosen, epochs):
    """Chosen rows in the order of random numbers, epoch by epoch."""
    low = 2 ** (n - 1).bit_length() - 1  # the number of the row decides between equal draws
    for epoch in range(epochs):
        draw = np.asarray(jax.random.bits(jax.random.fold_in(key, epoch), (n,), "uint32"))
        yield np.array(
            sorted(np.flatnonzero(chosen), key=lambda i: ((int(draw[i]) >> 1) & ~low, i)), int
        )


def descend(key, w, x, y, towards, chosen, *, epochs, rate, how, gradient, mask=None):
    """SGD with clipping, then weight decay, then momentum."""
    w = {name: v.copy() for name, v in w.items()}
    velocity = {name: np.zeros_like(v) for name, v in w.items()}
    n, batch = len(y), min(how["batch_size"], len(y))
    steps = -(-int(chosen.sum()) // batch)
    for epoch, order in enumerate(orders(key, n, chosen, epochs)):
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            dz = gradient(logits(w, x[rows]), y[rows], towards[rows]) / len(rows)
            grads = {"kernel": x[rows].T @ dz, "bias": dz.sum(0)}
            if mask is not None:
                grads = {name: g * mask[name] for name, g in grads.items()}
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            if how["clip"] is not None and norm > how["clip"]:
                grads = {name: g * how["clip"] / norm for name, g in grads.items()}
            now = rate
            if how["schedule"] == "cosine":
                now *= 0.5 * (1 + np.cos(np.pi * (epoch + step / steps) / epochs))
            for name in w:
                velocity[name] = how["momentum"] * velocity[name] + (
                    grads[name] + how["weight_decay"] * w[name]
                )
                change = velocity[name] * (1 if mask is None else mask[name])
                w[name] = w[name] - now * change
    return w


def cross_entropy_gradient(z, y, _):
    return softmax(z) - onehot(y, z.shape[-1])


def guided_gradient(gamma, temperature, towards_first):
    """Of CE + gamma KL; KL(proxy || model) if the proxy comes first, else KL(model || proxy)."""

    def gradient(z, y, proxy):
        u, q = softmax(z / temperature), softmax(proxy / temperature)
        if towards_first:
            pull = (u - q) / temperature
        else:
            gap = np.log(u) - np.log(q)
            pull = u * (gap - (u * gap).sum(-1, keepdims=True)) / temperature
        return softmax(z) - onehot(y, z.shape[-1]) + gamma * pull

    return gradient


def prune(w, rate):
    """The smallest of all kernel entries to zero; there is one kernel."""
    flat = np.abs(w["kernel"]).ravel()
    drop = np.argsort(flat, kind="stable")[: round(rate * flat.size)]
    keep = np.ones(flat.size)
    keep[drop] = 0
    mask = {"kernel": keep.reshape(w["kernel"].shape), "bias": np.ones_like(w["bias"])}
    return {name: w[name] * mask[name] for name in w}, mask


def within(scores, low, high, group, *, strict=False):
    """Equation (3) among a group."""
    values = scores[group]
    a, b = values.mean() - low * values.std(), values.mean() + high * values.std()
    inside = (a < scores) & (scores < b) if strict else (a <= scores) & (scores <= b)
    return inside & group


def any_of(key, group, count):
    """``count`` rows of a group in the order of a random permutation."""
    ranks = np.asarray(jax.random.permutation(key, len(group)))
    mask = np.zeros(len(group), bool)
    mask[sorted(np.flatnonzero(group), key=lambda i: ranks[i])[:count]] = True
    return mask


def conmu(key, w, data, forget, initial, config, train):
    """All of it; ``initial`` is where the proxy starts."""
    x, y = np.asarray(data.x, np.float64), np.asarray(data.y)
    retain, n = ~forget, len(y)
    select, noise, _, proxy_key, tune = jax.random.split(key, 5)
    mask = None
    if config.prune_rate:
        w, mask = prune(w, config.prune_rate)
        mask = None if config.regrow else mask
    classes = w["bias"].size
    scores = np.sqrt(((softmax(logits(w, x)) - onehot(y, classes)) ** 2).sum(-1))
    chosen = np.zeros(n, bool)
    for rule, group, draw in zip(
        (config.retain, config.forget), (retain, forget), jax.random.split(select), strict=True
    ):
        rows = within(scores, rule.low, rule.high, group, strict=rule.strict)
        if config.compat == "official":  # each score belongs to another row: a random subset
            rows = any_of(draw, group, int(rows.sum()))
        chosen |= rows
    draws = np.array(
        [
            jax.random.normal(jax.random.fold_in(noise, i), x[0].shape, data.x.dtype)
            for i in range(n)
        ],
        np.float64,
    )
    scale = np.sqrt(config.alpha) if config.noise == "repeat" else config.alpha
    blurred = x + scale * config.sigma * draws + config.alpha * config.mu
    new = np.where(forget[:, None], blurred, x)
    how = {
        "batch_size": config.proxy_batch or train.batch_size,
        "clip": train.clip,
        "schedule": config.proxy_schedule,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
    }
    proxy = descend(
        proxy_key, initial, x, y, np.zeros((n, classes)), retain, epochs=config.proxy_epochs,
        rate=train.learning_rate, how=how, gradient=cross_entropy_gradient,
    )  # fmt: skip
    how = {
        "batch_size": config.batch_size,
        "clip": config.clip,
        "schedule": "constant",
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    gradient = guided_gradient(config.gamma, config.temperature, config.compat == "paper")
    tuned = descend(
        tune, w, new, y, logits(proxy, new), chosen, epochs=config.epochs,
        rate=config.learning_rate, how=how, gradient=gradient, mask=mask,
    )  # fmt: skip
    return tuned, proxy, chosen
