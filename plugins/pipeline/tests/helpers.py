"""Pipelines, traffic and reports that several tests of this plugin share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Plan, Stage, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime.stage import PlannedStage
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Report, Run, RunDir, dump
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import from_data, to_data
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

DEEP_SPEC = """version: 1
kind: pipeline
name: deep
slo: {p99: 3 s}
arrivals: {process: poisson, rate: 5/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages: {slow: {latency: {core: {1: 1 s}}, max_batch: 1}}
"""
"""One stage that needs more than two replicas."""
EXPORT_SPEC = """
version: 1
kind: pipeline
name: tree
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 40/s, duration: 10 s}
hardware: {core: {price: $0.05/h}, g5.xlarge: {}}
stages:
  enter: {latency: {core: {1: 10 ms, 8: 40 ms}}, wait: 2 ms}
  left: {after: {enter: 50%}, latency: {g5.xlarge: {1: 20 ms, 8: 40 ms}}}
  right_one: {after: {enter: 100%}, latency: {core: {1: 10 ms, 4: 30 ms}}}
  last: {after: {left: 100%}, latency: {core: {1: 10 ms, 4: 30 ms}}}
"""


def ignore_progress(_step: str, _done: int, _total: int) -> None:
    """Take a report of progress and drop it."""


def option(hardware: str, price: float, base: float, slope: float, top: int = 4) -> HardwareOption:
    """Hardware with the latency ``base + slope * batch`` in seconds."""
    return HardwareOption(hardware, price, interpolate_latency([(1, base + slope), (top, base + slope * top)]))


def plan_stages(
    names: Sequence[str], sources: Sequence[ModelSource], plan: Plan, **settings: Any
) -> list[PlannedStage]:
    """Stages of a plan, all with the same settings."""
    return [
        PlannedStage(name=name, source=source, config=config, **settings)
        for name, source, config in zip(names, sources, plan, strict=True)
    ]


def chain(*options: tuple[HardwareOption, ...]) -> Pipeline:
    """Stages one after the other."""
    return Pipeline(tuple(Stage(f"s{i}", (Edge(i - 1),) if i else (), offered) for i, offered in enumerate(options)))


def diamond() -> Pipeline:
    """Two branches, one of them taken at random, that join; the last stage has several items per query."""
    cpu = (option("cpu", 0.05, 0.01, 0.005),)
    return Pipeline(
        (
            Stage("in", (), cpu),
            Stage("left", (Edge(0),), cpu),
            Stage("right", (Edge(0, 0.4),), (option("cpu", 0.05, 0.03, 0.01),)),
            Stage("join", (Edge(1), Edge(2)), cpu),
            Stage("crops", (Edge(3, 0.6),), cpu, fan_out=2.5),
        )
    )


def build_checker(
    pipeline: Pipeline, slo_s: float, *, rate: float = 40.0, seconds: float = 20.0, seed: int = 0
) -> SloChecker:
    """The SLO checker of bursty traffic."""
    arrivals = processes.gamma_arrivals(rate, seconds, np.random.default_rng(seed), scv=4.0)
    return build_slo_checker(pipeline, [draw_sample(pipeline, arrivals, np.random.default_rng([seed, 1]))], slo_s)


def plan_report(folder: Path, text: str = EXPORT_SPEC) -> Report:
    """The report of a plan as the command line stores it."""
    spec = validate(PipelineSpec, parse(text, "tree.yaml"))
    report = to_data(plan(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder)))
    report["provenance"] |= {"spec": dump(spec)}
    return from_data(report)


def list_configs(report: Report) -> dict[str, tuple[int, int]]:
    """Batch size and replicas of each stage of a plan."""
    assert report.decision is not None
    return {name: (config["batch"], config["replicas"]) for name, config in report.decision["stages"].items()}
