"""Engines and the stages around them: the joint plan equals brute force, and times are those of the pipeline."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.engine.test_cluster import step_times
from unfold_pipeline.engine.hardware.gpu import KvCache
from unfold_pipeline.engine.planner.problem import (
    EngineOption,
    EngineProblem,
    EngineSettings,
    EngineStages,
    Targets,
    percentile,
)
from unfold_pipeline.engine.planner.search import EngineConfig, build_limits, evaluate
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.interval import StepInterval
from unfold_pipeline.planner.surrounding_stages import (
    StagePlans,
    attach_stages,
    find_cheapest_pipeline,
    list_plans_by_price,
    pass_stages,
)
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig
from unfold_pipeline.report.engines.exports import export_vllm
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import from_data, to_data
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

MAX_REPLICAS = 3


def random_line(rng: np.random.Generator, count: int) -> Pipeline:
    """Return stages in a line with one or two kinds of hardware, up to four in a batch."""
    stages = []
    for index in range(count):
        options = []
        for kind in range(int(rng.integers(1, 3))):
            first_s = rng.uniform(0.01, 0.12)
            sizes = np.arange(3 if rng.random() < 0.5 else 5)
            latency_s = np.where(sizes == 0, 0.0, first_s * (1 + 0.4 * (sizes - 1)))
            options.append(HardwareOption(f"h{index}{kind}", float(rng.integers(1, 6)) / 2, latency_s))
        stages.append(Stage(f"s{index}", (Edge(index - 1),) if index else (), tuple(options)))
    return Pipeline(tuple(stages))


def random_problem(rng: np.random.Generator, *, has_latency: bool) -> EngineProblem:
    count = 60
    requests = build_requests(
        np.cumsum(rng.exponential(0.06, count)), rng.integers(5, 90, count), rng.integers(1, 20, count), block_tokens=4
    )
    options = tuple(
        EngineOption(
            hardware=f"g{kind}", gpu="g", tensor_parallel=1, usd_per_gpu_hour=float(rng.integers(2, 9)) / 2,
            gpus_per_node=1, quota=MAX_REPLICAS, kv_cache=KvCache(num_blocks=120, is_measured=False),
            times=replace(step_times(), scale=float(rng.uniform(0.5, 4.0))),
            interval=StepInterval(source="tables", groups=4, low=1.0, high=1.0),
        )
        for kind in range(2)
    )  # fmt: skip
    return EngineProblem(
        name="x", stage="chat", requests=requests, options=options, too_small=(),
        settings=EngineSettings(budgets=(64,), max_seqs=(4, 16), front_s=0.003),
        targets=Targets(
            ttft_s=float(rng.uniform(0.12, 0.9)), tpot_s=float(rng.uniform(0.03, 0.2)),
            latency_s=float(rng.uniform(0.4, 4.0)) if has_latency else math.inf,
        ),
        confidence=None, price_sources={}, trace_sha256="", model="m",
    )  # fmt: skip


def brute_force(problem: EngineProblem, stages: EngineStages) -> float:
    """Return the least price over every plan; latencies are computed here, apart from the planner."""
    best, arrival_s = math.inf, problem.requests.arrival_s
    afters = list(list_all(stages.downstream))
    for upstream in list_all(stages.upstream):
        arrived = pass_stages(stages.upstream, upstream, arrival_s)
        requests = problem.requests.reorder(arrived.request, arrived.time_s)
        origin_s = arrival_s[arrived.request]
        for option, replicas, budget, slots in itertools.product(
            range(len(problem.options)), range(1, MAX_REPLICAS + 1), problem.settings.budgets, problem.settings.max_seqs
        ):
            item = problem.options[option]
            run = simulate(requests, build_limits(problem, item, budget, slots), item.times, engines=replicas)
            output = requests.output_tokens
            tpot_s = ((run.last_token_s - run.first_token_s) / np.maximum(output - 1, 1))[output > 1]
            is_met = percentile(run.first_token_s - origin_s + 0.003, 0.99) <= problem.targets.ttft_s
            if not is_met or percentile(tpot_s, 0.99) > problem.targets.tpot_s:
                continue
            for after in afters:
                usd = stages.upstream.cost(upstream) + item.cost(replicas) + stages.downstream.cost(after)
                if usd >= best:
                    continue
                order = np.argsort(run.last_token_s, kind="stable")
                done = pass_stages(stages.downstream, after, run.last_token_s[order])
                latency_s = done.time_s - origin_s[order[done.request]] + 0.003
                if percentile(latency_s, 0.99) <= problem.targets.latency_s:
                    best = usd
    return best


def list_all(pipeline: Pipeline) -> Any:
    choices = [
        [
            StageConfig(option, batch, replicas)
            for option, item in enumerate(stage.options)
            for batch in item.batch_sizes
            for replicas in range(1, MAX_REPLICAS + 1)
        ]
        for stage in pipeline.stages
    ]
    return itertools.product(*choices)


@pytest.mark.parametrize("seed", range(8))
def test_the_joint_plan_costs_as_little_as_brute_force(seed: int) -> None:
    """Over random stages, engines and targets no plan is cheaper, and none is claimed where none exists."""
    rng = np.random.default_rng([7, seed])
    shape = ((1, 0), (0, 1), (1, 1), (2, 0))[seed % 4]
    problem = random_problem(rng, has_latency=shape[1] > 0 or seed % 3 == 0)
    upstream, downstream = (random_line(rng, count) for count in shape)
    stages = EngineStages(upstream=upstream, downstream=downstream, max_replicas=MAX_REPLICAS, max_requests=math.inf)
    joint = find_cheapest_pipeline(problem, stages)
    best = brute_force(problem, stages)
    config = joint.solution.config
    if config is None or joint.plans is None:
        assert best == math.inf
        return
    price = problem.options[config.option].cost(config.replicas) + joint.solution.around_usd_per_hour
    assert price == pytest.approx(best)
    assert evaluate(attach_stages(problem, stages, joint.plans), config).meets(problem)


def test_an_instant_stage_changes_nothing() -> None:
    """Stages that take next to no time give the engine's own latencies."""
    problem = random_problem(np.random.default_rng(3), has_latency=True)
    instant = Pipeline((Stage("s", (), (HardwareOption("h", 1.0, np.array([0.0, 1e-12])),)),))
    stages = EngineStages(upstream=instant, downstream=instant, max_replicas=1, max_requests=math.inf)
    one = (StageConfig(0, 1, 1),)
    config = EngineConfig(option=0, replicas=2, budget=64, max_seqs=16)
    around = evaluate(attach_stages(problem, stages, StagePlans(upstream=one, downstream=one)), config, complete=True)
    alone = evaluate(problem, config, complete=True)
    assert around.ttft_s == pytest.approx(alone.ttft_s, abs=1e-6)
    assert around.latency_s == pytest.approx(alone.latency_s, abs=1e-6)


def test_plans_are_listed_once_and_by_price() -> None:
    """Every plan within the quotas appears once, the cheapest first."""
    pipeline = replace(random_line(np.random.default_rng(1), 2), quotas=(("h00", 2),))
    plans = list(list_plans_by_price(pipeline, MAX_REPLICAS, set()))
    prices = [pipeline.cost(item) for item in plans]
    assert prices == sorted(prices)
    assert len(set(plans)) == len(plans)
    assert set(plans) == {item for item in list_all(pipeline) if pipeline.is_within_quotas(item)}


SPEC = """
version: 1
kind: pipeline
name: rag
slo: {ttft_p99: 400 ms, tpot_p99: 40 ms, p99: 4 s}
arrivals: {process: poisson, rate: 12/s, duration: 20 s, input: 300, output: 12}
hardware: {h100: {price: $4/h}, l4: {price: $0.8/h}, cpu: {price: $0.1/h}}
stages:
  embed: {latency: {l4: {1: 12 ms, 8: 30 ms}, cpu: {1: 90 ms, 4: 240 ms}}}
  chat:
    after: {embed: 1}
    engine:
      model: {name: org/model, layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256}
      tensor_parallel: 1
      max_num_batched_tokens: 2048
      steps: {h100: {roofline: true}}
  guard: {after: {chat: 1}, latency: {cpu: {1: 20 ms, 4: 50 ms}}}
"""


def plan_spec(folder: Path, text: str = SPEC, verb: Any = plan, **options: Any) -> Report:
    run = Run(RunDir(folder / "run"), LocalEngine(1), base=folder, options=options)  # type: ignore[arg-type]
    report = verb(validate(PipelineSpec, parse(text, "rag.yaml")), run)
    return from_data(to_data(report))


def test_a_report_prices_and_times_the_whole_pipeline(tmp_path: Path) -> None:
    """The price is that of all stages; TTFT counts from the arrival at the embedder; a committed plan is checked."""
    report = plan_spec(tmp_path)
    assert report.verdict is Verdict.YES
    decision = report.decision or {}
    assert set(decision["stages_around"]) == {"embed", "guard"}
    rows = next(table for table in report.tables if table.name == "stages around the engine").rows
    around = sum(float(row[-1] or 0) for row in rows)
    engine = next(table for table in report.tables if table.name == "engines").rows[0][-1]
    assert report.metrics["cost_per_hour"].value == pytest.approx(around + float(engine or 0))
    assert (report.metrics["ttft_p99_ms"].value or 0) >= 12
    assert "before the engine" in dict(report.lines)["stages"]
    saved = {"decision": decision}
    assert plan_spec(tmp_path, SPEC.replace("rate: 12/s", "rate: 11/s"), baseline_plan=saved).verdict is Verdict.YES
    assert plan_spec(tmp_path, SPEC.replace("rate: 12/s", "rate: 90/s"), baseline_plan=saved).verdict is Verdict.NO
    with pytest.raises(UnfoldError, match="without other stages; the plan has embed, guard"):
        export_vllm(report)
    other = {"decision": {**decision, "stages_around": {"embed": {"hardware": "gone"}}}}
    with pytest.raises(UnfoldError, match="other stages than the spec"):
        plan_spec(tmp_path, SPEC.replace("rate: 12/s", "rate: 11/s"), baseline_plan=other)


def test_targets_that_the_stages_alone_miss_give_no_plan(tmp_path: Path) -> None:
    """An embedder slower than the TTFT is a no, whatever the engines."""
    assert plan_spec(tmp_path, SPEC.replace("ttft_p99: 400 ms", "ttft_p99: 10 ms")).verdict is Verdict.NO


def test_fresh_samples_pass_the_stages_around_the_engine(tmp_path: Path) -> None:
    """Wide targets are met on all fresh samples; one that the stages before the engine meet by a hair is not."""
    write_trace(tmp_path, 0, 400)
    start = SPEC.index("arrivals:")
    text = SPEC[:start] + "arrivals: {trace: trace.csv}" + SPEC[SPEC.index("\n", start) :]
    wide = plan_spec(tmp_path, text.replace("ttft_p99: 400 ms", "ttft_p99: 20 s").replace("p99: 4 s", "p99: 60 s"))
    assert wide.metrics["fresh_share"].value == 1
    assert "24 of 24" in dict(wide.lines)["fresh samples"]
    measured = plan_spec(tmp_path, text).metrics["ttft_p99_ms"].value or 0
    hair = plan_spec(tmp_path, text.replace("ttft_p99: 400 ms", f"ttft_p99: {measured * 1.001:.3f} ms"))
    assert hair.verdict is Verdict.YES
    assert (hair.metrics["fresh_share"].value or 0) < 1


def write_trace(folder: Path, seed: int, count: int = 300) -> None:
    rng = np.random.default_rng(seed)
    columns = np.cumsum(rng.exponential(1 / 12, count)), rng.integers(50, 900, count), rng.integers(1, 90, count)
    rows = zip(*columns, strict=True)
    text = "\n".join(f"{at:.6f},{prompt},{output}" for at, prompt, output in rows)
    (folder / "trace.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{text}\n", "utf-8")


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_of_its_own_trace_gives_what_the_plan_states(tmp_path: Path, seed: int) -> None:
    """With a constant number of engines, replay and plan are the same simulation of all stages, at the same price."""
    write_trace(tmp_path, seed)
    start = SPEC.index("arrivals:")
    text = SPEC[:start] + "arrivals: {trace: trace.csv}" + SPEC[SPEC.index("\n", start) :] + "tuner: {policy: fixed}\n"
    planned = plan_spec(tmp_path, text)
    saved = {"decision": planned.decision}
    trace = str(tmp_path / "trace.csv")
    replayed = [plan_spec(tmp_path, text, replay=trace, **options) for options in ({}, {"plan": saved})]
    assert replayed[0].metrics["attainment"].value == replayed[1].metrics["attainment"].value
    rules = next(table for table in replayed[1].tables if table.name == "rules")
    row = next(row for row in rules.rows if row[0] == "fixed plan")
    for cell, name in ((row[2], "ttft_p99_ms"), (row[3], "tpot_p99_ms"), (row[4], "cost_per_hour")):
        assert cell == pytest.approx(planned.metrics[name].value)
    assert (replayed[1].metrics["attainment"].value or 0) >= 97
    names = [row[0] for table in replayed[1].tables if table.name == "stages around the engine" for row in table.rows]
    assert names == ["embed", "guard"]
    assert "before the engine" in dict(replayed[1].lines)["stages"]
