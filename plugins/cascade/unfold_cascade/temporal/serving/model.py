"""A cascade over time as a model that the server steps hour by hour, with a small state for each case."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.models.onnx_runtime import Engine
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data.features import Purchase
from unfold_cascade.temporal.data.online_features import Past, Sight
from unfold_cascade.temporal.simulation.cost import Rates
from unfold_cascade.temporal.simulation.online_step import Heard, Rung, Trail, bought, never, owns, start, step
from unfoldkit.serving.model import Array, Coded, Column, Field
from unfoldkit.serving.state.store import State

MARGIN = 2e-5
NONE = "none"


@dataclass(frozen=True, slots=True)
class Voice:
    """One fitted model: ``quick`` is what answers, ``native`` what it was tuned with; it reads ``columns``."""

    quick: Engine
    native: Engine
    columns: IntArray

    def ask(self, x: Float32, cuts: tuple[float, ...]) -> Float32:
        """Return (m, C) probabilities of (m, d) rows; near a cut it is the native model that decides."""
        own = x[:, self.columns]
        p = self.quick.predict(own.astype(self.quick.dtype, copy=False)).astype(np.float32)
        near = np.abs(p[:, -1:] - np.array(cuts)).min(axis=1) <= MARGIN
        if near.any() and self.quick is not self.native:
            p[near] = self.native.predict(own[near])
        return p


@dataclass(frozen=True, slots=True)
class Monolith:
    """The monolith that remembers the stage: its number among the models, and the (S-1,) cuts of ``at_least``.

    It is asked for every case where it is ``alone``, else for a ``share`` of the cases, as an audit.
    """

    model: int
    voice: Voice
    rung: Rung
    cuts: tuple[float, ...]
    share: float
    alone: bool


@dataclass(slots=True)
class Case:
    """What is remembered of a case: its stages, its purchases, its values.

    Of an audited case also what the monolith would know: its alarm, and the (S-1,) highest chances so far.
    """

    trail: Trail
    since: list[float]
    past: Past
    audited: bool
    shadow: Trail
    peaks: list[float]


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened in one hour of one case: its stage, what was asked, what each call cost and what was bought."""

    stage: int
    heard: Sequence[Heard]
    paid: Sequence[float]
    groups: Sequence[int]
    audited: bool
    other: int


@dataclass(frozen=True, slots=True)
class Timed:
    """A cascade over time (or the monolith where none was promised). ``models`` are named ``stage/model``."""

    name: str
    version: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    sight: Sight
    ladder: tuple[Rung, ...]
    moves: Moves
    stages: tuple[str, ...]
    models: tuple[str, ...]
    voices: Mapping[int, Voice]
    monolith: Monolith
    needs: IntArray
    purchase: Purchase
    rates: Rates
    tick_h: float
    count: Callable[[Sequence[Hour]], None]

    def step(
        self, inputs: Mapping[str, Array], times: Sequence[int], states: Sequence[State | None]
    ) -> tuple[Mapping[str, Column], Sequence[bytes]]:
        """Take one hour of different cases."""
        x, known = inputs["x"], [None if state is None else _decoded(state.data) for state in states]
        hours, cases = self.follow(x, np.array(times) * self.tick_h, known)
        self.count(hours)
        return self._columns(hours), [_encoded(case) for case in cases]

    def follow(self, x: FloatArray, hour: FloatArray, known: Sequence[Case | None]) -> tuple[list[Hour], list[Case]]:
        """Return what happens to (B, C) raw rows at (B,) hours, and what is to be remembered."""
        features, pasts = self.sight.look(x, hour, [None if case is None else case.past for case in known])
        cases = [self._case(case, past, row) for case, past, row in zip(known, pasts, x, strict=True)]
        audits = [i for i, case in enumerate(cases) if case.audited or self.monolith.alone]
        other = dict(zip(audits, self._monolith([cases[i] for i in audits], features[audits]), strict=True))
        if self.monolith.alone:
            stages, heard = [stage for stage, _ in other.values()], [said for _, said in other.values()]
        else:
            ask = lambda model, rows, cuts: self._ask(features, model, rows, cuts)  # noqa: E731
            free = lambda i, model, asked: self._owns(cases[i], float(hour[i]), model, asked)  # noqa: E731
            stages, heard = step(self.ladder, self.moves, [case.trail for case in cases], ask, free)
        hours = []
        for i, case in enumerate(cases):
            paid, groups = self._pay(heard[i], float(hour[i]), case)
            truth = other[i][0] if i in other else -1
            hours.append(Hour(stages[i], heard[i], paid, groups, case.audited, truth))
        return hours, cases

    def _case(self, case: Case | None, past: Past, row: FloatArray) -> Case:
        if case is not None:
            case.past = past
            return case
        audited = not self.monolith.alone and _drawn(row) < self.monolith.share
        peaks = [0.0] * len(self.monolith.cuts)
        return Case(start(len(self.ladder)), never(self.purchase), past, audited, start(1), peaks)

    def _ask(self, x: Float32, model: int, rows: Sequence[int], cuts: tuple[float, ...]) -> list[float]:
        found: list[float] = self.voices[model].ask(x[list(rows)], cuts)[:, -1].tolist()
        return found

    def _owns(self, case: Case, hour: float, model: int, asked: Sequence[int]) -> bool:
        return owns(self.needs, model, asked, hour, self.purchase, case.since)

    def _monolith(self, cases: Sequence[Case], x: Float32) -> list[tuple[int, list[Heard]]]:
        """Return for each case the stage that the monolith gives it, and its call; none once its alarm ended it."""
        if not cases:
            return []
        base = self.monolith
        p = base.voice.ask(x, base.rung.spans[0])
        shadows, said = [case.shadow for case in cases], p[:, -1].tolist()
        alarms, heard = step((base.rung,), self.moves, shadows, lambda *_: said, lambda *_: False)
        for case, row in zip(cases, p.astype(np.float64), strict=True):
            case.peaks = [max(peak, float(row[s:].sum())) for s, peak in enumerate(case.peaks, 1)]
        stages = [self._latched(case.peaks) for case in cases]
        found = zip(alarms, stages, heard, strict=True)
        return [(len(self.stages) if alarm else stage, calls) for alarm, stage, calls in found]

    def _latched(self, peaks: Sequence[float]) -> int:
        passed = [s for s, (peak, cut) in enumerate(zip(peaks, self.monolith.cuts, strict=True), 1) if peak >= cut]
        return max(passed, default=0)

    def _pay(self, heard: Sequence[Heard], hour: float, case: Case) -> tuple[list[float], list[int]]:
        paid, groups = [], list[int]()
        for item in heard:
            new = bought(int(self.needs[item.model]), hour, self.purchase, case.since)
            groups += new
            paid.append(float(self.rates.price[item.model]) + sum(float(self.purchase.price[g]) for g in new))
        return paid, groups

    def _columns(self, hours: Sequence[Hour]) -> dict[str, Column]:
        longest = self.outputs[-1].shape[0]
        stage = [hour.stage for hour in hours]
        heard = [hour.heard for hour in hours]
        last = len(self.ladder) - 1 if not self.monolith.alone else 0
        return {
            "label": Coded(np.array(stage), (NONE, *self.stages)),
            "stage": stage,
            "alarm": [value == len(self.stages) for value in stage],
            "probability": [next((h.p for h in reversed(row) if h.stage == last), 0.0) for row in heard],
            "price": [sum(hour.paid) for hour in hours],
            "route_steps": [len(row) for row in heard],
            "route_stage": _filled([[self._names(h)[0] for h in row] for row in heard], longest, ""),
            "route_model": _filled([[self._names(h)[1] for h in row] for row in heard], longest, ""),
            "route_probability": _filled([[h.p for h in row] for row in heard], longest, 0.0),
            "route_low": _filled([[_shown(h.span[0]) for h in row] for row in heard], longest, 0.0),
            "route_high": _filled([[_shown(h.span[1]) for h in row] for row in heard], longest, 0.0),
            "route_verdict": _filled([[h.verdict for h in row] for row in heard], longest, ""),
            "route_price": _filled([list(hour.paid) for hour in hours], longest, 0.0),
        }

    def _names(self, heard: Heard) -> list[str]:
        return self.models[heard.model].split("/", 1)


def fields(longest: int) -> tuple[Field, ...]:
    """Return the outputs of a cascade whose hours ask at most so many models."""
    route = [("stage", "BYTES"), ("model", "BYTES"), ("probability", "FP64"), ("low", "FP64"), ("high", "FP64")]
    route += [("verdict", "BYTES"), ("price", "FP64")]
    plain = (Field("label", "BYTES"), Field("stage", "INT64"), Field("alarm", "BOOL"))
    more = (Field("probability"), Field("price"), Field("route_steps", "INT64"))
    return (*plain, *more, *(Field(f"route_{name}", kind, (longest,)) for name, kind in route))


def _filled(rows: Sequence[Sequence[Any]], longest: int, blank: Any) -> list[Any]:
    return [[*row, *[blank] * (longest - len(row))] for row in rows]


def _shown(cut: float) -> float:
    """Return a cut as a probability: what is never reached is 2, what always is -1."""
    return min(max(cut, -1.0), 2.0)


def _drawn(row: FloatArray) -> float:
    """Return a number in [0, 1) drawn by the first hour itself, so that the same hours give the same draw."""
    return zlib.crc32(np.ascontiguousarray(row, dtype=np.float32).tobytes()) / 2**32


@cache
def _codec() -> tuple[Any, Any]:
    import msgspec

    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Case).decode


def _encoded(case: Case) -> bytes:
    data: bytes = _codec()[0](case)
    return data


def _decoded(data: bytes) -> Case:
    case: Case = _codec()[1](data)
    return case
