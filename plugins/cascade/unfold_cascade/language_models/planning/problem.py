"""The problem of routing among language models: a spec and its log, resolved once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.data.leakage import Copies
from unfold_cascade.gates.chains import Order
from unfold_cascade.language_models.planning.calibration import Scale
from unfold_cascade.language_models.planning.call_log import CallLog
from unfold_cascade.language_models.planning.certificate import Limits

MIN_TUNING_UNITS = 150
SMALL_LOG, SMALL_CHAIN = 1000, 2
"""Below this many rows, longer chains promise less than those of two models, which are then the default."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Row numbers of the parts of a log; whole units each."""

    tune: IntArray
    certify: IntArray
    test: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingProblem:
    """A routing problem, ready to be solved.

    Attributes:
        name: Of the spec.
        log: The calls.
        source: Name of the table.
        digest: Hash of the table.
        parts: Rows to tune, to certify and to report on.
        rank: (n,) rank of each row in time; ``None`` if the order of the table says nothing about it.
        max_models: The longest chain.
        order: The orders of models to search.
        limits: What is to be promised.
        quantile: The quantile of the latency limit, such as p95, or empty.
        scale: Unit of the confidences, ``None`` to detect it.
        unit_name: What an independent unit is called: request, prompt or conversation.
        repeated_prompts: A column of prompts that repeat, if the spec does not name it; or empty.
        unanswered: Rows of the table that were left out, as no model answered.
        longest_prompt: Characters of the longest prompt of the log, or ``None``.
        scripts: That the prompts of the log are written in; empty if unknown.
        embedding: Names the embedding that the features of prompts contain; empty for none.
        confidence: Source of the confidences, as plain data.
        goal: The goal, as plain data.
        copies: Rows that repeat others, if there are any.
        leaks: Columns of confidences that separate right from wrong answers without error.
        is_servable: Whether each model has an endpoint, from which the confidences can be obtained.
    """

    name: str
    log: CallLog
    source: str
    digest: str
    parts: Parts
    max_models: int
    order: Order
    limits: Limits
    quantile: str
    scale: Scale | None
    unit_name: str
    longest_prompt: int | None
    scripts: tuple[str, ...]
    embedding: str
    confidence: Mapping[str, Any]
    goal: Mapping[str, Any]
    copies: Copies | None = None
    leaks: tuple[str, ...] = ()
    is_servable: bool = True
    repeated_prompts: str = ""
    unanswered: int = 0
    rank: IntArray | None = None


def split_units(unit: IntArray, tune: float, certify: float, seed: int, *, min_tuning: int = 0) -> Parts:
    """Split rows at random by whole units.

    Args:
        unit: (n,) number of the unit of each row.
        tune: Share of the units to tune on.
        certify: Share of the units to certify on; the remainder is for the report.
        seed: Of the permutation.
        min_tuning: Units to tune on at least, up to one half.
    """
    units = np.unique(unit)
    order = np.random.default_rng([seed, 0x77A9]).permutation(units)
    first = max(round(tune * len(units)), min(min_tuning, len(units) // 2))
    second = first + round((len(units) - first) * certify / max(1.0 - tune, 1e-9))
    names = np.split(order, [first, min(second, len(units) - 1)])
    return Parts(*(np.flatnonzero(np.isin(unit, part)) for part in names))
