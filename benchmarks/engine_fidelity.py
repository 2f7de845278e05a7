"""How close the engine simulator comes to recorded vLLM runs: TTFT, TPOT and latency, mean and p99.

Llama-3.1-8B, vLLM 0.19, 300 ShareGPT requests on each GPU; step times from operator tables. On RTX 4090 nothing is
fitted. On RTX PRO 6000 one number is, an overhead of 1.5 ms a step, on the same run. ``unqueued`` are the requests that
were scheduled within 0.3 s there, without the first three; LLMServingSim 2.0 has a median error of 28 % on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_runs import RecordedRun, operator_times, recorded_run
from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.simulation.cluster import EngineRun, simulate
from unfold_pipeline.engine.simulation.limits import EngineLimits

ENGINES = {
    "RTX4090": (EngineLimits(num_blocks=2588, max_num_seqs=256), 0.0),
    "RTXPRO6000": (EngineLimits(num_blocks=35_600, max_num_seqs=128), 0.0015),
}
UNQUEUED_S, WARM_UP = 0.3, 3


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:  # noqa: ARG001 - nothing is drawn
    """Simulate both runs and compare every percentile."""
    metrics: dict[str, float] = {}
    rows = []
    for gpu, (limits, overhead_s) in ENGINES.items():
        recorded = recorded_run(data, gpu)
        simulated = simulate(recorded.requests, limits, operator_times(data, gpu).calibrated(overhead=overhead_s))
        errors = list(compare(recorded, simulated))
        rows += [{"gpu": gpu, **row} for row in errors]
        short = gpu.lower()
        metrics[f"{short}_error_percent_max"] = max(
            abs(row[key]) for row in errors for key in ("mean_percent", "p99_percent")
        )
        metrics[f"{short}_preemptions"], metrics[f"{short}_hit_tokens"] = simulated.preemptions, simulated.hit_tokens
        if gpu == "RTXPRO6000":
            metrics["unqueued_ttft_error_percent_median"] = unqueued_error(recorded, simulated)
    targets = {
        "rtx4090_error_percent_max": "≤ 0.5",
        "rtxpro6000_error_percent_max": "≤ 1.5",
        "unqueued_ttft_error_percent_median": "≤ 10",
    }
    return {"metrics": metrics, "tables": {"errors": rows}, "aims": targets}


def compare(recorded: RecordedRun, simulated: EngineRun) -> list[dict[str, Any]]:
    """Return simulated over recorded, in per cent, for each measure."""
    arrivals = recorded.requests.arrival_s
    later = np.maximum(recorded.requests.output_tokens - 1, 1)
    pairs: dict[str, tuple[FloatArray, FloatArray]] = {
        "TTFT": (simulated.first_token_s - arrivals, recorded.first_token_s - arrivals),
        "TPOT": (
            (simulated.last_token_s - simulated.first_token_s) / later,
            (recorded.last_token_s - recorded.first_token_s) / later,
        ),
        "latency": (simulated.last_token_s - arrivals, recorded.last_token_s - arrivals),
    }
    return [
        {
            "measure": name,
            "mean_percent": 100 * (ours.mean() / real.mean() - 1),
            **{
                f"p{level}_percent": 100 * (np.percentile(ours, level) / np.percentile(real, level) - 1)
                for level in (50, 90, 99)
            },
        }
        for name, (ours, real) in pairs.items()
    ]


def unqueued_error(recorded: RecordedRun, simulated: EngineRun) -> float:
    """Return the median error of TTFT of the requests that hardly waited, in per cent."""
    arrivals = recorded.requests.arrival_s
    real, ours = recorded.first_token_s - arrivals, simulated.first_token_s - arrivals
    chosen = np.flatnonzero(recorded.scheduled_s - arrivals < UNQUEUED_S)
    chosen = chosen[chosen >= WARM_UP]
    return float(100 * np.median(np.abs(ours[chosen] / real[chosen] - 1)))
