"""The fit of step times to a profile recovers engines that it has not seen, of several shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.endpoint.profiler import describe_drift, plan_phases
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes, pad_axes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.endpoint_fit import fit_endpoint, measure_gap
from unfold_pipeline.engine.step_times.endpoint_profile import (
    MIXED_PHASE,
    EndpointProfile,
    MeasuredPhase,
    MeasuredRequest,
)
from unfoldkit.api import UnfoldError

BUDGET, SLOTS = 512, 16


def build_times(dense: FloatArray, request_s: float, context_s: float, overhead_s: float) -> StepTimes:
    """Return step times with decodes that cost ``context_s`` a token of context."""
    contexts, decodes = np.array([0.0, 8192.0]), np.array([0.0, 64.0])
    axes, lengths = pad_axes([np.array([0.0, 8192.0]), contexts, decodes, contexts])
    attention = np.zeros((2, 2, 2, 2)) + (decodes[:, None] * contexts[None, :] * context_s)[None, None]
    sequence = request_s * np.arange(SLOTS + 2.0)
    return StepTimes(
        dense=dense, sequence=sequence, axes=axes, axis_lengths=lengths, attention=attention, overhead=overhead_s
    )


def measure(times: StepTimes, front_s: float, noise: float, seed: int, *, synchronous: bool) -> EndpointProfile:
    """Return the profile that an engine with some step times gives, with log-normal noise on every step."""
    rng = np.random.default_rng(seed)
    limits = EngineLimits(
        num_blocks=4096, max_num_batched_tokens=BUDGET, max_num_seqs=SLOTS, async_scheduling=not synchronous
    )
    phases = []
    for phase in plan_phases(1500, SLOTS):
        inputs, outputs = (np.array(column) for column in zip(*phase.requests, strict=True))
        arrivals = np.zeros(inputs.size)
        arrivals[-1] = 0.2 if phase.name == MIXED_PHASE else 0.0
        factor = float(np.exp(noise * rng.standard_normal()))
        noisy = replace(times, scale=factor, overhead=times.overhead * factor)
        run = simulate(build_requests(arrivals, inputs, outputs), limits, noisy)
        requests = []
        for index in range(inputs.size):
            stamps = np.linspace(run.first_token_s[index], run.last_token_s[index], int(outputs[index])) + front_s
            requests.append(
                MeasuredRequest(
                    start_s=float(arrivals[index]),
                    event_s=tuple(float(stamp) for stamp in stamps),
                    end_s=float(stamps[-1]),
                    input_tokens=int(inputs[index]),
                    output_tokens=int(outputs[index]),
                )
            )
        phases.append(MeasuredPhase(name=phase.name, requests=tuple(requests)))
    return EndpointProfile(
        url="", model="m", path="", tokens_per_word=1.0, max_context=0, kv_tokens=0, phases=tuple(phases)
    )


TOKENS = np.arange(BUDGET + 1.0)
SHAPES = {
    "a GPU, flat until the arithmetic limits": (np.maximum(0.012, 9e-5 * TOKENS), 2e-5, 2e-9, 0.0015, 0.008),
    "a GPU with a large front end": (np.maximum(0.03, 2e-4 * TOKENS), 1e-4, 1e-8, 0.0, 0.04),
    "a core, linear in tokens": (0.011 * TOKENS, 0.007, 2e-6, 0.002, 0.002),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("synchronous", [True, False])
def test_steps_front_end_and_phases_are_recovered(name: str, *, synchronous: bool) -> None:
    """Without noise, steps of many sizes are within 8 % and the front end within 3 ms or 15 %."""
    dense, request_s, context_s, overhead_s, front_s = SHAPES[name]
    times = build_times(dense, request_s, context_s, overhead_s)
    profile = measure(times, front_s, 0.0, 0, synchronous=synchronous)
    limits = EngineLimits(
        num_blocks=4096, max_num_batched_tokens=BUDGET, max_num_seqs=SLOTS, async_scheduling=not synchronous
    )
    fit = fit_endpoint(profile, limits, max_requests=SLOTS + 1, max_context=4096)
    assert abs(fit.front_s - front_s) <= max(0.003, 0.15 * front_s)
    for tokens, requests in ((1, 1), (8, 8), (16, 16), (100, 2), (BUDGET, 1)):
        true_s = overhead_s + dense[tokens] + request_s * requests
        fitted_s = fit.times.overhead + fit.times.dense[tokens] + fit.times.sequence[requests]
        assert fitted_s == pytest.approx(true_s, rel=0.08), (tokens, requests)
    assert fit.peak_streams == SLOTS
    assert fit.within < 0.1


def test_noise_of_the_machine_widens_the_interval() -> None:
    """Steps that vary by 10 % from phase to phase give an interval of about that size."""
    dense, request_s, context_s, overhead_s, front_s = SHAPES["a GPU, flat until the arithmetic limits"]
    times = build_times(dense, request_s, context_s, overhead_s)
    limits = EngineLimits(num_blocks=4096, max_num_batched_tokens=BUDGET, max_num_seqs=SLOTS)
    widths = [
        fit_endpoint(
            measure(times, front_s, noise, 1, synchronous=False), limits, max_requests=SLOTS + 1, max_context=4096
        ).within
        for noise in (0.0, 0.1, 0.2)
    ]
    assert widths[0] < widths[1] < widths[2]
    assert 0.07 < widths[1] < 0.3


def test_slots_that_are_missing_are_left_out() -> None:
    """Of eight requests at an engine with four slots, only the four that run together give a step."""

    def measured(first_s: float, end_s: float) -> MeasuredRequest:
        stamps = tuple(float(stamp) for stamp in np.linspace(first_s, end_s, 11))
        return MeasuredRequest(start_s=0.0, event_s=stamps, end_s=end_s, input_tokens=16, output_tokens=11)

    phase = MeasuredPhase(name="streams-8", requests=(measured(1.0, 2.0),) * 4 + (measured(2.5, 3.5),) * 4)
    gap = measure_gap(phase)
    assert gap is not None
    assert gap.tokens == (4,)
    assert gap.seconds == pytest.approx(0.1)


def test_an_unsteady_engine_and_an_empty_profile_are_named() -> None:
    """Equal steps that differ by more than a factor of two describe the machine; nothing fits no phases."""
    dense, request_s, context_s, overhead_s, front_s = SHAPES["a core, linear in tokens"]
    profile = measure(build_times(dense, request_s, context_s, overhead_s), front_s, 0.0, 0, synchronous=True)
    assert not describe_drift(profile)
    assert "equal steps took" in describe_drift(
        measure(build_times(dense, request_s, context_s, overhead_s), front_s, 2.0, 2, synchronous=True)
    )
    with pytest.raises(UnfoldError, match="too few"):
        fit_endpoint(replace(profile, phases=()), EngineLimits(num_blocks=9), max_requests=2, max_context=9)
