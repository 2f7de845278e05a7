"""Subnet search in spaces too large to measure in full: a sample is measured, a predictor fitted, subnets evolved.

After Once-for-All: one-hot features of every stage; a population under a limit on MACs, of which parents survive and
children come from mutation and crossover. The predictor is a Gaussian process, which needs fewer subnets than OFA's
network. Subnets are measured on rows held out from training; the search never reads the test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.networks.space import Space, Subnet, count_macs
from unfold_supernet.training.problem import SearchOptions, SearchResult

Measure = Callable[[Subnet], float]
"""From a subnet to its accuracy, in percent, on the held-out rows."""
Predict = Callable[[Sequence[Subnet]], FloatArray]
MUTATION_RATE, RESOLUTION_RATE, PARENT_FRACTION = 0.1, 0.5, 0.25
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class _Predictor:
    """Predicts accuracies; ``rank_correlation`` is that of a predictor without the rows it is tested on."""

    predict: Predict
    rank_correlation: float


def search_subnets(space: Space, options: SearchOptions, measure: Measure, seed: int) -> SearchResult:
    """Find the subnets that are predicted, and then measured, to be best under rising limits on MACs."""
    rng = np.random.default_rng([seed, 0xE70])
    macs = {subnet: float(count_macs(space, subnet)) for subnet in space.subnets}
    smallest, largest = min(macs, key=macs.__getitem__), max(macs, key=macs.__getitem__)
    indices = rng.choice(len(space.subnets), min(options.measured, len(space.subnets)), replace=False)
    sample = dict.fromkeys([smallest, largest, *(space.subnets[index] for index in indices)])
    accuracies = {subnet: measure(subnet) for subnet in sample}
    predictor = _evaluate_predictor(space, accuracies, rng)
    selected = [smallest]
    for limit in np.geomspace(macs[smallest], macs[largest], options.points)[1:-1]:
        candidates = evolve_subnets(space.subnets, macs, float(limit), predictor.predict, options, rng)
        # the prediction selects a few candidates, the measurement one of them
        accuracies |= {subnet: measure(subnet) for subnet in candidates if subnet not in accuracies}
        selected.append(max(candidates, key=accuracies.__getitem__))
    return SearchResult(
        subnets=tuple(sorted(dict.fromkeys([*selected, largest]), key=macs.__getitem__)),
        count=len(space.subnets),
        measured=len(accuracies),
        rank_correlation=predictor.rank_correlation,
    )


def evolve_subnets(
    subnets: Sequence[Subnet],
    macs: dict[Subnet, float],
    limit: float,
    predict: Predict,
    options: SearchOptions,
    rng: np.random.Generator,
) -> list[Subnet]:
    """Evolve a population under a limit on MACs; return the three best subnets by prediction."""
    feasible = [subnet for subnet in subnets if macs[subnet] <= limit * (1 + 1e-9)]
    if len(feasible) <= options.population:
        return _select_best(feasible, predict, 3)
    allowed = set(feasible)
    population = [feasible[index] for index in rng.choice(len(feasible), options.population, replace=False)]
    for _ in range(options.generations):
        parents = _select_best(population, predict, max(2, round(options.population * PARENT_FRACTION)))
        children = [_breed(parents, feasible, allowed, rng) for _ in range(options.population - len(parents))]
        population = [*parents, *children]
    return _select_best(list(dict.fromkeys(population)), predict, 3)


def encode_features(space: Space, subnets: Sequence[Subnet]) -> FloatArray:
    """Encode subnets one-hot [subnets, features]: width, depth and kernel of every stage, and the resolution."""
    vocabulary, encoded = (
        [(*subnet.expand, *subnet.depth, *subnet.kernel, subnet.resolution) for subnet in group]
        for group in (space.subnets, subnets)
    )
    columns = [
        np.array(column)[:, None] == np.unique(np.array(values))
        for column, values in zip(zip(*encoded, strict=True), zip(*vocabulary, strict=True), strict=True)
    ]
    return np.concatenate(columns, axis=1).astype(np.float64)


def _evaluate_predictor(space: Space, accuracies: dict[Subnet, float], rng: np.random.Generator) -> _Predictor:
    """Fit a predictor to all measurements; rate it by one that was fitted without a fifth of them."""
    from scipy.stats import spearmanr

    subnets, values = list(accuracies), np.array(list(accuracies.values()))
    order = rng.permutation(len(subnets))
    cut = max(3, len(subnets) // 5)
    validation, fitting = order[:cut], order[cut:]
    partial = _fit_predictor(space, [subnets[index] for index in fitting], values[fitting])
    predicted = partial([subnets[index] for index in validation])
    has_spread = np.ptp(predicted) > 0 and np.ptp(values[validation]) > 0
    rank_correlation = float(spearmanr(predicted, values[validation]).statistic) if has_spread else 0.0
    return _Predictor(_fit_predictor(space, subnets, values), rank_correlation)


def _fit_predictor(space: Space, subnets: Sequence[Subnet], values: FloatArray) -> Predict:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    # fixed bounds: a fit on few subnets would run into them
    kernel = RBF(3.0, "fixed") + WhiteKernel(0.1, "fixed")
    model = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=None)
    model.fit(encode_features(space, subnets), values)
    return lambda candidates: np.asarray(model.predict(encode_features(space, candidates)), np.float64)


def _select_best(subnets: Sequence[Subnet], predict: Predict, count: int) -> list[Subnet]:
    scores = predict(subnets)
    return [subnets[index] for index in np.argsort(-scores, kind="stable")[:count]]


def _breed(
    parents: Sequence[Subnet], feasible: Sequence[Subnet], allowed: set[Subnet], rng: np.random.Generator
) -> Subnet:
    """Breed a feasible child by mutation or crossover; draw a random subnet if no try succeeds."""
    for _ in range(MAX_TRIES):
        parent = parents[int(rng.integers(len(parents)))]
        if rng.random() < 0.5:
            donor = feasible[int(rng.integers(len(feasible)))]
            child = _cross(parent, donor, MUTATION_RATE, RESOLUTION_RATE, rng)
        else:
            child = _cross(parent, parents[int(rng.integers(len(parents)))], 0.5, 0.5, rng)
        if child in allowed:
            return child
    return feasible[int(rng.integers(len(feasible)))]


def _cross(
    parent: Subnet, donor: Subnet, stage_rate: float, resolution_rate: float, rng: np.random.Generator
) -> Subnet:
    """Replace each stage of ``parent`` by the donor's with probability ``stage_rate``, and likewise the resolution."""
    sources = [donor if is_replaced else parent for is_replaced in rng.random(len(parent.expand)) < stage_rate]
    expand = tuple(source.expand[stage] for stage, source in enumerate(sources))
    depth = tuple(source.depth[stage] for stage, source in enumerate(sources))
    kernel = tuple(source.kernel[stage] for stage, source in enumerate(sources))
    resolution = donor.resolution if rng.random() < resolution_rate else parent.resolution
    return Subnet(expand, depth, kernel, resolution)
