"""Step times of a running engine from the outside: prompts give prefill, streams give decodes.

A step costs

    t = overhead + dense(T) + a m + b (contexts of decodes) + c (prefill work)

with T tokens of m requests. ``dense`` has two slopes and a knee, as the larger of memory and arithmetic has, and every
coefficient is at least 0: a non-negative least-squares fit of relative errors for each knee, of which the best counts.
The front end (HTTP, tokenizer, client) is part of TTFT and of no gap between tokens, which separates it from the
overhead of a step. [design]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes, pad_axes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.endpoint_profile import (
    MIXED_PHASE,
    EndpointProfile,
    MeasuredPhase,
    build_benchmark_runs,
)
from unfoldkit.api import user_error

FRONT, OVERHEAD, REQUESTS, CONTEXTS, WORK, TOKENS, BEYOND = range(7)
FEWEST_OBSERVATIONS = 5
KNEES = 48
SMALLEST_WITHIN = 0.02
WITHIN_QUANTILE = 0.9
ATTENTION_CHUNKS = 24
FRONT_PENALTY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured duration and the steps that it holds.

    Attributes:
        seconds: The duration.
        terms: How often it holds the front end, a step, a request, context tokens, prefill work.
        tokens: Tokens of each step.
    """

    seconds: float
    terms: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFit:
    """A phase as measured and as simulated with the fitted step times, in seconds."""

    name: str
    prompt_tokens: int
    streams: int
    ttft_s: float
    fitted_ttft_s: float
    tpot_s: float
    fitted_tpot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedEndpoint:
    """Step times of a measured engine.

    Attributes:
        times: The step times.
        front_s: Time before the engine: client, HTTP and tokenizer.
        within: 90 % of the measured latencies are simulated within this absolute log error.
        phases: Each phase, measured and simulated.
        peak_streams: The most streams that were measured at the same time.
        longest_prompt: Tokens of the longest prompt that was measured.
    """

    times: StepTimes
    front_s: float
    within: float
    phases: tuple[PhaseFit, ...]
    peak_streams: int
    longest_prompt: int


def fit_endpoint(
    profile: EndpointProfile,
    limits: EngineLimits,
    *,
    max_requests: int,
    max_context: int,
    front_s: float | None = None,
) -> FittedEndpoint:
    """Fit the step times of an engine to its profile.

    Args:
        profile: The measurements.
        limits: Arguments of the engine that was measured.
        max_requests: Largest number of requests in a step that a plan needs.
        max_context: Longest context that a plan needs.
        front_s: Time before the engine, if it is known.

    Raises:
        UnfoldError: The profile holds no decodes or no prompts.
    """
    budget = limits.max_num_batched_tokens
    observations = [*_list_prompts(profile, budget), *_list_gaps(profile)]
    if len({item.terms for item in observations}) < FEWEST_OBSERVATIONS:
        raise user_error("the profile has too few different requests", hint="unfold profile SPEC again")
    if front_s is not None:
        observations = [_without_front(item, front_s) for item in observations]
    coefficients, knee = _solve(observations)
    times = _build_times(coefficients, knee, budget, max_requests, max_context)
    front_s = float(coefficients[FRONT]) if front_s is None else front_s
    phases = compare_phases(profile, times, limits, front_s)
    errors = [
        abs(math.log(fitted / measured))
        for phase in phases
        for fitted, measured in ((phase.fitted_ttft_s, phase.ttft_s), (phase.fitted_tpot_s, phase.tpot_s))
        if fitted > 0 and measured > 0
    ]
    return FittedEndpoint(
        times=times,
        front_s=front_s,
        within=max(SMALLEST_WITHIN, float(np.quantile(errors, WITHIN_QUANTILE))) if errors else SMALLEST_WITHIN,
        phases=phases,
        peak_streams=max(len(phase.requests) for phase in profile.phases),
        longest_prompt=max(request.input_tokens for phase in profile.phases for request in phase.requests),
    )


def compare_phases(
    profile: EndpointProfile, times: StepTimes, limits: EngineLimits, front_s: float
) -> tuple[PhaseFit, ...]:
    """Simulate the phases of a profile with some step times; requests that were alone are one phase each."""
    runs = {run.path.name: run for run in build_benchmark_runs(profile)}
    fits = []
    for phase in profile.phases:
        starts = np.array([request.start_s for request in phase.requests])
        run = runs.get(phase.name)
        if run is None:
            request = phase.requests[0]
            inputs, outputs = (np.array([count]) for count in (request.input_tokens, request.output_tokens))
            arrivals, ttft_s = np.zeros(1), np.array([request.ttft_s])
        else:
            inputs, outputs, arrivals, ttft_s = run.input_tokens, run.output_tokens, run.arrival_s, run.ttft_s
        result = simulate(build_requests(arrivals, inputs, outputs), limits, times)
        later = np.maximum(outputs - 1, 1)
        fits.append(
            PhaseFit(
                name=phase.name,
                prompt_tokens=int(inputs.max()),
                streams=starts.size,
                ttft_s=float(np.mean(ttft_s)),
                fitted_ttft_s=float(np.mean(result.first_token_s - result.arrival_s)) + front_s,
                tpot_s=float(np.mean([request.tpot_s for request in phase.requests])),
                fitted_tpot_s=float(np.mean((result.last_token_s - result.first_token_s) / later)),
            )
        )
    return tuple(fits)


def _list_prompts(profile: EndpointProfile, budget: int) -> Iterator[Observation]:
    """Yield the time to first token of requests alone: the front end, and a step for each chunk."""
    for request in profile.select_solo():
        prompt = request.input_tokens
        starts = range(0, prompt, budget)
        chunks = [min(budget, prompt - start) for start in starts]
        work = sum(chunk * (start + chunk / 2) for start, chunk in zip(starts, chunks, strict=True))
        terms = (1.0, float(len(chunks)), float(len(chunks)), 0.0, work)
        yield Observation(seconds=request.ttft_s, terms=terms, tokens=tuple(chunks))


def _list_gaps(profile: EndpointProfile) -> Iterator[Observation]:
    """Yield the mean step of each phase while all of its requests decode."""
    for phase in profile.phases:
        gap = measure_gap(phase)
        if gap is not None:
            yield gap


def measure_gap(phase: MeasuredPhase) -> Observation | None:
    """Return the mean step while the requests that began together all decode; ``None`` if they never do.

    An engine with fewer slots than requests admits the others later; they are left out.
    """
    first_end_s = min(request.end_s for request in phase.requests)
    group = [request for request in phase.requests if request.first_s < first_end_s and request.output_tokens > 1]
    if not group or phase.name == MIXED_PHASE:
        return None
    start_s = max(request.first_s for request in group)
    tokens, contexts = [], 0.0
    for request in group:
        stamps = np.array(request.event_s)
        inside = int(((stamps > start_s) & (stamps <= first_end_s)).sum())
        before = int((stamps <= start_s).sum())
        per_event = (request.output_tokens - 1) / max(len(stamps) - 1, 1)
        tokens.append(inside * per_event)
        contexts += request.input_tokens + (before + inside / 2) * per_event
    steps = float(np.mean(tokens))
    if steps < 1 or first_end_s <= start_s:
        return None
    count = len(group)
    terms = (0.0, 1.0, float(count), contexts, 0.0)
    return Observation(seconds=(first_end_s - start_s) / steps, terms=terms, tokens=(count,))


def _without_front(item: Observation, front_s: float) -> Observation:
    """Return the observation without the known time before the engine."""
    seconds = max(item.seconds - item.terms[FRONT] * front_s, item.seconds / 100)
    return replace(item, seconds=seconds, terms=(0.0, *item.terms[1:]))


def _solve(observations: Sequence[Observation]) -> tuple[FloatArray, float]:
    """Return the coefficients of the best knee, and the knee in tokens."""
    largest = max(max(item.tokens) for item in observations)
    candidates = [
        (*_solve_knee(observations, float(knee)), float(knee)) for knee in np.geomspace(1, max(largest, 2), KNEES)
    ]
    coefficients, _, knee = min(candidates, key=lambda candidate: candidate[1])
    return coefficients, knee


def _solve_knee(observations: Sequence[Observation], knee: float) -> tuple[FloatArray, float]:
    """Return the coefficients with a given knee, and the norm of the relative errors."""
    rows = np.array([[*item.terms, sum(item.tokens), _sum_beyond(item.tokens, knee)] for item in observations])
    seconds = np.array([item.seconds for item in observations])
    weighted, ones = rows / seconds[:, None], np.ones(seconds.size)
    # without a prompt of one token, front end and prefill cannot be separated: prefer the small front end
    weak = np.zeros(rows.shape[1])
    weak[FRONT] = FRONT_PENALTY / seconds[rows[:, FRONT] > 0].min() if (rows[:, FRONT] > 0).any() else 0.0
    weighted, ones = np.vstack([weighted, weak]), np.append(ones, 0.0)
    # columns of very different sizes would be lost in the tolerance of the solver
    sizes = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
    solution, error = optimize.nnls(weighted / sizes, ones)
    return solution / sizes, float(error)


def _sum_beyond(tokens: Sequence[int], knee: float) -> float:
    return sum(max(0.0, count - knee) for count in tokens)


def _build_times(coefficients: FloatArray, knee: float, budget: int, max_requests: int, max_context: int) -> StepTimes:
    tokens, requests = np.arange(budget + 1.0), np.arange(max_requests + 1.0)
    dense = coefficients[TOKENS] * tokens + coefficients[BEYOND] * np.maximum(0.0, tokens - knee)
    chunks = np.unique(np.r_[0.0, np.geomspace(1, max(budget, 2), ATTENTION_CHUNKS)])
    history = contexts = np.array([0.0, float(max(max_context, 1))])
    decodes = np.array([0.0, float(max_requests)])
    prefill = coefficients[WORK] * chunks[:, None] * (history[None, :] + chunks[:, None] / 2)
    decode = coefficients[CONTEXTS] * decodes[:, None] * contexts[None, :]
    axes, lengths = pad_axes([chunks, history, decodes, contexts])
    return StepTimes(
        dense=dense,
        sequence=coefficients[REQUESTS] * requests,
        axes=axes,
        axis_lengths=lengths,
        attention=np.ascontiguousarray(prefill[:, :, None, None] + decode[None, None, :, :]),
        overhead=float(coefficients[OVERHEAD]),
    )
