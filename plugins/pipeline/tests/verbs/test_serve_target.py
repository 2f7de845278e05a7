"""The verb ``serve --target``, with a deployment in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plugins.pipeline.tests.control.test_controller import Deployment, Script, even_trace
from unfold_pipeline.control import ray_serve
from unfold_pipeline.control.demand import DemandSource
from unfold_pipeline.control.prometheus import PrometheusSource
from unfold_pipeline.control.ray_serve import RayMetricsSource
from unfold_pipeline.problem.build import build_problem
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs import serve_target as verb
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Report, Run, RunDir, Service, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """version: 1
kind: pipeline
name: two
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 10/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages:
  s0: {latency: {core: {1: 60 ms}}}
  s1: {after: {s0: 100%}, latency: {core: {1: 60 ms}}}
"""


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_dry: bool) -> Service | Report:
    """Start a controller of a deployment without its first workload."""
    spec = validate(PipelineSpec, parse(SPEC, "two.yaml"))
    directory = RunDir(folder / "run")
    decision = plan(spec, Run(directory, LocalEngine(1), base=folder)).decision
    source = Script(even_trace([10.0], 60.0), now_s=50.0)
    monkeypatch.setattr(verb, "_open_deployment", lambda *_: (Deployment(fault="absent"), source))
    options = {"plan": {"decision": decision}, "dry_run": is_dry}
    return verb.serve_target(spec, Run(directory, LocalEngine(1), base=folder, options=options), "kubernetes")


def test_a_controller_may_start_before_its_workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which a cluster starts them is no fault; the controller reports what is missing while it runs."""
    assert isinstance(start(tmp_path, monkeypatch, is_dry=False), Service)


def test_a_dry_run_refuses_an_absent_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever checks a spec must notice a misspelt name."""
    with pytest.raises(UnfoldError, match="there is no a"):
        start(tmp_path, monkeypatch, is_dry=True)


def open_ray(folder: Path, monkeypatch: pytest.MonkeyPatch, control: str) -> DemandSource:
    """Return the demand of an application whose deployments refuse with status 429; a third enters at the first."""
    text = SPEC.replace("s0: {", "s0: {share: 33%, ", 1) + "  s2: {share: 67%, latency: {core: {1: 60 ms}}}\n"
    spec = validate(PipelineSpec, parse(f"{text}control: {{{control}}}\n", "two.yaml"))
    problem = build_problem(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder))
    monkeypatch.setattr("unfoldkit.engines.ray.connect_ray", lambda _: None)
    monkeypatch.setattr(ray_serve, "read_dashboard_url", lambda _: "http://127.0.0.1:9")
    monkeypatch.setattr(ray_serve.RayServeTarget, "read_refusal_codes", lambda _: frozenset({"503", "429"}))
    return verb._open_deployment(problem, spec.control, ("s0", "s1", "s2"), "ray")[1]


PROMETHEUS = 'prometheus: "http://127.0.0.1:9"'


@pytest.mark.parametrize(
    ("control", "share"), [("", 1 / 3), (PROMETHEUS, 1 / 3), (f"arrivals: shop_queries_total, {PROMETHEUS}", 1.0)]
)
def test_the_counter_of_one_entrance_stands_for_all_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str, share: float
) -> None:
    """Ray counts by deployment, here a third of the queries, wherever it is read; a stated counter counts all."""
    source = open_ray(tmp_path, monkeypatch, control)
    assert isinstance(source, (PrometheusSource, RayMetricsSource))
    assert source.share == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(("key", "name"), [("error_code", "429"), ("application", "default")])
def test_refusals_are_read_from_prometheus_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    """They have the application and the status that its deployments state."""
    source = open_ray(tmp_path, monkeypatch, PROMETHEUS)
    assert isinstance(source, PrometheusSource)
    assert re.search(rf'{key}=~?"{name}', source.refusals)


@pytest.mark.parametrize("control", ["arrivals: shop_queries_total", 'stages: {s1: {queue: "sum(q)"}}'])
def test_promql_needs_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str) -> None:
    """A signal that a spec states is never dropped in silence."""
    with pytest.raises(UnfoldError, match=r"control\.(arrivals|stages\.s1\.queue): no Prometheus server answers this"):
        open_ray(tmp_path, monkeypatch, control)
