"""The running pipeline answers, loses no query when replicas die, and a replay lands near its estimate."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.control.prometheus import select_queries
from unfold_pipeline.problem.build import build_live_sample, fingerprint_model, locate_model
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.replay.prediction import estimate_latencies
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.models.data_flow import encode_answer
from unfold_pipeline.runtime.stage import Query, read_clock
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import ModelSpec
from unfold_pipeline.serving.app import build_app
from unfold_pipeline.serving.inference import ServiceSettings
from unfold_pipeline.verbs import serve
from unfold_pipeline.verbs.profile import profile
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

CODE = """import os, time

def nap(rows):
    time.sleep(0.01 + 0.005 * len(rows))
    return rows.sum(axis=1)

class InvalidArgument(Exception):  # as ONNX Runtime raises it
    pass

def look_up(rows):
    if rows.max() > 99:
        raise InvalidArgument(f"[ONNXRuntimeError] : 2 : running Gather. Status Message: idx={rows.max():.0f}")
    return nap(rows)

def fail(rows):
    os._exit(1)

def break_down(rows):
    if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
        raise ValueError("the weights are gone")
    return nap(rows)
"""
CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.015), (4, 0.03)]))
PIPE = Pipeline((Stage("a", (), (CPU,)), Stage("b", (Edge(0, 0.5),), (CPU,))))
PLAN = (StageConfig(0, 4, 1), StageConfig(0, 4, 1))


def sources(folder: Path, *names: str) -> list[ModelSource]:
    """Models of the file of this test."""
    (folder / "served.py").write_text(CODE)
    return [ModelSource(code=f"served:{name}", folder=str(folder)) for name in names]


def test_routes_equal_the_visits_of_the_sample() -> None:
    """Followed item by item, each query makes the visits of the sample and ends exactly once."""
    cpu = (CPU,)
    graph = Pipeline(
        (
            Stage("in", (), cpu),
            Stage("left", (Edge(0, 0.7),), cpu),
            Stage("right", (Edge(0, 0.6),), cpu),
            Stage("join", (Edge(1), Edge(2)), cpu),
            Stage("crops", (Edge(3, 0.5),), cpu, fan_out=1.7),
        )
    )
    sample = draw_sample(graph, np.arange(300.0), np.random.default_rng(0))
    way = build_routes(graph, sample)
    seen = [0] * 5
    ended = 0
    for query in range(300):
        todo = list(way.find_entries(query))
        while todo:
            item = todo.pop(0)
            seen[item[0]] += 1
            assert way.query_of(item) == query
            todo += way.release_children(item)
            ended += way.complete_item(item)
    assert seen == [visits.query.size for visits in sample.visits]
    assert ended == 300


def test_model_that_cannot_load_stops_the_start(tmp_path: Path) -> None:
    """A missing model is reported at the start with the key of the stage, and no replica remains."""
    runtime = LocalRuntime(plan_stages(["a", "b"], sources(tmp_path, "none", "nap"), PLAN))
    with pytest.raises(UnfoldError, match=r"stages.a.model: replicas of a do not start: cannot import served:none"):
        asyncio.run(runtime.start())
    assert not any(stage.workers for stage in runtime.stages)


def test_model_start_limits_loading(tmp_path: Path) -> None:
    """Loading may take as long as ``model.start``, and a late stage is reported with that key."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(30)\ndef late(rows):\n    return rows\n")
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True)
    model = ModelSpec.model_validate({"code": "slow:late", "start": "500 ms"})
    source = locate_model("b", model, run)
    runtime = LocalRuntime(plan_stages(["b"], [source], PLAN[:1]))
    with pytest.raises(UnfoldError, match=r"stages.b.model: replicas of b did not load .* \(start: 10 min"):
        asyncio.run(runtime.start())
    assert not any(stage.workers for stage in runtime.stages)
    assert fingerprint_model(source, model) == fingerprint_model(source, ModelSpec(code="slow:late"))


def test_inference_over_http(tmp_path: Path) -> None:
    """A request with three rows gets three answers of each visited stage; a bad one, or a row of one, gets 400."""
    runtime = LocalRuntime(plan_stages(["a", "b"], sources(tmp_path, "nap", "look_up"), PLAN))
    app = build_app("pipe", PIPE, runtime, 2, ServiceSettings(0))

    async def ask(path: str, body: bytes = b"", method: str = "GET") -> tuple[int, bytes]:
        sent: list[dict[str, object]] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)  # type: ignore[arg-type]
        return int(str(sent[0]["status"])), b"".join(bytes(item.get("body", b"")) for item in sent[1:])  # type: ignore[call-overload]

    async def scene() -> list[tuple[int, bytes]]:
        await runtime.start()
        good = b'{"inputs":[{"name":"x","shape":[3,2],"datatype":"FP32","data":[1,2,3,4,5,6]}]}'
        found = [
            await ask("/v2/models/pipe/infer", good, "POST"),
            await ask("/v2/models/pipe/infer", b"{}", "POST"),
            await ask("/v2/models/pipe/infer", good.replace(b"4,5", b"4e3,5"), "POST"),
            await ask("/v2/health/ready"),
            await ask("/status"),
        ]
        await runtime.stop()
        return found

    found = asyncio.run(scene())
    assert [code for code, _ in found] == [200, 400, 400, 200, 200]
    assert b"row 2: the model of stage b cannot handle it: idx=4000" in found[2][1]
    assert b'"data":["3.0","7.0","11.0"]' in found[0][1]
    assert b'"served":6' in found[4][1]


NAPS = """
version: 1
kind: pipeline
name: naps
slo: {p99: 600 ms}
arrivals: {process: poisson, rate: 15/s, duration: 20 s}
hardware: {core: {price: $0.05/h, quota: 2}}
stages:
  nap: {model: {code: "served:nap", features: 2}, max_batch: 4}
"""


@pytest.mark.e2e
def test_replay_reports_measured_and_estimated_latencies(tmp_path: Path) -> None:
    """A replay on real processes loses no query and reports both sides."""
    (tmp_path / "served.py").write_text(CODE)
    spec = validate(PipelineSpec, parse(NAPS, "naps.yaml"))
    np.savez(tmp_path / "t.npz", arrival_s=np.cumsum(np.random.default_rng(0).exponential(1 / 15, 60)))
    options = {"replay": str(tmp_path / "t.npz")}
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, options=options)
    profile(spec, run)
    report = serve.serve(spec, run)
    assert isinstance(report, Report)
    values = {name: metric.value for name, metric in report.metrics.items()}
    assert values["lost"] == 0
    assert f"{(values['attainment'] or 0) * 100:.2f} % within" in report.headline
    measured, estimated = values["p99_ms"], values["estimated_p99_ms"]
    assert measured is not None
    assert estimated is not None
    # no upper bound: a busy machine makes real processes wait
    assert measured > 0.2 * estimated


@pytest.mark.e2e
@pytest.mark.parametrize("condition", ["", ", when: max(output) > 0"])
def test_a_replay_names_conditions_that_it_does_not_test(tmp_path: Path, condition: str) -> None:
    """Routes of a replay are drawn with the fractions of the plan; the report says so where conditions exist."""
    (tmp_path / "served.py").write_text(CODE)
    stage = f'{{after: {{nap: 50%}}{condition}, latency: {{core: {{1: 15 ms}}}}, model: {{code: "served:nap"}}}}'
    text = NAPS.replace("max_batch: 4", "latency: {core: {1: 15 ms}}") + f"  then: {stage}\n"
    np.savez(tmp_path / "t.npz", arrival_s=np.arange(10) / 20)
    options = {"replay": str(tmp_path / "t.npz")}
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, options=options)
    report = serve.serve(validate(PipelineSpec, parse(text, "naps.yaml")), run)
    assert isinstance(report, Report)
    routes = dict(report.lines).get("routes", "")
    assert ("the conditions of then are tested by unfold serve only" in routes) == bool(condition)


@pytest.mark.e2e
def test_a_replay_without_an_answer_is_a_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that fails on every batch loses all queries: the verdict is no, and the log has the reason."""
    (tmp_path / "served.py").write_text(CODE)
    spec = validate(PipelineSpec, parse(NAPS.replace("served:nap", "served:break_down"), "naps.yaml"))
    np.savez(tmp_path / "t.npz", arrival_s=np.arange(10) / 20)
    options = {"replay": str(tmp_path / "t.npz")}
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, options=options)
    profile(spec, run)
    (tmp_path / "broken").touch()
    report = serve.serve(spec, run)
    assert isinstance(report, Report)
    assert report.verdict == Verdict.NO
    assert report.metrics["lost"].value == 10
    assert [row[3] for row in report.tables[0].rows] == ["–"] * 3
    assert "the weights are gone" in caplog.text


@pytest.mark.parametrize(
    ("answer", "futures"),
    [
        ([0.25, math.nan], [0.25, None]),
        ([[math.inf], [-math.inf]], [[None], [None]]),
        ({"a": math.nan}, {"a": None}),
        (math.nan, None),
        (None, None),
        (["a", 1, True], ["a", 1, True]),
    ],
)
def test_stage_answers_are_json(answer: object, futures: object) -> None:
    """Every answer becomes valid JSON, with null for NaN and infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(encode_answer(answer), parse_constant=refuse) == futures


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("", "", False), (", quota: 2", "", True), (", quota: 2}}", "}}\ntuner: {policy: fixed}", False)],
)
def test_unlimited_scaling_is_warned_of(tmp_path: Path, old: str, new: str, said: bool) -> None:
    """Serving on this machine without a quota warns of the number of processes that the rule may start."""
    (tmp_path / "served.py").write_text(CODE)
    text = NAPS.replace(old, new).replace("max_batch: 4", "latency: {core: {1: 15 ms}}")
    heard: list[logging.LogRecord] = []
    log = logging.Logger("futures")  # noqa: LOG001 - of this test alone
    log.addFilter(lambda record: not heard.append(record))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, log=log)
    serve.serve(validate(PipelineSpec, parse(text, "naps.yaml")), run)
    assert [record.args[0] for record in heard if record.args] == (["core"] if said else [])


def test_replicas_without_a_core_each_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan assumes a core for each replica; this machine may have fewer."""
    (tmp_path / "served.py").write_text(CODE)
    text = NAPS.replace("max_batch: 4", "latency: {core: {1: 15 ms}}").replace("rate: 15/s", "rate: 80/s")
    heard: list[logging.LogRecord] = []
    log = logging.Logger("cores")  # noqa: LOG001 - of this test alone
    log.addFilter(lambda record: not heard.append(record))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, log=log)
    for cores in (8, 1):
        monkeypatch.setattr(serve, "available_cores", lambda count=cores: count)
        serve.serve(validate(PipelineSpec, parse(text, "naps.yaml")), run)
    messages = [record.getMessage() for record in heard]
    assert [message for message in messages if "this machine has" in message] == messages[-1:]
    assert messages[-1].startswith("replicas can keep 2 cores busy, and this machine has 1;")


def test_stages_on_other_hardware_are_warned_of(tmp_path: Path) -> None:
    """A stage that the plan places on a GPU is served on this machine all the same."""
    (tmp_path / "served.py").write_text(CODE)
    text = NAPS.replace("max_batch: 4", "latency: {l4: {1: 15 ms}}").replace("core: {", "l4: {price: $1/h}, core: {")
    heard: list[logging.LogRecord] = []
    log = logging.Logger("hardware")  # noqa: LOG001 - of this test alone
    log.addFilter(lambda record: not heard.append(record))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, log=log)
    for machine in ("core", "l4"):
        serve.serve(validate(PipelineSpec, parse(f"{text}machine: {machine}\n", "naps.yaml")), run)
    (message,) = [record.getMessage() for record in heard if "places it" in record.getMessage()]
    assert "the plan places it on l4, and it runs on this machine (core in the spec)" in message


@pytest.mark.parametrize(("key", "count"), [("", 1), (", features: 3", 0)])
def test_an_assumed_number_of_features_is_warned_of(tmp_path: Path, key: str, count: int) -> None:
    """Code does not say how many numbers it reads: unless the spec does, requests are those of the digits."""
    (tmp_path / "served.py").write_text(CODE)
    text = NAPS.replace(", features: 2", key).replace("max_batch: 4", "latency: {core: {1: 15 ms}}")
    heard: list[logging.LogRecord] = []
    log = logging.Logger("width")  # noqa: LOG001 - of this test alone
    log.addFilter(lambda record: not heard.append(record))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, log=log)
    serve.serve(validate(PipelineSpec, parse(text, "naps.yaml")), run)
    messages = [record.getMessage() for record in heard if "digits data set" in record.getMessage()]
    assert len(messages) == count
    assert all("queries have 64 numbers" in message for message in messages)


def test_full_pipeline_rejects_by_the_head() -> None:
    """While the maximum of rows is in flight, requests are rejected by their head and counted."""
    app = build_app("pipe", PIPE, LocalRuntime([]), 2, ServiceSettings(0))
    (gate,) = app.app.gates.values()
    assert gate.full() == 0
    app.gateway.gate.in_flight = app.gateway.limits.queue_rows
    assert gate.full() == 1
    gate.refuse(2)
    assert app.gateway.record.outcomes["refused"] == app.gateway.record.arrivals.total == 2
    text = app.app.metrics.text()
    assert b'unfold_requests_total{code="429",model="pipe"} 2.0' in text
    # what autoscalers read counts them
    demand = select_queries("pipe").removesuffix("}")
    assert f'{demand},outcome="refused"}} 2.0'.encode() in text


def test_partial_batch_is_delayed(tmp_path: Path) -> None:
    """Queries within the wait form one batch, which starts when it is full or the oldest has waited."""
    runtime = LocalRuntime(plan_stages(["a"], sources(tmp_path, "nap"), PLAN[:1], max_wait_s=0.3))
    alone = Pipeline(PIPE.stages[:1])

    async def asked(gaps: list[float]) -> tuple[float, int]:
        """Return the seconds until all are answered, and how many batches they were."""
        loop, before = asyncio.get_running_loop(), runtime.stages[0].batches
        way = build_routes(alone, draw_sample(alone, np.zeros(len(gaps)), np.random.default_rng(0)))
        futures: list[asyncio.Future[object]] = [loop.create_future() for _ in gaps]
        began = read_clock()
        for number, gap in enumerate(gaps):
            await asyncio.sleep(gap)
            runtime.submit(Query(np.ones(2, dtype=np.float32), way, number, futures[number].set_result))
        await asyncio.wait_for(asyncio.gather(*futures), 30)
        return read_clock() - began, runtime.stages[0].batches - before

    async def scene() -> list[tuple[float, int]]:
        await runtime.start()
        try:
            return [await asked([0.0, 0.02, 0.02]), await asked([0.0] * 4), await asked([0.0] * 5)]
        finally:
            await runtime.stop()

    some, full, more = asyncio.run(scene())
    assert some[0] >= 0.3
    assert some[1] == 1
    assert full[0] < 0.25
    assert full[1] == 1
    assert more[0] >= 0.3
    assert more[1] == 2


@pytest.mark.e2e
@pytest.mark.parametrize("policy", ["paper", "ratio", "table"])
def test_estimate_uses_the_replicas_that_served(tmp_path: Path, policy: str) -> None:
    """If a rule adds replicas in a replay, the estimate uses them and is better than that of the plan."""
    (tmp_path / "served.py").write_text(CODE)
    np.savez(tmp_path / "t.npz", arrival_s=np.cumsum(np.random.default_rng(0).exponential(1 / 150, 3000)))
    spec = validate(PipelineSpec, parse(f"{NAPS}tuner: {{policy: {policy}, activation: 1 s}}", "naps.yaml"))
    options = {"replay": str(tmp_path / "t.npz")}
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, allow_code=True, options=options)
    profile(spec, run)
    report = serve.serve(spec, run)
    assert isinstance(report, Report)
    assert report.lines[:2] == (
        ("replicas", "nap 1 planned, 2 at the end"),
        ("estimate", "with the replicas and batch sizes that served at each moment"),
    )
    ready = serve.prepare_deployment(spec, run)
    sample = build_live_sample(spec, ready.problem, tmp_path / "t.npz", run)
    fixed = estimate_latencies(serve.build_replay_setup(ready, sample, run))
    assert (report.metrics["estimated_attainment"].value or 0.0) > (fixed <= ready.problem.slo_s).mean() + 0.05
