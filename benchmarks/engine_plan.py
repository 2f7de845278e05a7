"""Price and attainment of planned LLM engines, next to sizing by steady state at mean and at peak load.

Azure's conversation trace of 2023, Llama-3.1-70B in fp8 on H100 and H200, p99 TTFT 500 ms and TPOT 50 ms. Every plan is
made on the first half of the trace and replayed on the second. Steady state is what AIConfigurator computes: requests
of mean lengths, the largest concurrency at which TTFT and TPOT meet the targets, and as many engines as the load
divided by that throughput. The load is the mean, or the busiest minute, ten seconds or second. The saving is against
the cheapest peak that attains 98 % of both targets on the second half, as two p99 targets allow. Real engines are not
run: both sides are replayed by the same simulator.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.engine.build import build_engine_problem
from unfold_pipeline.engine.hardware.gpu import BLOCK_TOKENS
from unfold_pipeline.engine.planner.problem import EngineProblem, measure_latencies
from unfold_pipeline.engine.planner.search import EngineConfig, build_limits, evaluate, find_cheapest_engines
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = Path(__file__).parents[1] / "configs" / "pipeline" / "chat.yaml"
CONCURRENCIES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
PEAK_WINDOWS_S = (60.0, 10.0, 1.0)
REQUIRED_PERCENT = 98.0
ROUNDS = 4
BUDGET, MAX_SEQS = 2048, 256


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:  # noqa: ARG001 - nothing is drawn
    """Plan on the first half, replay on the second, and compare."""
    problem = chat_problem(data, budgets=(BUDGET,) if quick else (1024, 2048, 4096), by_gpu=True)
    half = float(problem.requests.arrival_s[-1]) / 2
    first, second = (replace(problem, requests=part) for part in split_requests(problem.requests, half))
    solution = find_cheapest_engines(first)
    if solution.config is None:
        raise RuntimeError("no plan")
    arrivals = first.requests.arrival_s
    candidates = {
        "planned": solution.config,
        "steady state, mean load": size_by_steady_state(first, arrivals.size / half),
    }
    for window_s in PEAK_WINDOWS_S:
        busiest = int((np.searchsorted(arrivals, arrivals + window_s) - np.arange(arrivals.size)).max())
        name = f"steady state, busiest {window_s:g} s"
        candidates[name] = size_by_steady_state(first, busiest / window_s)
    rows = [{"sizing": name, **describe(first, second, config)} for name, config in candidates.items()]
    planned = rows[0]
    equal = [row["usd_per_hour"] for row in rows[2:] if row["attained_second_half_percent"] >= REQUIRED_PERCENT]
    metrics = {
        "saving_against_peak_percent": 100 * (1 - planned["usd_per_hour"] / min(equal)) if equal else None,
        "attainment_percent": planned["attained_second_half_percent"],
        "attained_first_half_percent": planned["attained_first_half_percent"],
        "attained": float(planned["attained_first_half_percent"] >= REQUIRED_PERCENT),
    }
    return {
        "metrics": metrics,
        "tables": {"sizings": rows},
        "aims": {"saving_against_peak_percent": "≥ 20", "attained_first_half_percent": "≥ 98", "attained": "1"},
    }


def chat_problem(
    data: Path, *, budgets: tuple[int, ...], max_seqs: tuple[int, ...] = (MAX_SEQS,), by_gpu: bool
) -> EngineProblem:
    """Return the problem of ``configs/pipeline/chat.yaml`` with other choices."""
    text = SPEC.read_text("utf-8").replace("../shared/data", str(data))
    spec = validate(PipelineSpec, parse(text, str(SPEC)))
    engine = spec.stages_by_name["chat"].engine
    if engine is None:
        raise RuntimeError("no engine")
    chosen = engine.model_copy(update={"max_num_batched_tokens": budgets, "max_num_seqs": max_seqs})
    stages = {"chat": spec.stages_by_name["chat"].model_copy(update={"engine": chosen})}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunDir(Path(folder)), LocalEngine(1), base=SPEC.parent)
        problem = build_engine_problem(spec.model_copy(update={"stages": stages}), run)
    if not by_gpu:
        return problem
    return replace(problem, options=tuple(replace(option, gpus_per_node=1) for option in problem.options))


def split_requests(requests: EngineRequests, at_s: float) -> tuple[EngineRequests, EngineRequests]:
    """Return the requests before and after a moment, both from 0 on."""
    before = requests.arrival_s < at_s
    return tuple(
        build_requests(
            requests.arrival_s[rows] - requests.arrival_s[rows][0],
            requests.input_tokens[rows],
            requests.output_tokens[rows],
            block_tokens=BLOCK_TOKENS,
        )
        for rows in (before, ~before)
    )  # type: ignore[return-value]


def size_by_steady_state(problem: EngineProblem, rate_per_s: float) -> EngineConfig:
    """Return the cheapest engines with a steady-state throughput of at least a rate."""
    prompt = round(float(problem.requests.input_tokens.mean()))
    generated = round(float(problem.requests.output_tokens.mean()))
    best: tuple[float, EngineConfig] | None = None
    for index, option in enumerate(problem.options):
        throughput = 0.0
        for clients in CONCURRENCIES:
            count = max(ROUNDS * clients, 16)
            lengths = np.full(count, prompt), np.full(count, generated)
            requests = build_requests(np.zeros(count), *lengths, block_tokens=BLOCK_TOKENS)
            limits = build_limits(problem, option, BUDGET, MAX_SEQS)
            run = simulate(requests, limits, option.times, closed_loop=clients)
            latencies = measure_latencies(requests, run, 0.0)
            if float(latencies.tpot_s.mean()) > problem.targets.tpot_s:
                break
            # the clients of steady state are spread over time: the median leaves out the burst at the start
            if float(np.median(latencies.ttft_s)) <= problem.targets.ttft_s:
                throughput = max(throughput, count / float(run.last_token_s.max()))
        if throughput > 0:
            replicas = max(1, math.ceil(rate_per_s / throughput))
            config = EngineConfig(option=index, replicas=replicas, budget=BUDGET, max_seqs=MAX_SEQS)
            if best is None or option.cost(replicas) < best[0]:
                best = option.cost(replicas), config
    if best is None:
        raise RuntimeError("no engine meets the targets in steady state")
    return best[1]


def describe(first: EngineProblem, second: EngineProblem, config: EngineConfig) -> dict[str, Any]:
    """Return price and attainment of engines on both halves of the trace."""
    option = first.options[config.option]
    return {
        "engines": f"{config.replicas} × {option.hardware} tp{option.tensor_parallel}",
        "usd_per_hour": option.cost(config.replicas),
        "attained_first_half_percent": 100 * attainment(first, config),
        "attained_second_half_percent": 100 * attainment(second, config),
    }


def attainment(problem: EngineProblem, config: EngineConfig) -> float:
    """Return which fraction of the requests meets both targets."""
    run = evaluate(problem, config, complete=True).run
    ttft_s = run.first_token_s - run.arrival_s
    later = np.maximum(problem.requests.output_tokens - 1, 1)
    tpot_s = (run.last_token_s - run.first_token_s) / later
    return float(((ttft_s <= problem.targets.ttft_s) & (tpot_s <= problem.targets.tpot_s)).mean())
