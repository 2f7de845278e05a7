"""How much slower local engines step while others compute: measured with one process, and with several at once.

Processes of a machine share its memory bandwidth, its caches and its cores, with each other and with the client. The
same phases are measured at one process and at all processes at the same time; the ratio of the two is the factor on
steps of decodes (TPOT) and on prompts (TTFT). Between one and all processes the factor grows linearly with those that
are busy; more processes than the cores compute for share them evenly. [design]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline.engine.simulation.engine_inputs import StepTimes
from unfold_pipeline.engine.step_times.endpoint_profile import EndpointProfile, MeasuredPhase, MeasuredRequest

LONG_SHARE = 0.5
"""Fraction of the most prompt tokens of a phase from which on a phase measures prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContention:
    """Factors on the steps of an engine, while ``processes`` of them compute.

    Attributes:
        processes: Processes that were measured at the same time.
        capacity: Processes that the cores compute for.
        decode: Factor on steps of decodes, at least 1.
        prefill: Factor on steps that hold a full budget of prompt tokens, at least 1.
    """

    processes: int
    capacity: int
    decode: float
    prefill: float

    def slow_down(self, times: StepTimes, busy: float) -> StepTimes:
        """Return step times while ``busy`` engines compute, this one among them; between 1 and all, a mean of them."""
        rise = (busy - 1) / (self.processes - 1) if self.processes > 1 else 0.0
        share = max(1.0, busy / self.capacity)
        decode, prefill = (share * (1 + (factor - 1) * rise) for factor in (self.decode, self.prefill))
        # a step of one token is a decode; a step of the whole budget is a prompt
        by_tokens = np.interp(np.arange(times.dense.size), [1, max(times.dense.size - 1, 2)], [decode, prefill])
        # the overhead grows as the tokens of its step do, so that it becomes part of their table
        constant = np.full(times.dense.size, times.overhead / times.scale)
        return replace(
            times,
            dense=by_tokens * times.dense + (by_tokens - 1) * constant,
            sequence=decode * times.sequence,
            attention=decode * times.attention,
        )


def measure_contention(profile: EndpointProfile) -> ProcessContention | None:
    """Return the factors of a profile; ``None`` for an engine that is not known to share its machine."""
    if not profile.capacity:
        return None
    longest = max(map(_count_prompt_tokens, profile.phases), default=0)
    decode = _compare(profile, lambda request: request.tpot_s, 0.0)
    # the first token of a short prompt comes from a step as small as a decode
    prefill = _compare(profile, lambda request: request.ttft_s, LONG_SHARE * longest)
    return ProcessContention(processes=profile.processes, capacity=profile.capacity, decode=decode, prefill=prefill)


def _compare(profile: EndpointProfile, measure: Callable[[MeasuredRequest], float], min_prompt_tokens: float) -> float:
    """Return the median over the phases of a time with all processes over that with one; at least 1."""
    alone = {phase.name: _average(phase, measure) for phase in profile.phases}
    ratios = [
        _average(phase, measure) / alone[phase.name]
        for phase in profile.together
        if alone.get(phase.name, 0.0) > 0 and _count_prompt_tokens(phase) >= min_prompt_tokens
    ]
    return max(1.0, float(np.median(ratios))) if ratios else 1.0


def _count_prompt_tokens(phase: MeasuredPhase) -> int:
    return sum(request.input_tokens for request in phase.requests)


def _average(phase: MeasuredPhase, measure: Callable[[MeasuredRequest], float]) -> float:
    return float(np.mean([measure(request) for request in phase.requests]))
