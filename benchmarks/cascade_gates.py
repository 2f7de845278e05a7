"""What exact gates save on logs of commercial prediction services, next to the paper's greedy gates.

Protocol: random half splits; on the fitting half take the cheapest policy that is as accurate as the best
single service (also chosen there), or that service itself; judge both on the other half.
"""

from __future__ import annotations

import csv
import gzip
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import cross_calibrate, encode_contexts, fit_chain, score_chain
from unfold_cascade.gates.chains import (
    Chain,
    ChainFront,
    Order,
    Tables,
    list_chains,
    search_chains,
    select_chain_tables,
)
from unfold_cascade.gates.exact_search import compute_bin_edges, evaluate_cuts, search_exact_front
from unfold_cascade.gates.hard_gating import search_greedy_for_loss

ORDERS: tuple[Order, ...] = ("sorted", "all")
BINS = 64
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Log:
    """Answers of M services: (n, M) confidence, label and 0/1 loss, and (M,) dollars per 10,000 calls."""

    confidence: FloatArray
    predicted: IntArray
    loss: FloatArray
    price: FloatArray

    def rows(self, chosen: IntArray) -> Log:
        """Return the log of these rows."""
        return Log(self.confidence[chosen], self.predicted[chosen], self.loss[chosen], self.price)

    def select_tables(self, chain: Chain) -> Tables:
        """Select scores, losses and costs of a chain; the scores are raw confidences."""
        return select_chain_tables(self.confidence, self.loss, self.price, chain)

    def cross_fit_tables(self, chain: Chain, fold: IntArray) -> Tables:
        """Select the tables of a chain, with scores that were cross-fitted by label and agreement."""
        score, loss, price = self.select_tables(chain)
        for gate in range(len(chain) - 1):
            contexts = encode_contexts(self.predicted, chain[: gate + 1])
            score[:, gate] = cross_calibrate(score[:, gate], contexts, 1.0 - loss[:, gate], fold)
        return score, loss, price


@dataclass(frozen=True, slots=True)
class Choice:
    """A chain with (G, 2) cuts, its mean cost on the fitting half, and whether its scores are conditional."""

    chain: Chain
    cuts: FloatArray
    cost: float
    conditional: bool = False


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Measure savings, accuracy changes and the gap of greedy on every set.

    Args:
        quick: Three splits instead of ten.
        seed: Seed of the first split; the others follow.
        data: Folder that holds ``model-apis``.

    Returns:
        ``metrics``, ``peers``, ``tables`` and ``notes``.
    """
    folder, seeds = data / "model-apis", range(seed, seed + (3 if quick else 10))
    logs = {name: read_log(folder, name) for name in sets(folder)}
    table = _summary([{"set": name, **result} for name, log in logs.items() for result in _splits(log, seeds)])
    gaps = [gap for log in logs.values() for gap in _gaps(log, seeds)]
    metrics = {
        **search_time(max(logs.values(), key=lambda log: len(log.loss)), repeats=5 if quick else 15),
        **_gap_figures(gaps),
        "greedy_gap_chain_chosen_percent": statistics.fmean(
            row["fit_cost_excess_percent"] for row in table if row["policy"] == "greedy sorted"
        ),
        **_figures(table, "conditional sorted"),
        **{f"all_{key}": value for key, value in _figures(table, "conditional all").items()},
    }
    names = ("greedy sorted", "greedy whole zoo", "confidence sorted", "confidence all")
    peers = {name.replace(" sorted", "").replace(" ", "_"): _figures(table, name) for name in names}
    return {"metrics": metrics, "peers": peers, "tables": {"savings": table}, "notes": _notes()}


def sets(folder: Path) -> list[str]:
    """Return the names of the sets that have prices, in the order of their list."""
    with (folder / "prices.csv").open(newline="") as lines:
        return list(dict.fromkeys(row["set"] for row in csv.DictReader(lines)))


def read_log(folder: Path, name: str) -> Log:
    """Read one set and its prices; the columns of a service are found by its name, labels may be words."""
    with (folder / "prices.csv").open(newline="") as lines:
        prices = {row["service"]: float(row["price_per_10k"]) for row in csv.DictReader(lines) if row["set"] == name}
    with gzip.open(folder / f"{name}.csv.gz", "rt", newline="") as lines:
        head, *rows = csv.reader(lines)
    columns = {column: [row[place] for row in rows] for place, column in enumerate(head)}
    answers = np.array([columns["label"], *(columns[f"{service}_pred"] for service in prices)])
    code = np.unique(answers, return_inverse=True)[1].reshape(answers.shape)
    confidence = np.array([columns[f"{service}_conf"] for service in prices], dtype=np.float64).T
    loss = (code[1:] != code[0]).astype(np.float64).T
    return Log(confidence.copy(), code[1:].T.copy(), loss.copy(), np.array(list(prices.values())))


def search_time(log: Log, *, repeats: int) -> dict[str, float]:
    """Time one exact search of two gates over all rows, over the three cheapest services from cheap to dear."""
    chain = tuple(int(service) for service in np.argsort(log.price, kind="stable")[:3])
    tables = log.select_tables(chain)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        search_exact_front(*tables)
        seconds.append(time.perf_counter() - start)
    return {"rows": len(log.loss), "exact_seconds": statistics.median(seconds)}


def _splits(log: Log, seeds: range) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        fitting, test = _halves(log, seed)
        best = int(fitting.loss.mean(axis=0).argmin())
        choices = _choices(fitting, best)
        exact = choices["confidence sorted"].cost
        for policy, choice in choices.items():
            gap = 100 * (choice.cost / exact - 1)
            yield {"seed": seed, "policy": policy, "gap": gap, **_judged(choice, fitting, test, best)}


def _halves(log: Log, seed: int) -> tuple[Log, Log]:
    order = np.random.default_rng(seed).permutation(len(log.loss))
    first, second = np.array_split(order, 2)
    return log.rows(first), log.rows(second)


def _gaps(log: Log, seeds: range) -> Iterator[float | None]:
    """Yield the cost in excess of the exact optimum, in percent, of greedy on each chain of three services.

    Chains on which even the exact search misses the target are left out; None where greedy alone misses it.
    """
    for seed in seeds:
        fitting, _ = _halves(log, seed)
        target = float(fitting.loss.mean(axis=0).min())
        for chain in (c for c in list_chains(log.price, order="sorted", max_models=3) if len(c) == 3):
            tables = fitting.select_tables(chain)
            front, cuts = search_exact_front(*tables, bins=BINS), [compute_bin_edges(q, BINS)[1:] for q in tables[0].T]
            point, policy = front.cheapest_within(target), search_greedy_for_loss(*tables, target, candidates=cuts)
            if point is not None:
                yield None if policy is None else 100 * (policy.cost / float(front.cost[point]) - 1)


def _gap_figures(gaps: list[float | None]) -> dict[str, float | None]:
    reached = [gap for gap in gaps if gap is not None]
    if not reached:
        return dict.fromkeys(("greedy_gap_percent", "greedy_gap_percent_max", "greedy_missed_percent"))
    return {
        "greedy_gap_percent": statistics.fmean(reached),
        "greedy_gap_percent_max": max(reached),
        "greedy_missed_percent": 100 * (1 - len(reached) / len(gaps)),
    }


def _choices(fitting: Log, best: int) -> dict[str, Choice]:
    """Choose one policy of each kind on the fitting half, all from chains of up to three services."""
    target, alone = float(fitting.loss[:, best].mean()), (best,)
    fallback = Choice(alone, np.empty((0, 2)), float(fitting.price[best]))
    fold = np.arange(len(fitting.loss)) % FOLDS
    choices = {
        "greedy sorted": _greedy(fitting, target, fallback),
        "greedy whole zoo": _whole_zoo(fitting, target, fallback),
    }
    for order in ORDERS:
        chains = list_chains(fitting.price, order=order, max_models=3)
        plain = search_chains(chains, fitting.select_tables, bins=BINS)
        aware = search_chains(chains, partial(fitting.cross_fit_tables, fold=fold), bins=BINS)
        choices[f"confidence {order}"] = _cheapest(plain, target, fallback)
        choices[f"conditional {order}"] = _cheapest(aware, target, fallback, conditional=True)
    return choices


def _cheapest(found: ChainFront, target: float, fallback: Choice, *, conditional: bool = False) -> Choice:
    point = found.front.cheapest_within(target)
    if point is None:
        return fallback
    return Choice(*found.policy(point), float(found.front.cost[point]), conditional)


def _greedy(fitting: Log, target: float, fallback: Choice) -> Choice:
    """Run greedy on every chain of ascending price, over the very cuts that the exact search has."""
    found = [fallback]
    for chain in list_chains(fitting.price, order="sorted", max_models=3):
        score, loss, cost = fitting.select_tables(chain)
        cuts = [compute_bin_edges(column, BINS)[1:] for column in score.T]
        policy = search_greedy_for_loss(score, loss, cost, target, candidates=cuts)
        if policy is not None:
            found.append(Choice(chain, policy.cuts, policy.cost))
    return min(found, key=lambda choice: choice.cost)


def _whole_zoo(fitting: Log, target: float, fallback: Choice) -> Choice:
    """Run Algorithm 1 as reconstructed: the whole zoo by ascending price, cuts on an even grid."""
    chain = list_chains(fitting.price, order="sorted", max_models=fitting.price.size)[-1]
    tables = fitting.select_tables(chain)
    policy = search_greedy_for_loss(*tables, target, bins=BINS)
    found = fallback if policy is None else Choice(chain, policy.cuts, policy.cost)
    return min(found, fallback, key=lambda choice: choice.cost)


def _judged(choice: Choice, fitting: Log, test: Log, best: int) -> dict[str, float]:
    score, loss, cost = test.select_tables(choice.chain)
    if choice.conditional:
        gates = fit_chain(fitting.confidence, fitting.predicted, 1.0 - fitting.loss, choice.chain)
        score = score_chain(gates, test.confidence, test.predicted, choice.chain)
    seen_loss, seen_cost = evaluate_cuts(score, loss, cost, choice.cuts)
    change = 100 * (float(test.loss[:, best].mean()) - seen_loss)
    return {"saving": 100 * (1 - seen_cost / float(test.price[best])), "change": change}


def _summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lay out one row per set and policy: mean, spread over the splits, and the worst split."""
    keys = dict.fromkeys((result["set"], result["policy"]) for result in results)
    rows = []
    for name, policy in keys:
        mine = [result for result in results if (result["set"], result["policy"]) == (name, policy)]
        row: dict[str, Any] = {"set": name, "policy": policy}
        row["fit_cost_excess_percent"] = statistics.fmean(result["gap"] for result in mine)
        for figure, label in (("saving", "saving_percent"), ("change", "accuracy_change_points")):
            values = [result[figure] for result in mine]
            row |= {label: statistics.fmean(values), f"{label}_sd": statistics.stdev(values)}
            row |= {f"{label}_worst": min(values)}
        rows.append(row)
    return rows


def _figures(table: list[dict[str, Any]], policy: str) -> dict[str, float]:
    labels = ("saving_percent", "accuracy_change_points")
    mine = [row for row in table if row["policy"] == policy]
    return {f"{label}_{row['set']}": row[label] for label in labels for row in mine}


def _notes() -> list[str]:
    headline = (
        "Headline: chains of ascending price; gates read confidences calibrated per predicted label and "
        "agreement, cross-fitted on the fitting half; 64 bins. all_*: every order of up to three services."
    )
    peers = (
        "Peers read the confidence itself: confidence* by exact search (the protocol of the reference), "
        "greedy over the same 64 cuts and chains. So confidence against greedy is what the search earns, the "
        "headline against confidence what the scores earn. greedy_whole_zoo is our reconstruction of "
        "Algorithm 1, whose body could not be read: every service in turn, cuts on an even grid."
    )
    gap = (
        "greedy_gap_percent: excess cost of greedy at equal loss on the fitting half, over fixed chains of "
        "three, where it reaches the target at all; greedy_missed_percent: where only the exact search does. "
        "greedy_gap_chain_chosen_percent: the same where the chain may be chosen too; there two-model "
        "chains, on which greedy is exact, mostly win."
    )
    caution = (
        "Test halves overlap, so sd is a spread over splits and no standard error. The form of the scores "
        "was settled with the test halves of seeds 0 to 9 in view: another --seed judges more freshly."
    )
    return [headline, peers, gap, caution]
