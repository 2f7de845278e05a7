"""The report of a profiled engine: each phase as measured and as simulated with the fitted step times."""

from __future__ import annotations

import numpy as np

from unfold_pipeline.engine.simulation.engine_inputs import StepTimes
from unfold_pipeline.engine.simulation.scheduler_reference import interpolate
from unfold_pipeline.engine.step_times.endpoint_fit import FittedEndpoint, PhaseFit
from unfold_pipeline.engine.step_times.endpoint_profile import EndpointProfile
from unfold_pipeline.engine.step_times.process_contention import ProcessContention, measure_contention
from unfold_pipeline.report.engines import sentences
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict


def build_endpoint_report(name: str, stage: str, profile: EndpointProfile, fit: FittedEndpoint, fresh: int) -> Report:
    """Return the report of a profile.

    Args:
        name: Name of the spec.
        stage: Name of the stage.
        profile: What was measured.
        fit: The step times that fit it.
        fresh: Requests that were measured now; the others were in the run.
    """
    times, contention = fit.times, measure_contention(profile)
    context = float(np.mean([request.input_tokens for request in profile.select_solo()] or [0]))
    budget = times.dense.size - 1
    step_s = _compute_step_s(times, 1, (0.0, 0.0, 1.0, context))
    full_s = _compute_step_s(times, budget, (float(budget), 0.0, 0.0, 0.0))
    return Report(
        kind="pipeline",
        verb="profile",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.describe_endpoint(stage, profile.requests, fresh),
        subtitle=(profile.model, f"{profile.requests} requests"),
        metrics={
            "requests": Metric(float(profile.requests)),
            "front_ms": Metric(fit.front_s * 1e3, "ms", timed=True),
            "step_ms": Metric(step_s * 1e3, "ms", timed=True),
            "full_step_ms": Metric(full_s * 1e3, "ms", timed=True),
            "error_percent": Metric(fit.within * 100, "%", timed=True),
            **_measure_contention(contention),
        },
        tables=(_build_table(fit.phases),),
        figures=(_build_figure(fit),),
        lines=(
            ("steps", sentences.describe_endpoint_steps(step_s, context, budget, full_s)),
            ("front end", sentences.describe_endpoint_front(fit.front_s)),
            ("fit", sentences.describe_endpoint_fit(fit.within)),
            ("range", sentences.describe_endpoint_range(fit.longest_prompt, fit.peak_streams)),
            *_list_contention(contention),
        ),
        next="unfold plan SPEC",
    )


def _compute_step_s(times: StepTimes, tokens: int, attention: tuple[float, float, float, float]) -> float:
    """Return the duration (s) of a step of one request; ``attention`` is chunk, past, decodes and context in tokens."""
    dense, sequence = float(times.dense[tokens]), float(times.sequence[1])
    return float(times.overhead + times.scale * (dense + sequence + interpolate(attention, times)))


def _list_contention(contention: ProcessContention | None) -> tuple[tuple[str, str], ...]:
    if contention is None or contention.processes == 1:
        return ()
    text = sentences.describe_contention(contention.processes, contention.decode, contention.prefill)
    return (("together", text),)


def _measure_contention(contention: ProcessContention | None) -> dict[str, Metric]:
    if contention is None or contention.processes == 1:
        return {}
    return {
        "contention_decode": Metric(contention.decode, timed=True),
        "contention_prefill": Metric(contention.prefill, timed=True),
    }


def _build_table(phases: tuple[PhaseFit, ...]) -> Table:
    columns = (
        Column("phase"),
        Column("prompt tokens"),
        Column("streams"),
        *(
            Column(f"{measure} {kind}", "ms", 1, timed=True)
            for measure in ("TTFT", "TPOT")
            for kind in ("measured", "simulated")
        ),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            phase.name,
            phase.prompt_tokens,
            phase.streams,
            *(value * 1e3 for value in (phase.ttft_s, phase.fitted_ttft_s, phase.tpot_s, phase.fitted_tpot_s)),
        )
        for phase in phases
    ]
    return Table("phases", columns, tuple(rows))


def _build_figure(fit: FittedEndpoint) -> Figure:
    solo = [phase for phase in fit.phases if phase.streams == 1]
    prompts = tuple(float(phase.prompt_tokens) for phase in solo)
    series = (
        Series("measured", prompts, tuple(phase.ttft_s * 1e3 for phase in solo)),
        Series("simulated", prompts, tuple(phase.fitted_ttft_s * 1e3 for phase in solo)),
    )
    return Figure("prompts", "Time to first token by prompt", "prompt tokens", "ms", series, timed=True)
