"""The ingress of an exported pipeline joins the stages, and Ray Serve runs the exported config as it is."""

from __future__ import annotations

import asyncio
import collections
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
from unfold_pipeline.runtime.ray_ingress import InvalidBodyError, PipelineIngress, parse_rows
from unfold_pipeline.runtime.ray_replica import ModelHung, RowAnswer
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
class HttpRequest:
    """A request as starlette gives it."""

    content: bytes

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


def test_http_answers_and_errors() -> None:
    """A body that is none is a 400 with an example; a hung model is a 500; rows get an output per stage."""
    pytest.importorskip("starlette", reason="starlette comes with Ray Serve")

    def ask(content: bytes, answer: Any = None) -> tuple[int, dict[str, Any]]:
        handles = (StageHandle(str(stage["name"]), answer=answer) for stage in STAGES)
        reply = asyncio.run(PipelineIngress("p", STAGES, *handles, seed=0)(HttpRequest(content)))
        return reply.status_code, json.loads(reply.body)

    code, reply = ask(json.dumps(BODY).encode())
    assert code == 200
    assert [item["name"] for item in reply["outputs"]] == ["in", "left", "right", "join"]
    assert reply["outputs"][0]["data"] == ["3.0"]
    for content in (b"", b"[]", b"{", b'{"inputs": []}', b'{"inputs": 3}', b"null"):
        code, reply = ask(content)
        assert code == 400
        assert "must be like" in reply["error"]
    assert ask(json.dumps(BODY).encode(), ModelHung())[0] == 500
    # an id that an embedding lacks
    code, reply = ask(json.dumps(BODY).encode(), InvalidRequest("idx=7"))
    assert (code, reply["error"]) == (400, "a model cannot handle one of the rows: idx=7")
    # no JSON has NaN, bytes or complex numbers
    code, reply = ask(json.dumps(BODY).encode(), RowAnswer(np.array([math.nan, 1.0]), 1, 0.001))
    assert (code, reply["outputs"][0]["data"]) == (200, ["[null,1.0]"])
    code, reply = ask(json.dumps(BODY).encode(), RowAnswer(np.array([b"x"]), 1, 0.001))
    assert (code, reply["outputs"][0]["data"]) == (200, ['["eA=="]'])
    assert ask(json.dumps(BODY).encode(), RowAnswer(np.array([1j]), 1, 0.001))[0] == 500


def test_shape_must_be_filled() -> None:
    """Data that does not fill its shape, or is no row, is refused."""
    for shape, data in (([1, 3], [1, 2]), ([2], [1, 2]), ([0, 2], []), ([1, 1], ["a"]), ([float("inf"), 2], [1, 2])):
        with pytest.raises(InvalidBodyError):
            parse_rows(json.dumps({"inputs": [{"name": "x", "shape": shape, "data": data}]}).encode())


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
