"""The ingress of an exported pipeline joins the stages, and Ray Serve runs the exported config as it is."""

from __future__ import annotations

import asyncio
import collections
import gzip
import json
import math
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from plugins.pipeline.tests.helpers import plan_report
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.runtime.ray_ingress import PipelineIngress, resolve_exported_stages
from unfold_pipeline.runtime.ray_replica import ModelHung, RowAnswer
from unfoldkit.api import UnfoldError
from unfoldkit.serving.oip.errors import InvalidRequest

QUERIES = 1000
START_S = 200.0
STAGES = [
    {"name": "in", "after": {}, "share": 1.0, "fan_out": 1.0},
    {"name": "left", "after": {"in": 0.7}, "share": 1.0, "fan_out": 1.0},
    {"name": "right", "after": {"in": 0.4}, "share": 1.0, "fan_out": 1.0},
    {"name": "join", "after": {"left": 1.0, "right": 1.0}, "share": 1.0, "fan_out": 1.0},
]
SHARES = {"in": 1.0, "left": 0.7, "right": 0.4, "join": 1 - 0.3 * 0.6}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


@dataclass(slots=True)
class StageHandle:
    """Stands for the handle of a deployment: it answers after a while, and logs when."""

    name: str
    log: list[tuple[str, str]] = field(default_factory=list)
    answer: Any = None

    async def remote(self, row: Any) -> Any:
        """Answer a row."""
        self.log.append((self.name, "begin"))
        await asyncio.sleep(0.001 if self.name != "right" else 0.003)
        self.log.append((self.name, "end"))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or RowAnswer(float(row.sum()), 1, 0.001)


@dataclass(frozen=True, slots=True)
class RawHeaders:
    """Headers as starlette gives them."""

    raw: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as starlette gives it."""

    content: bytes
    headers: RawHeaders = RawHeaders()

    async def body(self) -> bytes:
        """Return the body."""
        return self.content


def check_counts(counts: collections.Counter[str], shares: dict[str, float], queries: int) -> None:
    """Hold the visits of the stages against the probabilities of the plan, within 3 sigma."""
    for name, share in shares.items():
        sigma = math.sqrt(queries * share * (1 - share))
        assert abs(counts[name] - queries * share) <= 3 * sigma, name


@pytest.mark.slow
def test_visits_follow_the_probabilities_and_joins_wait() -> None:
    """Of 1,000 queries each stage gets its share, and a join begins after the last of its parents."""
    log: list[tuple[str, str]] = []
    ingress = PipelineIngress("p", STAGES, *(StageHandle(str(stage["name"]), log) for stage in STAGES), seed=3)
    counts: collections.Counter[str] = collections.Counter()

    async def scene() -> None:
        for _ in range(QUERIES):
            log.clear()
            answers = await ingress.answer_row(np.array([1.0, 2.0], np.float32))
            counts.update(list(answers))
            begun = [name for name, event in log if event == "begin"]
            assert sorted(begun) == sorted(answers)
            if "join" in answers:
                parents = {"left", "right"} & set(answers)
                ends = [log.index((name, "end")) for name in parents]
                assert log.index(("join", "begin")) > max(ends)

    asyncio.run(scene())
    check_counts(counts, SHARES, QUERIES)


def ask(
    body: object, answer: Any = None, *, features: int | None = None, headers: RawHeaders = RawHeaders()
) -> tuple[int, dict[str, Any]]:
    """Send a body, as JSON unless it is bytes, to stages that all answer the same; return status and response."""
    pytest.importorskip("starlette", reason="starlette comes with Ray Serve")
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handles = (StageHandle(str(stage["name"]), answer=answer) for stage in STAGES)
    ingress = PipelineIngress("p", STAGES, *handles, seed=0, features=features)
    reply = asyncio.run(ingress(HttpRequest(content, headers)))
    return reply.status_code, json.loads(reply.body)


def test_http_answers_and_errors() -> None:
    """A row that a model refuses is a 400 with row and stage; a hung model is a 500; rows get an output per stage."""
    code, reply = ask(BODY)
    assert code == 200
    assert [item["name"] for item in reply["outputs"]] == ["in", "left", "right", "join"]
    assert reply["outputs"][0]["data"] == ["3.0"]
    code, reply = ask(BODY, ModelHung())
    assert (code, reply["error"]) == (500, "the model of stage in did not answer")
    code, reply = ask(BODY, RuntimeError("shapes do not match"))
    assert (code, reply["error"]) == (500, "the model of stage in failed on this input")
    # an id that an embedding lacks
    code, reply = ask(BODY, InvalidRequest("idx=7"))
    assert (code, reply["error"]) == (400, "row 1: the model of stage in cannot handle it: idx=7")
    # no JSON has NaN, bytes or complex numbers
    code, reply = ask(BODY, RowAnswer(np.array([math.nan, 1.0]), 1, 0.001))
    assert (code, reply["outputs"][0]["data"]) == (200, ["[null,1.0]"])
    code, reply = ask(BODY, RowAnswer(np.array([b"x"]), 1, 0.001))
    assert (code, reply["outputs"][0]["data"]) == (200, ['["eA=="]'])
    assert ask(BODY, RowAnswer(np.array([1j]), 1, 0.001))[0] == 500


@pytest.mark.parametrize("features", [None, 2])
def test_bodies_that_are_no_request_are_refused(features: int | None) -> None:
    """A body gets 400 for what ``unfold serve`` refuses, whether or not the models state how long a row is."""
    tensor = BODY["inputs"][0]
    bodies: list[object] = [b"", [], b"{", {"inputs": []}, {"inputs": 3}, b"null", b'{"inputs": [{"shape": []}]}']
    changes: list[dict[str, Any]] = [
        {"shape": [1, 3]},
        {"shape": [2]},
        {"shape": [0, 2], "data": []},
        {"shape": [-1, 2]},
        {"shape": [1.5, 2]},
        {"data": ["1", "2"]},
        {"data": [True, False]},
        {"data": [None, 1]},
        {"data": [[[1], [2]]]},
        {"data": [1.5, 2], "datatype": "INT64"},
        {"datatype": "BYTES"},
        {"name": "y"},
    ]
    bodies += [{"inputs": [tensor | change]} for change in changes]
    bodies += [{"inputs": [tensor, tensor | {"name": "z"}]}, BODY | {"outputs": [{"name": "none"}]}]
    assert {ask(body, features=features)[0] for body in bodies} == {400}
    assert ask(b" " * 5 * 2**20, features=features)[0] == 413


def test_rows_are_as_long_as_the_models_take_them() -> None:
    """A row of another length gets 400; where no model states the length, each request does."""
    longer = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}]}
    code, reply = ask(longer, features=2)
    assert (code, "it must be [-1, 2]" in reply["error"]) == (400, True)
    assert ask(longer)[1]["outputs"][0]["data"] == ["6.0", "15.0"]


def test_stages_that_read_the_request_agree_on_its_length() -> None:
    """The length of a row is what the models state; models that state different ones are refused."""

    def describe(name: str, **model: object) -> dict[str, object]:
        return {"name": name, "after": {}, "share": 1.0, "fan_out": 1.0, "code": "models:total", **model}

    assert resolve_exported_stages([describe("a"), describe("b")])[2] is None
    assert resolve_exported_stages([describe("a"), describe("b", features=3), describe("c", columns=[2])])[2] == 3
    with pytest.raises(UnfoldError, match=r"stages.c.model: reads 4 numbers per row, and queries have 3"):
        resolve_exported_stages([describe("b", features=3), describe("c", features=4)])


def test_ids_outputs_and_encodings_of_clients() -> None:
    """A request may have an id, select outputs, be compressed, and hold its rows as bytes."""
    code, reply = ask(BODY | {"id": "q7", "outputs": [{"name": "left"}]})
    assert (code, reply["id"], [item["name"] for item in reply["outputs"]]) == (200, "q7", ["left"])
    compressed = gzip.compress(json.dumps(BODY).encode())
    assert ask(compressed, headers=RawHeaders(((b"content-encoding", b"gzip"),)))[0] == 200
    rows = np.array([[1, 2]], np.float32).tobytes()
    head = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(rows)}}
    text = json.dumps({"inputs": [head]}).encode()
    length = RawHeaders(((b"inference-header-content-length", b"%d" % len(text)),))
    assert ask(text + rows, headers=length)[1]["outputs"][0]["data"] == ["3.0"]


SPEC = """
version: 1
kind: pipeline
name: export
slo: {p99: 600 ms}
arrivals: {process: poisson, rate: 5/s, duration: 10 s}
hardware: {core: {price: $0.05/h, quota: 3}}
stages:
  in:
    latency: {core: {1: 10 ms, 4: 20 ms}}
    model: {code: "exported_models:total", features: 2, outputs: {output: 1}}
  left:
    after: {in: 50%}
    latency: {core: {1: 10 ms, 4: 20 ms}}
    model: {code: "exported_models:total", features: 1, outputs: {output: 1}}
  join:
    after: {in: 100%, left: 100%}
    missing: 0
    latency: {core: {1: 10 ms}}
    model: {code: "exported_models:total", features: 2}
"""


def wait_until_running(serve: Any, seconds: float) -> None:
    """Wait for every application: Ray's own wait ends after a minute, which a busy machine needs for the replicas."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        applications = serve.status().applications.values()
        if applications and all(application.status == "RUNNING" for application in applications):
            return
        time.sleep(0.2)
    pytest.fail(f"the applications do not run after {seconds:.0f} s: {serve.status()}")


@pytest.mark.e2e
@pytest.mark.ray
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
def test_exported_config_answers_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``serve deploy`` hands to the controller is handed to it here: 1,000 queries are answered over HTTP."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "exported_models.py").write_text(
        "def total(rows):\n    return rows.reshape(len(rows), -1).sum(axis=1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = yaml.safe_load(export_ray_serve(plan_report(tmp_path, SPEC)))
    for deployment in config["applications"][0]["deployments"]:
        # a machine of two cores; a cluster of other tests does not know the folder
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    config["applications"][0]["runtime_env"] = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    is_own = not ray.is_initialized()
    if is_own:
        # never a cluster of somebody else on this machine
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        # an application of other tests listens on another port
        serve.shutdown()
        serve.start(http_options={"port": 18123})
        client = serve.context._get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate(config))
        wait_until_running(serve, START_S)
        counts: collections.Counter[str] = collections.Counter()
        rows = [[float(number), 1.0] for number in range(100)]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [100, 2], "data": rows}]}
        for _ in range(QUERIES // 100):
            request = urllib.request.Request("http://127.0.0.1:18123/", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=60) as response:
                outputs = json.load(response)["outputs"]
            values = {output["name"]: [json.loads(value) for value in output["data"]] for output in outputs}
            assert values["in"] == [sum(row) for row in rows]
            # the join adds what both branches pass to it
            assert values["join"] == [a + (b or 0) for a, b in zip(values["in"], values["left"], strict=True)]
            for name, answers in values.items():
                counts[name] += sum(value is not None for value in answers)
        check_counts(counts, {"in": 1.0, "left": 0.5, "join": 1.0}, QUERIES)
    finally:
        serve.shutdown()
        # the cluster of other tests is theirs to end: they would wait for it
        if is_own:
            ray.shutdown()
