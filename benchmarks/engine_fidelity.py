"""How close the engine simulator comes to measured engines: TTFT, TPOT and latency, mean and p99.

Llama-3.1-8B, vLLM 0.19, 300 ShareGPT requests on each GPU; step times from operator tables. On RTX 4090 nothing is
fitted. On RTX PRO 6000 one number is, an overhead of 1.5 ms a step, on the same run. ``unqueued`` are the requests
that were scheduled within 0.3 s there, without the first three; LLMServingSim 2.0 has a median error of 28 % on them.

``stages`` are ten vLLM runs on H100 at constant rates, from operator tables and one constant of 8 ms for the front
end. ``silicon`` are closed-loop rows of H100 and H200, from operator tables alone; ``corrected`` divides each GPU,
engine and precision by one factor. AIConfigurator's stored answers on 51 of the rows stand next to ours on the same
rows. The interval is checked on each group from the other groups alone, for operator tables and for the roofline.
``extrapolation`` predicts what was cut off operator tables from the rest.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_extrapolation import measure_extrapolation
from benchmarks.engine_runs import RecordedRun, operator_times, recorded_run
from benchmarks.engine_silicon import (
    SiliconRow,
    calibrate_groups,
    cover_left_out_groups,
    group_ratios,
    predict_rows,
)
from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.hardware.gpu import estimate_kv_cache, list_gpus
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfold_pipeline.engine.simulation.cluster import EngineRun, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.aiconfigurator import (
    OperatorDatabase,
    build_step_times,
    find_tables,
    read_database,
)
from unfold_pipeline.engine.step_times.interval import CONFIDENCE

ENGINES = {
    "RTX4090": (EngineLimits(num_blocks=2588, max_num_seqs=256), 0.0),
    "RTXPRO6000": (EngineLimits(num_blocks=35_600, max_num_seqs=128), 0.0015),
}
UNQUEUED_S, WARM_UP = 0.3, 3
FRONT_S = 0.008
WORST_ERRORS = {"RTX4090": "full_error_percent_max", "RTXPRO6000": "fitted_error_percent_max"}
"""Names of the worst errors: nothing is fitted on the first GPU, and one number on the second."""
LLAMA_2_7B = ModelShape(layers=32, hidden=4096, heads=32, kv_heads=32, head=128, inner=11008, vocabulary=32000)
LLAMA_2_70B = ModelShape(layers=80, hidden=8192, heads=64, kv_heads=8, head=128, inner=28672, vocabulary=32000)


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Simulate recorded runs, stages and closed-loop rows, and compare."""
    metrics: dict[str, float] = {}
    rows = []
    for gpu, (limits, overhead_s) in ENGINES.items():
        recorded = recorded_run(data, gpu)
        simulated = simulate(recorded.requests, limits, operator_times(data, gpu).calibrated(overhead=overhead_s))
        errors = list(compare(recorded, simulated))
        rows += [{"gpu": gpu, **row} for row in errors]
        short = gpu.lower()
        metrics[WORST_ERRORS[gpu]] = max(abs(row[key]) for row in errors for key in ("mean_percent", "p99_percent"))
        metrics[f"{short}_preemptions"], metrics[f"{short}_hit_tokens"] = simulated.preemptions, simulated.hit_tokens
        if gpu == "RTXPRO6000":
            metrics["unqueued_ttft_error_percent_median"] = unqueued_error(recorded, simulated)
    targets = {
        "full_error_percent_max": "≤ 0.5",
        "fitted_error_percent_max": "≤ 1.5",
        "unqueued_ttft_error_percent_median": "≤ 10",
        "stages_ttft_p50_error_percent": "≤ 6",
        "stages_tpot_error_percent": "≤ 6",
        "stages_latency_error_percent": "≤ 6",
        "silicon_tpot_raw_percent": "≤ 14",
        "silicon_tpot_corrected_percent": "≤ 8",
        "silicon_ttft_percent": "≤ 35",
        "groups_covered": "≥ 3",
    }
    stages = compare_stages(data)
    for name in ("ttft_p50", "tpot", "latency"):
        metrics[f"stages_{name}_error_percent"] = float(np.mean([abs(row[f"{name}_percent"]) for row in stages]))
    metrics["stage_error_percent_max"] = max(metrics[name] for name in targets if name.startswith("stages_"))
    silicon = predict_rows(data, quick=quick, seed=seed)
    metrics.update(compare_silicon(silicon))
    groups = describe_groups(silicon)
    metrics["groups_covered"] = sum(row["covered"] >= CONFIDENCE for row in groups)
    roofline = describe_groups(predict_rows(data, quick=quick, seed=seed, roofline=True))
    peers = compare_peer(data, silicon)
    return {
        "metrics": metrics,
        "peers": peers,
        "tables": {
            "errors": rows,
            "stages": stages,
            "groups": groups,
            "roofline_groups": roofline,
            "extrapolation": measure_extrapolation(data),
        },
        "aims": targets,
    }


def describe_groups(rows: Sequence[SiliconRow]) -> list[dict[str, Any]]:
    """Return bias and spread of each group, and which fraction the interval of the other groups covers."""
    groups = calibrate_groups(rows)
    covered = cover_left_out_groups(rows, groups)
    return [
        {"group": group.name, "rows": group.rows, "bias": group.bias, "within": group.within,
         "covered": covered[group.name]}
        for group in groups
    ]  # fmt: skip


def compare_silicon(rows: Sequence[SiliconRow]) -> dict[str, float]:
    """Return mean absolute errors over all closed-loop rows, in per cent."""
    ratios = group_ratios(rows)
    ttft = np.concatenate([pair[0] for pair in ratios.values()])
    tpot = np.concatenate([pair[1] for pair in ratios.values()])
    corrected = np.concatenate([pair[1] / fit_factor(pair[1]) for pair in ratios.values()])
    return {
        "silicon_rows": float(tpot.size),
        "silicon_ttft_percent": mean_error(ttft),
        "silicon_tpot_raw_percent": mean_error(tpot),
        "silicon_tpot_corrected_percent": mean_error(corrected),
    }


def compare_peer(data: Path, rows: Sequence[SiliconRow]) -> dict[str, dict[str, float]]:
    """Return the errors of AIConfigurator's stored answers and ours, on the rows that both have."""
    with (data / "engines" / "aic_peer_given.csv").open(encoding="utf-8") as stream:
        stored = {row["id"]: row for row in csv.DictReader(stream)}
    same = [row for row in rows if row.id in stored]
    factors = {group: fit_factor(pair[1]) for group, pair in group_ratios(rows).items()}
    ours = {
        "ttft_error_percent": mean_error(np.array([row.predicted_ttft / row.ttft for row in same])),
        "tpot_error_percent": mean_error(np.array([row.predicted_tpot / row.tpot for row in same])),
        "tpot_corrected_error_percent": mean_error(
            np.array([row.predicted_tpot / row.tpot / factors[row.group] for row in same])
        ),
    }
    peer = {
        f"{name}_error_percent": 100 * float(np.mean([float(stored[row.id][f"e_{name}"]) for row in same]))
        for name in ("ttft", "tpot")
    }
    return {"AIConfigurator 0.12.0": {"rows": float(len(same)), **peer}, "unfold on the same rows": ours}


def fit_factor(ratios: FloatArray) -> float:
    """Return the factor that leaves the least mean absolute error."""
    candidates = np.sort(ratios)
    return float(candidates[np.argmin([np.abs(ratios / factor - 1).mean() for factor in candidates])])


def mean_error(ratios: FloatArray) -> float:
    """Return the mean absolute relative error of ratios, in per cent."""
    return 100 * float(np.abs(ratios - 1).mean())


def compare_stages(data: Path) -> list[dict[str, Any]]:
    """Return simulated over real, in per cent, for each stage that no client gave up on."""
    system, backend = "h100_sxm", "vllm"
    folder = data / "engines"
    database = read_database(find_tables(folder, system, backend), system=system, backend=backend, head=128)
    with (folder / "vllm_stages_given.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["failed"] == "0"]
    return [_compare_stage(row, database) for row in rows]


def _compare_stage(row: Mapping[str, str], database: OperatorDatabase) -> dict[str, Any]:
    model, parallel = (LLAMA_2_70B, 4) if "70b" in row["run"] else (LLAMA_2_7B, 1)
    gpu = list_gpus()["h100_sxm"]
    kinds: dict[str, Any] = {"tensor_parallel": parallel, "precision": "bf16", "kv_precision": "bf16"}
    times = build_step_times(database, model, gpu, **kinds, max_tokens=2048, max_requests=128, max_context=4096)
    cache = estimate_kv_cache(model, gpu, **kinds, utilization=0.9)
    count = int(float(row["rate_per_s"]) * float(row["duration_s"]))
    prompts = int(row["groups"]) * int(row["users_per_group"])
    prompt = np.full(count, round(float(row["prompt_len_mean"])), dtype=np.int64)
    requests = build_requests(
        np.arange(count) / float(row["rate_per_s"]),
        prompt,
        np.full(count, int(row["output_tokens"]), dtype=np.int64),
        shared_tokens=prompt,
        shared_with=np.maximum(np.arange(count) - prompts, -1),
    )
    run = simulate(requests, EngineLimits(num_blocks=cache.num_blocks, max_num_seqs=128), times)
    ttft_s = run.first_token_s - run.arrival_s + FRONT_S
    latency_s = run.last_token_s - run.arrival_s + FRONT_S
    real_ttft_s, real_latency_s = float(row["time_to_first_token_mean_s"]), float(row["request_latency_mean_s"])
    tpot_s = float((latency_s - ttft_s).mean()) / (int(row["output_tokens"]) - 1)
    real_tpot_s = (real_latency_s - real_ttft_s) / (int(row["output_tokens"]) - 1)
    return {
        "run": row["run"],
        "rate_per_s": float(row["rate_per_s"]),
        "ttft_p50_percent": 100 * (float(np.median(ttft_s)) / float(row["time_to_first_token_median_s"]) - 1),
        "tpot_percent": 100 * (tpot_s / real_tpot_s - 1),
        "latency_percent": 100 * (float(latency_s.mean()) / real_latency_s - 1),
    }


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
