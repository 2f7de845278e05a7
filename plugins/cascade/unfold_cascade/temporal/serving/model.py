"""A cascade over time as a stateful model: the server advances it hour by hour, with a small state per entity."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.models.onnx_runtime import Engine
from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.online_features import EntityHistory, OnlineFeatures
from unfold_cascade.temporal.problem import NO_STAGE, Transitions
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfold_cascade.temporal.simulation.online_step import (
    CaseState,
    ModelCall,
    OnlineStage,
    advance_hour,
    buy_feature_sets,
    is_call_free,
    new_case_state,
    no_purchases,
)
from unfoldkit.serving.model import Array, CategoricalColumn, Column, Field
from unfoldkit.serving.state.store import State

# Largest difference between the fast and the native engine: within it of a cut, the native engine decides.
CUT_MARGIN = 2e-5


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One fitted model: the ``fast`` engine answers, the ``native`` one is what gates were tuned with."""

    fast: Engine
    native: Engine
    columns: IntArray

    def predict(self, x: Float32, cuts: tuple[float, ...]) -> Float32:
        """Predict (m, C) probabilities of (m, d) rows; near a cut the native engine decides."""
        features = x[:, self.columns]
        p = self.fast.predict(features.astype(self.fast.dtype, copy=False)).astype(np.float32)
        near_cut = np.abs(p[:, -1:] - np.array(cuts)).min(axis=1) <= CUT_MARGIN
        if near_cut.any() and self.fast is not self.native:
            p[near_cut] = self.native.predict(features[near_cut])
        return p


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBaseline:
    """The latched baseline model.

    Attributes:
        number: Its model number.
        model: Its engines.
        stage: Its alarm as a stage of one model.
        cuts: (S-1,) chances of at least stage s that must be reached once.
        audit_share: Share of the entities that it audits.
        serves_all: Whether it decides every entity because no cascade was certified.
    """

    number: int
    model: ServedModel
    stage: OnlineStage
    cuts: tuple[float, ...]
    audit_share: float
    serves_all: bool

    def latch(self, peaks: Sequence[float]) -> int:
        """Compute the stage reached, given the (S-1,) highest chances so far."""
        passed = [s for s, (peak, cut) in enumerate(zip(peaks, self.cuts, strict=True), 1) if peak >= cut]
        return max(passed, default=0)


@dataclass(slots=True)
class CaseMemory:
    """The stored state of an entity. The field names are part of the stored format.

    Attributes:
        trail: Its stages.
        since: (G,) hours of its last purchases.
        past: Its measurements.
        audited: Whether the baseline decides it too.
        shadow: The alarm of the baseline.
        peaks: (S-1,) highest chances of the baseline so far.
    """

    trail: CaseState
    since: list[float]
    past: EntityHistory
    audited: bool
    shadow: CaseState
    peaks: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HourResult:
    """One hour of one entity.

    Attributes:
        stage: Its stage, 0 for none.
        calls: The models evaluated.
        prices: What each call cost, purchases included.
        purchases: Numbers of the feature sets bought.
        audited: Whether the baseline decided it too.
        baseline_stage: The stage by the baseline, -1 if it was not evaluated.
    """

    stage: int
    calls: Sequence[ModelCall]
    prices: Sequence[float]
    purchases: Sequence[int]
    audited: bool
    baseline_stage: int


@dataclass(frozen=True, slots=True)
class Purchases:
    """The prices of an hour's calls and the numbers of the feature sets bought for them."""

    prices: list[float]
    feature_sets: list[int]


@dataclass(frozen=True, slots=True)
class Decision:
    """The stage of an entity in one hour, and the calls that decided it."""

    stage: int
    calls: list[ModelCall]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalModel:
    """A cascade over time, or the baseline model if none was certified. ``models`` are named ``stage/model``."""

    name: str
    version: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    features: OnlineFeatures
    policy: tuple[OnlineStage, ...]
    transitions: Transitions
    stages: tuple[str, ...]
    models: tuple[str, ...]
    served_models: Mapping[int, ServedModel]
    baseline: ServedBaseline
    needs: IntArray
    purchase: PurchaseTerms
    call_costs: CallCosts
    tick_h: float
    count: Callable[[Sequence[HourResult]], None]

    def step(
        self, inputs: Mapping[str, Array], times: Sequence[int], states: Sequence[State | None]
    ) -> tuple[Mapping[str, Column], Sequence[bytes]]:
        """Advance different entities by one hour (the protocol of the stateful server)."""
        memories = [None if state is None else _decode(state.data) for state in states]
        hours, updated = self.advance(inputs["x"], np.array(times) * self.tick_h, memories)
        self.count(hours)
        return self._output_columns(hours), [_encode(memory) for memory in updated]

    def advance(
        self, x: FloatArray, hour: FloatArray, memories: Sequence[CaseMemory | None]
    ) -> tuple[list[HourResult], list[CaseMemory]]:
        """Advance B entities by one hour.

        Args:
            x: (B, C) raw values.
            hour: (B,) hours.
            memories: Their stored states, ``None`` at the first hour.

        Returns:
            What happened, and the states to store.
        """
        histories = [None if memory is None else memory.past for memory in memories]
        features, new_histories = self.features.update(x, hour, histories)
        cases = [
            self._update_case(memory, history, row)
            for memory, history, row in zip(memories, new_histories, x, strict=True)
        ]
        audited = [i for i, case in enumerate(cases) if case.audited or self.baseline.serves_all]
        decisions = self._decide_by_baseline([cases[i] for i in audited], features[audited])
        baseline = dict(zip(audited, decisions, strict=True))
        if not self.baseline.serves_all:
            decisions = self._decide_by_cascade(cases, features, hour)
        hours = []
        for i, (case, decision) in enumerate(zip(cases, decisions, strict=True)):
            purchases = self._buy(decision.calls, float(hour[i]), case)
            hours.append(
                HourResult(
                    stage=decision.stage,
                    calls=decision.calls,
                    prices=purchases.prices,
                    purchases=purchases.feature_sets,
                    audited=case.audited,
                    baseline_stage=baseline[i].stage if i in baseline else -1,
                )
            )
        return hours, cases

    def _update_case(self, case: CaseMemory | None, history: EntityHistory, row: FloatArray) -> CaseMemory:
        if case is not None:
            case.past = history
            return case
        return CaseMemory(
            trail=new_case_state(len(self.policy)),
            since=no_purchases(self.purchase),
            past=history,
            audited=not self.baseline.serves_all and _hash_to_unit(row) < self.baseline.audit_share,
            shadow=new_case_state(1),
            peaks=[0.0] * len(self.baseline.cuts),
        )

    def _decide_by_cascade(self, cases: Sequence[CaseMemory], features: Float32, hour: FloatArray) -> list[Decision]:
        def is_free(i: int, model: int, evaluated: Sequence[int]) -> bool:
            return is_call_free(self.needs, model, evaluated, float(hour[i]), self.purchase, cases[i].since)

        states = [case.trail for case in cases]
        result = advance_hour(self.policy, self.transitions, states, partial(self._predict, features), is_free)
        return [Decision(stage, calls) for stage, calls in zip(result.stages, result.calls, strict=True)]

    def _predict(self, features: Float32, model: int, rows: Sequence[int], cuts: tuple[float, ...]) -> list[float]:
        p: list[float] = self.served_models[model].predict(features[list(rows)], cuts)[:, -1].tolist()
        return p

    def _decide_by_baseline(self, cases: Sequence[CaseMemory], features: Float32) -> list[Decision]:
        """Decide entities by the baseline; once its latched alarm is on, it makes no more calls."""
        if not cases:
            return []
        base = self.baseline
        p = base.model.predict(features, base.stage.spans[0])
        last_p = p[:, -1].tolist()
        states = [case.shadow for case in cases]
        result = advance_hour((base.stage,), self.transitions, states, lambda *_: last_p, lambda *_: False)
        decisions = []
        for case, row, alarm, calls in zip(cases, p.astype(np.float64), result.stages, result.calls, strict=True):
            case.peaks = [max(peak, float(row[s:].sum())) for s, peak in enumerate(case.peaks, 1)]
            decisions.append(Decision(len(self.stages) if alarm else base.latch(case.peaks), calls))
        return decisions

    def _buy(self, calls: Sequence[ModelCall], hour: float, case: CaseMemory) -> Purchases:
        """Buy what the calls of an hour need; the purchase hours of the entity change in place."""
        result = Purchases([], [])
        for call in calls:
            new = buy_feature_sets(int(self.needs[call.model]), hour, self.purchase, case.since)
            result.feature_sets.extend(new)
            price = float(self.call_costs.price[call.model]) + sum(float(self.purchase.price[g]) for g in new)
            result.prices.append(price)
        return result

    def _output_columns(self, hours: Sequence[HourResult]) -> dict[str, Column]:
        longest = self.outputs[-1].shape[0]
        stage = [hour.stage for hour in hours]
        calls = [hour.calls for hour in hours]
        final = len(self.policy) - 1 if not self.baseline.serves_all else 0
        return {
            "label": CategoricalColumn(np.array(stage), (NO_STAGE, *self.stages)),
            "stage": stage,
            "alarm": [number == len(self.stages) for number in stage],
            "probability": [next((call.p for call in reversed(row) if call.stage == final), 0.0) for row in calls],
            "price": [sum(hour.prices) for hour in hours],
            "route_steps": [len(row) for row in calls],
            "route_stage": _pad([[self._split_name(call)[0] for call in row] for row in calls], longest, ""),
            "route_model": _pad([[self._split_name(call)[1] for call in row] for row in calls], longest, ""),
            "route_probability": _pad([[call.p for call in row] for row in calls], longest, 0.0),
            "route_low": _pad([[_clip_cut(call.span[0]) for call in row] for row in calls], longest, 0.0),
            "route_high": _pad([[_clip_cut(call.span[1]) for call in row] for row in calls], longest, 0.0),
            "route_verdict": _pad([[call.verdict for call in row] for row in calls], longest, ""),
            "route_price": _pad([list(hour.prices) for hour in hours], longest, 0.0),
        }

    def _split_name(self, call: ModelCall) -> list[str]:
        return self.models[call.model].split("/", 1)


def output_fields(longest: int) -> tuple[Field, ...]:
    """Describe the outputs of a cascade that makes at most ``longest`` calls per hour."""
    route = [("stage", "BYTES"), ("model", "BYTES"), ("probability", "FP64"), ("low", "FP64"), ("high", "FP64")]
    route += [("verdict", "BYTES"), ("price", "FP64")]
    decision = (Field("label", "BYTES"), Field("stage", "INT64"), Field("alarm", "BOOL"))
    totals = (Field("probability"), Field("price"), Field("route_steps", "INT64"))
    return (*decision, *totals, *(Field(f"route_{name}", kind, (longest,)) for name, kind in route))


def _pad(rows: Sequence[Sequence[Any]], longest: int, blank: Any) -> list[Any]:
    return [[*row, *[blank] * (longest - len(row))] for row in rows]


def _clip_cut(cut: float) -> float:
    """Clip a cut to what JSON can hold: 2 is never reached, -1 always."""
    return min(max(cut, -1.0), 2.0)


def _hash_to_unit(row: FloatArray) -> float:
    """Hash the first hour of an entity to a number in [0, 1), so that audits are reproducible; draw one without values.

    The state of the entity keeps what follows from it.
    """
    if np.isnan(row).all():
        return float(np.random.default_rng().random())
    return zlib.crc32(np.ascontiguousarray(row, dtype=np.float32).tobytes()) / 2**32


@cache
def _codec() -> tuple[Any, Any]:
    import msgspec

    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(CaseMemory).decode


def _encode(memory: CaseMemory) -> bytes:
    data: bytes = _codec()[0](memory)
    return data


def _decode(data: bytes) -> CaseMemory:
    memory: CaseMemory = _codec()[1](data)
    return memory
