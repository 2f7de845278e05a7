"""Exports match the plan, and the target's own schema or loader accepts them where it is installed."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.pipeline.tests.helpers import EXPORT_SPEC, list_configs, plan_report
from unfold_pipeline.report.export_kserve import export_kserve
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.report.export_stages import assign_labels
from unfold_pipeline.report.export_triton import export_triton
from unfoldkit.api import Report, UnfoldError
from unfoldkit.report import from_data, to_data

READ = """import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
read = text_format.Parse(sys.stdin.read(), pb.ModelConfig())
print(read.max_batch_size, read.instance_group[0].count, read.dynamic_batching.max_queue_delay_microseconds)
"""


def test_ray_serve_config_matches_the_plan(tmp_path: Path) -> None:
    """Each stage is a deployment with the plan's replicas, batch size and hardware; an ingress joins them."""
    report = plan_report(tmp_path)
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    counts = {item["name"]: item["num_replicas"] for item in app["deployments"]}
    assert counts.pop("ingress") == 1
    batches = {stage["name"]: stage["batch"] for stage in app["args"]["stages"]}
    assert {name: (batches[name], counts[name]) for name in counts} == list_configs(report)
    gpus = {item["name"]: item["ray_actor_options"].get("num_gpus") for item in app["deployments"]}
    assert gpus == {"ingress": None, "enter": None, "left": 1, "right_one": None, "last": None}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_serve_accepts_the_config(tmp_path: Path) -> None:
    """Ray Serve's own schema accepts the exported config and reads the same counts."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    report = plan_report(tmp_path)
    read = schema.ServeDeploySchema.model_validate(yaml.safe_load(export_ray_serve(report)))
    counts = {item.name: item.num_replicas for item in read.applications[0].deployments}
    assert counts == {"ingress": 1, **{name: count for name, (_, count) in list_configs(report).items()}}


def test_kserve_graph_has_every_flow(tmp_path: Path) -> None:
    """Each stage is a service with its counts and appears once in the graph; a flow below 100 % has a condition."""
    report = plan_report(tmp_path)
    documents = list(yaml.safe_load_all(export_kserve(report)))
    services, graph = documents[:-1], documents[-1]
    found = [
        (d["spec"]["predictor"]["batcher"]["maxBatchSize"], d["spec"]["predictor"]["minReplicas"]) for d in services
    ]
    assert found == list(list_configs(report).values())
    assert services[1]["spec"]["predictor"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "g5.xlarge"}
    nodes = graph["spec"]["nodes"]
    steps = [step for node in nodes.values() for step in node["steps"]]
    called = sorted(step["serviceName"] for step in steps if "serviceName" in step)
    assert called == ["enter", "last", "left", "right-one"]
    assert [step["nodeName"] for step in steps if "condition" in step] == ["left"]
    assert {step["nodeName"] for step in steps if "nodeName" in step} <= set(nodes)


TWINS = EXPORT_SPEC.replace("right_one: {after: {enter: 100%}", "Left: {fan_out: 6, after: {enter: 100%}").replace(
    "last: {after: {left: 100%},", "root: {share: 20%,"
)


def test_kserve_notes_what_a_graph_cannot_express(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stages keep distinct names, and shares and fan-outs that the graph ignores are noted in the file."""
    text = export_kserve(plan_report(tmp_path, TWINS))
    documents = list(yaml.safe_load_all(text))
    assert [item["metadata"]["name"] for item in documents[:-1]] == ["enter", "left", "left-2", "root-2"]
    nodes = documents[-1]["spec"]["nodes"]
    assert set(nodes) == {"root", "enter", "enter-next", "left", "left-2", "root-2"}
    assert [step.get("condition") for step in nodes["root"]["steps"]] == [None, '[@this].#(next=="root")']
    notes = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    assert [re.split("[:;,]", line)[0] for line in notes] == [
        "left is planned for 0.5 of the queries",
        "Left is planned for 6 items per query",
        "Left is named left-2",
        "root is planned for 0.2 of the queries",
        "root is named root-2",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"kserve: {line}" for line in notes]


def test_model_that_a_target_cannot_load_is_refused(tmp_path: Path) -> None:
    """Neither KServe nor Triton loads .skops; the error names the stage and the way out."""
    text = EXPORT_SPEC.replace("wait: 2 ms", "wait: 2 ms, model: {file: a.skops}")
    report = plan_report(tmp_path, text)
    for export in (export_kserve, export_triton):
        with pytest.raises(UnfoldError, match=r"stages.enter.model.file: .*\.skops") as caught:
            export(report)
        assert caught.value.code == 2
    assert "a.skops" in export_ray_serve(report)


def test_labels_are_valid_in_kubernetes() -> None:
    """Every stage name becomes a valid Kubernetes name, and no two are equal."""
    found = assign_labels(["A.b", "a_b", "a-b", "9", "Ä", "x" * 70])
    assert found == {"A.b": "a-b-2", "a_b": "a-b-3", "a-b": "a-b", "9": "stage-9", "Ä": "stage", "x" * 70: "x" * 50}


ODD = """
version: 1
kind: pipeline
name: odd
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 40/s, duration: 5 s}
hardware: {"a10g x2 / spot (eu)": {price: $0.05/h}}
stages:
  "Pre process": {latency: {"a10g x2 / spot (eu)": {1: 10 ms}}}
  '2nd "pass"': {after: {"Pre process": 50%}, latency: {"a10g x2 / spot (eu)": {1: 10 ms}}}
  class: {after: {"Pre process": 50%}, latency: {"a10g x2 / spot (eu)": {1: 10 ms}}}
"""


def test_names_are_escaped_for_each_server(tmp_path: Path) -> None:
    """Label values are valid in Kubernetes, conditions are quoted, and code names a Python function."""
    report = plan_report(tmp_path, ODD)
    documents = list(yaml.safe_load_all(export_kserve(report)))
    labels = [
        item["metadata"]["labels"]["unfoldkit/hardware"] for item in documents if item["kind"] != "InferenceGraph"
    ]
    assert labels
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", item) for item in labels)
    steps = documents[-1]["spec"]["nodes"]["pre-process-next"]["steps"]
    assert [step["condition"] for step in steps] == ['[@this].#(next=="2nd \\"pass\\"")', '[@this].#(next=="class")']
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    code = [stage["code"] for stage in app["args"]["stages"]]
    assert code == ["models:Pre_process", "models:stage_2nd__pass_", "models:stage_class"]


def test_kserve_rejects_joins(tmp_path: Path) -> None:
    """A pipeline with a join is rejected with the name of the stage."""
    joined = EXPORT_SPEC.replace("last: {after: {left: 100%}", "last: {after: {left: 100%, right_one: 100%}")
    with pytest.raises(UnfoldError, match="supports no joins, and last is one"):
        export_kserve(plan_report(tmp_path, joined))


def fits(data: Any, kind: str, models: Any) -> None:
    """Hold data against a model class of KServe: known keys, required ones there, all the way down."""
    cls = getattr(models, kind.removeprefix("dict(str, ").removeprefix("list[").rstrip(")]"), None)
    if cls is None or not hasattr(cls, "openapi_types"):
        return
    for item in data if isinstance(data, list) else data.values() if kind.startswith("dict(") else [data]:
        names = {wire: own for own, wire in cls.attribute_map.items()}
        assert set(item) <= set(names), f"{kind} does not know {set(item) - set(names)}"
        cls(**{names[key]: value for key, value in item.items()})
        for key, value in item.items():
            fits(value, cls.openapi_types[names[key]], models)


@pytest.mark.targets
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_kserve_accepts_the_resources(tmp_path: Path) -> None:
    """The model classes of KServe's own client accept every resource."""
    models = pytest.importorskip("kserve.models", reason="KServe's client is not installed")
    for document in yaml.safe_load_all(export_kserve(plan_report(tmp_path))):
        version = "V1beta1" if document["kind"] == "InferenceService" else "V1alpha1"
        fits({**document, "metadata": None}, version + document["kind"], models)


def files(report: Report) -> dict[str, str]:
    """Return the exported model repository."""
    with zipfile.ZipFile(io.BytesIO(export_triton(report))) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_triton_repository_has_a_config_per_stage(tmp_path: Path) -> None:
    """Each stage has a config, and the same plan gives the same bytes."""
    report = plan_report(tmp_path)
    assert sorted(files(report)) == sorted(f"{name}/config.pbtxt" for name in list_configs(report))
    assert export_triton(report) == export_triton(report)


@pytest.mark.targets
def test_triton_accepts_the_configs(tmp_path: Path) -> None:
    """Triton's own message type parses every config, with the plan's counts and the delay of the stage."""
    pytest.importorskip("tritonclient", reason="Triton's client is not installed")
    report = plan_report(tmp_path)
    for name, text in files(report).items():
        # a process of its own: KServe's client brings message types of the same name
        words = [sys.executable, "-c", READ]
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=True)
        stage = name.partition("/")[0]
        batch, count, delay = map(int, done.stdout.split())
        assert (batch, count) == list_configs(report)[stage]
        assert delay == (2000 if stage == "enter" else 0)


def test_report_without_a_plan_cannot_be_exported(tmp_path: Path) -> None:
    """A report without a plan is rejected."""
    report = to_data(plan_report(tmp_path))
    report["decision"] = None
    with pytest.raises(UnfoldError, match="there is no plan of a pipeline"):
        export_triton(from_data(report))
