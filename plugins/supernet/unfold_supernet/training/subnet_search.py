"""For spaces too large to measure whole: some nets are measured, a predictor learns from them, evolution asks it.

After Once-for-All: one-hot features of every stage; a population under a limit of work, parents kept, the rest by
mutation and crossing. The predictor is a Gaussian process, which needs fewer nets than a network would. Nets are
measured on rows that were held back from training; the test rows are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.arrays import Floats
from unfold_supernet.family.datasets import Data, split_groups
from unfold_supernet.networks.space import Space, Subnet, macs
from unfold_supernet.schema.models import SearchSpec

Measure = Callable[[Subnet], float]
"""From a net to its accuracy, in percent, on rows that were held back."""
Predict = Callable[[Sequence[Subnet]], Floats]
MUTATION, RESOLUTION, PARENTS = 0.1, 0.5, 0.25
TRIES = 20


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found: nets, cheapest first; how many there were and were measured; the predictor's ranks.

    ``rank`` is Spearman's correlation of what was predicted and measured on a fifth that the predictor did not see.
    """

    nets: tuple[Subnet, ...]
    count: int
    measured: int
    rank: float


def apart(data: Data, given: SearchSpec, seed: int) -> Data:
    """Return the data with a share of the training rows held back, whole groups of them if rows have groups."""
    if data.whose is not None and len(np.unique(data.whose[data.train])) > 1:
        kept, held = split_groups(data.whose[data.train], given.held, seed)
        return replace(data, train=data.train[kept], held=data.train[held])
    rows = np.random.default_rng([seed, 0x5EA]).permutation(data.train)
    cut = round(len(rows) * given.held)
    return replace(data, train=np.sort(rows[cut:]), held=np.sort(rows[:cut]))


def search(space: Space, given: SearchSpec, measure: Measure, seed: int) -> Searched:
    """Return the nets that are predicted, and then measured, to be best under rising limits of work."""
    rng = np.random.default_rng([seed, 0xE70])
    work = {one: float(macs(space, one)) for one in space.subnets}
    least, most = min(work, key=work.__getitem__), max(work, key=work.__getitem__)
    places = rng.choice(len(space.subnets), min(given.measured, len(space.subnets)), replace=False)
    known = {one: measure(one) for one in dict.fromkeys([least, most, *(space.subnets[place] for place in places)])}
    predict, rank = _predictor(space, known, rng)
    found = [least]
    for limit in np.geomspace(work[least], work[most], given.points)[1:-1]:
        best = evolve(space.subnets, work, float(limit), predict, given, rng)
        # the prediction chooses a few, the measurement one of them
        known |= {one: measure(one) for one in best if one not in known}
        found.append(max(best, key=known.__getitem__))
    nets = sorted(dict.fromkeys([*found, most]), key=work.__getitem__)
    return Searched(tuple(nets), len(space.subnets), len(known), rank)


def evolve(
    subnets: Sequence[Subnet],
    work: dict[Subnet, float],
    limit: float,
    predict: Predict,
    given: SearchSpec,
    rng: np.random.Generator,
) -> list[Subnet]:
    """Return the three best nets by prediction whose work is within a limit."""
    fit = [one for one in subnets if work[one] <= limit * (1 + 1e-9)]
    if len(fit) <= given.population:
        return _best(fit, predict, 3)
    allowed = set(fit)
    crowd = [fit[place] for place in rng.choice(len(fit), given.population, replace=False)]
    for _ in range(given.generations):
        parents = _best(crowd, predict, max(2, round(given.population * PARENTS)))
        children = [_child(parents, fit, allowed, rng) for _ in range(given.population - len(parents))]
        crowd = [*parents, *children]
    return _best(list(dict.fromkeys(crowd)), predict, 3)


def features(space: Space, subnets: Sequence[Subnet]) -> Floats:
    """Return one-hot features [nets, features] of every stage's share, blocks and kernel, and of the resolution."""
    whole, asked = (
        [(*one.expand, *one.depth, *one.kernel, one.resolution) for one in nets] for nets in (space.subnets, subnets)
    )
    parts = [
        np.array(column)[:, None] == np.unique(np.array(every))
        for column, every in zip(zip(*asked, strict=True), zip(*whole, strict=True), strict=True)
    ]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _predictor(space: Space, known: dict[Subnet, float], rng: np.random.Generator) -> tuple[Predict, float]:
    """Return a predictor of the measured nets, and its ranks on a fifth of them that one without it did not see."""
    from scipy.stats import spearmanr

    nets, values = list(known), np.array(list(known.values()))
    order = rng.permutation(len(nets))
    out, rest = order[: max(3, len(nets) // 5)], order[max(3, len(nets) // 5) :]
    held = _fitted(space, [nets[at] for at in rest], values[rest])
    said = held([nets[at] for at in out])
    rank = float(spearmanr(said, values[out]).statistic) if np.ptp(said) > 0 and np.ptp(values[out]) > 0 else 0.0
    return _fitted(space, nets, values), rank


def _fitted(space: Space, nets: Sequence[Subnet], values: Floats) -> Predict:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    # bounds are not searched: a fit on few nets would run into them
    kernel = RBF(3.0, "fixed") + WhiteKernel(0.1, "fixed")
    model = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=None).fit(features(space, nets), values)
    return lambda subnets: np.asarray(model.predict(features(space, subnets)), np.float64)


def _best(nets: Sequence[Subnet], predict: Predict, count: int) -> list[Subnet]:
    scores = predict(nets)
    return [nets[place] for place in np.argsort(-scores, kind="stable")[:count]]


def _child(parents: Sequence[Subnet], fit: Sequence[Subnet], allowed: set[Subnet], rng: np.random.Generator) -> Subnet:
    """Return a net that is allowed: a parent changed in places, or two crossed; by chance if none comes about."""
    for _ in range(TRIES):
        one = parents[int(rng.integers(len(parents)))]
        if rng.random() < 0.5:
            made = _mixed(one, fit[int(rng.integers(len(fit)))], MUTATION, RESOLUTION, rng)
        else:
            made = _mixed(one, parents[int(rng.integers(len(parents)))], 0.5, 0.5, rng)
        if made in allowed:
            return made
    return fit[int(rng.integers(len(fit)))]


def _mixed(one: Subnet, other: Subnet, share: float, resolution: float, rng: np.random.Generator) -> Subnet:
    """Return ``one`` with each stage taken from ``other`` by chance, and its resolution likewise."""
    sources = [other if taken else one for taken in rng.random(len(one.expand)) < share]
    expand = tuple(source.expand[stage] for stage, source in enumerate(sources))
    depth = tuple(source.depth[stage] for stage, source in enumerate(sources))
    kernel = tuple(source.kernel[stage] for stage, source in enumerate(sources))
    return Subnet(expand, depth, kernel, other.resolution if rng.random() < resolution else one.resolution)
