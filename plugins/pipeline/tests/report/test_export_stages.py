"""Exports match the plan, and the target's own schema or loader accepts them where it is installed."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from plugins.pipeline.tests.helpers import EXPORT_SPEC, list_configs, plan_report
from plugins.pipeline.tests.targets.triton_config import parse_model_config
from unfold_pipeline.problem.exported_plan import assign_labels
from unfold_pipeline.report.engines.exports import export_kubernetes
from unfold_pipeline.report.export_kserve import export_kserve
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.report.export_triton import export_triton
from unfold_pipeline.runtime import ray_ingress
from unfoldkit.api import Report, UnfoldError, format_count
from unfoldkit.report import from_data, to_data


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


def test_a_format_of_engines_names_those_of_other_stages(tmp_path: Path) -> None:
    """``--format kubernetes`` exports engines; a plan of other stages is referred to the formats that take it."""
    with pytest.raises(UnfoldError, match="--format kserve, ray-serve or triton"):
        export_kubernetes(plan_report(tmp_path))


@pytest.mark.parametrize("is_gone", [False, True])
def test_an_edited_plan_is_refused(tmp_path: Path, *, is_gone: bool) -> None:
    """A plan with no replicas, or without a stage of its spec, is an error."""
    report = plan_report(tmp_path)
    assert report.decision is not None
    (name, config), *others = report.decision["stages"].items()
    stages = {**dict(others), **({} if is_gone else {name: config | {"replicas": 0}})}
    edited = replace(report, decision={**report.decision, "stages": stages})
    with pytest.raises(UnfoldError, match="other stages" if is_gone else "does not fit"):
        export_ray_serve(edited)


@pytest.mark.parametrize(
    ("hardware", "gpus"),
    [
        ("box: {price: $1/h}", None),
        ("box: {price: $1/h, gpu: l4}", 1),
        ("T4: {price: $1/h}", 1),
        ("k80: {price: $1/h}", 1),
    ],
)
def test_priced_gpus_are_reserved(tmp_path: Path, hardware: str, gpus: int | None) -> None:
    """Hardware with a price is a GPU if it states one or has the name of one, in every format."""
    text = CHAIN.replace("g5.xlarge: {}", hardware).replace("g5.xlarge", hardware.partition(":")[0])
    report = plan_report(tmp_path, text)
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    options = {item["name"]: item["ray_actor_options"] for item in app["deployments"]}
    assert options["left"].get("num_gpus") == gpus
    assert ("nvidia.com/gpu" in export_kserve(report)) == bool(gpus)
    with zipfile.ZipFile(io.BytesIO(export_triton(report))) as archive:
        assert (b"KIND_GPU" in archive.read("left/config.pbtxt")) == bool(gpus)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_serve_accepts_the_config(tmp_path: Path) -> None:
    """Ray Serve's own schema accepts the exported config and reads the same counts."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    report = plan_report(tmp_path)
    read = schema.ServeDeploySchema.model_validate(yaml.safe_load(export_ray_serve(report)))
    counts = {item.name: item.num_replicas for item in read.applications[0].deployments}
    assert counts == {"ingress": 1, **{name: count for name, (_, count) in list_configs(report).items()}}


CHAIN = EXPORT_SPEC.replace("  right_one: {after: {enter: 100%}", "  right_one: {after: {last: 100%}")


def test_kserve_graph_has_every_flow(tmp_path: Path) -> None:
    """Each stage is a service with its counts and appears once in the graph; a flow below 100 % has a condition."""
    report = plan_report(tmp_path, CHAIN)
    documents = list(yaml.safe_load_all(export_kserve(report)))
    services, graph = documents[:-1], documents[-1]
    predictors = {item["metadata"]["name"].replace("-", "_"): item["spec"]["predictor"] for item in services}
    assert list_configs(report) == {
        name: (item.get("batcher", {}).get("maxBatchSize", 1), item["minReplicas"]) for name, item in predictors.items()
    }
    gpu = services[1]["spec"]["predictor"]
    assert gpu["nodeSelector"] == {"node.kubernetes.io/instance-type": "g5.xlarge"}
    assert gpu["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    nodes = graph["spec"]["nodes"]
    steps = [step for node in nodes.values() for step in node["steps"]]
    called = sorted(step["serviceName"] for step in steps if "serviceName" in step)
    assert called == ["enter", "last", "left", "right-one"]
    assert [step["nodeName"] for step in steps if "condition" in step] == ["left"]
    assert {step["nodeName"] for step in steps if "nodeName" in step} <= set(nodes)


TWINS = """
version: 1
kind: pipeline
name: twins
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 5/s, duration: 10 s}
hardware: {core: {price: $0.05/h}}
stages:
  left: {latency: {core: {1: 10 ms}}}
  Left: {latency: {core: {1: 10 ms}}}
  root: {latency: {core: {1: 10 ms}}}
"""


def test_kserve_stages_keep_distinct_names(tmp_path: Path) -> None:
    """Stages with equal labels get numbers, which the file notes."""
    text = export_kserve(plan_report(tmp_path, TWINS))
    documents = list(yaml.safe_load_all(text))
    assert [item["metadata"]["name"] for item in documents[:-1]] == ["left", "left-2", "root-2"]
    assert set(documents[-1]["spec"]["nodes"]) == {"root", "left", "left-2", "root-2"}
    notes = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    assert [line.partition(",")[0] for line in notes] == ["Left is named left-2", "root is named root-2"]


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
    # KServe appends -predictor, and a label has at most 63 characters
    assert assign_labels(["9" * 70]) == {"9" * 70: f"stage-{'9' * 44}"}


def test_names_of_kserve_do_not_collide(tmp_path: Path) -> None:
    """Graph, predictors and steps have names of their own, though stages and pipeline are named like them."""
    text = TWINS.replace("name: twins", "name: left").replace("  Left:", "  left-predictor:")
    text = text.replace("  root: {", "  self: {after: {left: 100%}, ")
    documents = list(yaml.safe_load_all(export_kserve(plan_report(tmp_path, text))))
    names = [item["metadata"]["name"] for item in documents]
    assert names == ["left", "left-predictor-2", "self-2", "left-graph"]
    assert [step["name"] for step in documents[-1]["spec"]["nodes"]["left"]["steps"]] == ["self", "self-2"]


@pytest.mark.parametrize(("replicas", "gpus", "whole", "per_gpu"), [(3, 2, 2, 1), (12, 0.5, 1, 2)])
def test_gpus_of_an_instance_are_divided(tmp_path: Path, replicas: int, gpus: float, whole: int, per_gpu: int) -> None:
    """Replicas of an instance with 8 GPUs get whole ones or an equal part of one, for which Kubernetes has slices."""
    text = CHAIN.replace("g5.xlarge: {}", f"p4d.24xlarge: {{per_instance: {replicas}}}")
    report = plan_report(tmp_path, text.replace("g5.xlarge", "p4d.24xlarge"))
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    assert {item["name"]: item["ray_actor_options"].get("num_gpus") for item in app["deployments"]}["left"] == gpus
    resources = export_kserve(report)
    assert f"nvidia.com/gpu: {whole}\n" in resources
    assert (f"# left has {per_gpu} replicas on a GPU" in resources) is (per_gpu > 1)
    assert f"count: {per_gpu} kind: KIND_GPU" in files(report)["left/config.pbtxt"]


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
  class: {after: {'2nd "pass"': 50%}, latency: {"a10g x2 / spot (eu)": {1: 10 ms}}}
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
    steps = [step for node in documents[-1]["spec"]["nodes"].values() for step in node["steps"]]
    conditions = [step["condition"] for step in steps if "condition" in step]
    assert conditions == ['predictions.#(next=="2nd \\"pass\\"")', 'predictions.#(next=="class")']
    (app,) = yaml.safe_load(export_ray_serve(report))["applications"]
    code = [stage["code"] for stage in app["args"]["stages"]]
    assert code == ["models:Pre_process", "models:stage_2nd__pass_", "models:stage_class"]


def test_functions_keep_distinct_names(tmp_path: Path) -> None:
    """Stages without a model never share a function, however alike their names are."""
    text = ODD.replace('"Pre process"', '"a-b"').replace("""'2nd "pass"'""", '"a.b"').replace("class", "a_b")
    (app,) = yaml.safe_load(export_ray_serve(plan_report(tmp_path, text)))["applications"]
    code = {stage["name"]: stage["code"] for stage in app["args"]["stages"]}
    assert code == {"a-b": "models:a_b_2", "a.b": "models:a_b_3", "a_b": "models:a_b"}


@pytest.mark.parametrize(("name", "refused"), [("no#1", "#"), ("größe", "character beyond ASCII")])
def test_name_that_ray_serve_cannot_have_is_refused(tmp_path: Path, name: str, refused: str) -> None:
    """Ray Serve separates the names of its replicas by #, and counts their starts in metrics with ASCII labels."""
    report = plan_report(tmp_path, ODD.replace("class", f'"{name}"'))
    with pytest.raises(UnfoldError, match=rf"stages\.{name}: Ray Serve accepts no {refused}") as caught:
        export_ray_serve(report)
    assert caught.value.code == 2


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
    for document in yaml.safe_load_all(export_kserve(plan_report(tmp_path, CHAIN))):
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


def read_config(text: str) -> list[Any]:
    """What Triton's own message type reads: batch, count, delay, inputs, outputs and hardware."""
    read = parse_model_config(text)
    assert read["backend"]
    assert read["instance_group"][0]["kind"]
    delay = read["dynamic_batching"].get("max_queue_delay_microseconds", 0)
    hardware = read["parameters"]["hardware"]["string_value"]
    count = read["instance_group"][0]["count"]
    return [read["max_batch_size"], count, int(delay), len(read["input"]), len(read["output"]), hardware]


@pytest.mark.targets
def test_triton_accepts_the_configs(tmp_path: Path) -> None:
    """Triton's own message type parses every config, with the plan's counts, hardware and delays, and its tensors."""
    pytest.importorskip("tritonclient", reason="Triton's client is not installed")
    report = plan_report(tmp_path)
    for name, text in files(report).items():
        stage = name.partition("/")[0]
        batch, count = list_configs(report)[stage]
        is_gpu = stage == "left"
        delay, hardware = 2000 if stage == "enter" else 0, "g5.xlarge" if is_gpu else "core"
        assert read_config(text) == [batch, 1 if is_gpu else count, delay, 1, 1, hardware]
        assert ("kind: KIND_GPU" in text) is is_gpu
        assert text.startswith(f"# {format_count(count, 'server')} on g5.xlarge") is is_gpu


@pytest.mark.targets
def test_triton_config_has_the_tensors_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX file that is here gives its inputs and outputs by name; odd names of hardware are escaped."""
    pytest.importorskip("tritonclient", reason="Triton's client is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["b", 8])
    out = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.INT64, ["b", 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["ids"], ["scores"])], "g", [ids], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "a.onnx")
    text = EXPORT_SPEC.replace("wait: 2 ms", "wait: 2 ms, model: {file: a.onnx}").replace("core", '"c \\"ö\\\\\\n"')
    config = files(plan_report(tmp_path, text))["enter/config.pbtxt"]
    assert 'input [ { name: "ids" data_type: TYPE_INT64 dims: [8] } ]' in config
    assert read_config(config)[3:] == [1, 1, 'c "ö\\\n']


def test_triton_serves_a_model_of_one_row_without_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton batches only a dynamic first axis; a fixed one of more rows, or planned with batches, is refused."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    report = plan_report(tmp_path, TWINS.replace("left: {", "left: {model: {file: a.onnx}, "))
    assert report.decision is not None
    stages = report.decision["stages"]
    for rows, batch in ((1, 1), (1, 4), (8, 1)):
        ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, 3]) for name in ("a", "b")]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", ends[:1], ends[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, "a.onnx")
        stages["left"] = {**stages["left"], "batch": batch}
        if rows == batch:
            config = files(report)["left/config.pbtxt"]
            assert "max_batch_size: 0\ninstance_group" in config
            assert config.count("dims: [1, 3]") == 2
        else:
            with pytest.raises(UnfoldError, match=rf"stages\.left\.model\.file: .* fixed batch {rows} of a") as caught:
                export_triton(report)
            assert caught.value.code == 2


@pytest.mark.parametrize("model", ["{file: a.skops}", "{estimator: svc}"])
def test_triton_refuses_what_it_cannot_serve(tmp_path: Path, model: str) -> None:
    """Models without a backend and tests of values are refused with their key."""
    text = EXPORT_SPEC.replace("wait: 2 ms", f"wait: 2 ms, model: {model}")
    with pytest.raises(UnfoldError, match=r"stages\.enter\.model\.(file|estimator): "):
        export_triton(plan_report(tmp_path, text))
    tested = EXPORT_SPEC.replace("left: {after: {enter: 50%}", 'left: {after: {enter: 50%}, when: k == "x"')
    with pytest.raises(UnfoldError, match=r"stages\.left\.when: .* tests no value"):
        export_triton(plan_report(tmp_path / "tested", tested))


def test_ray_serve_refuses_an_estimator(tmp_path: Path) -> None:
    """The fitted estimator is a file of a run, which the spec does not name; the hint names its path."""
    report = plan_report(tmp_path, EXPORT_SPEC.replace("wait: 2 ms", "wait: 2 ms, model: {estimator: svc}"))
    with pytest.raises(UnfoldError, match=r"stages\.enter\.model\.estimator: .*models/enter\.\*"):
        export_ray_serve(report)


def test_ray_serve_refuses_models_that_do_not_fit_each_other(tmp_path: Path) -> None:
    """What the application would refuse once it is deployed is refused before: a branch may be skipped at the join."""
    text = """
version: 1
kind: pipeline
name: diamond
slo: {p99: 2 s}
arrivals: {process: poisson, rate: 5/s, duration: 1 min}
hardware: {core: {price: $0.05/h}}
stages:
  a: {latency: {core: {1: 10 ms}}, model: {code: "m:f"}}
  b: {after: {a: 60%}, when: output > 0.5, latency: {core: {1: 10 ms}}, model: {code: "m:f"}}
  c: {after: {a: 40%}, when: output <= 0.5, latency: {core: {1: 10 ms}}, model: {code: "m:f"}}
  d: {after: {b: 100%, c: 100%}, missing: 0, latency: {core: {1: 10 ms}}, model: {code: "m:f"}}
"""
    with pytest.raises(UnfoldError, match=r"stages\.d\.after: b may be skipped, and the size"):
        export_ray_serve(plan_report(tmp_path, text))
    stated = text.replace('"m:f"', '"m:f", outputs: {output: 1}')
    (app,) = yaml.safe_load(export_ray_serve(plan_report(tmp_path / "stated", stated)))["applications"]
    assert [stage["name"] for stage in app["args"]["stages"]] == ["a", "b", "c", "d"]


def test_ray_serve_runs_on_the_gpus_it_reserves(tmp_path: Path) -> None:
    """A replica with a GPU runs its ONNX model there; a model that runs on cores only is refused."""
    entry = "left: {model: {file: left.onnx}, "
    (app,) = yaml.safe_load(export_ray_serve(plan_report(tmp_path, EXPORT_SPEC.replace("left: {", entry, 1))))[
        "applications"
    ]
    stages = {stage["name"]: stage for stage in app["args"]["stages"]}
    assert [name for name, stage in stages.items() if stage.get("gpu")] == ["left"]
    assert ray_ingress._build_source(stages["left"]).on_gpu
    for index, name in enumerate(("left.skops", "left.ubj")):
        report = plan_report(tmp_path / str(index), EXPORT_SPEC.replace("left: {", entry.replace("left.onnx", name), 1))
        with pytest.raises(UnfoldError, match=r"stages\.left\.model\.file: .* runs on cores, .* on g5\.xlarge"):
            export_ray_serve(report)
    trees = CHAIN.replace("left: {", entry.replace("left.onnx", "left.ubj"), 1)
    with pytest.raises(UnfoldError, match=r"stages\.left\.model\.file: .* runs on cores, .* on g5\.xlarge"):
        export_kserve(plan_report(tmp_path / "trees", trees))


def test_triton_gets_the_tensors_that_code_states(tmp_path: Path) -> None:
    """Each output of code is in the config with its size; what the spec does not state stays open."""
    text = EXPORT_SPEC.replace(
        "wait: 2 ms", 'wait: 2 ms, model: {code: "m:f", features: 3, outputs: {box: 4, score: 1}}'
    )
    text = text.replace("left: {", 'left: {inputs: {crop: enter.box, image: request}, model: {code: "m:g"}, ', 1)
    report = plan_report(tmp_path, text)
    pattern = re.compile(r'^(input|output) \[ \{ name: "(\w+)" data_type: TYPE_FP32 dims: \[ (-?\d+) \]', re.MULTILINE)
    tensors = {name.partition("/")[0]: pattern.findall(config) for name, config in files(report).items()}
    assert tensors["enter"] == [("input", "input__0", "3"), ("output", "box", "4"), ("output", "score", "1")]
    assert tensors["left"] == [("input", "crop", "-1"), ("input", "image", "-1"), ("output", "output__0", "-1")]


def test_report_without_a_plan_cannot_be_exported(tmp_path: Path) -> None:
    """A report without a plan is rejected."""
    report = to_data(plan_report(tmp_path))
    report["decision"] = None
    with pytest.raises(UnfoldError, match="there is no plan of a pipeline"):
        export_triton(from_data(report))


FOREST = """
version: 1
kind: pipeline
name: forest
slo: {p99: 300 ms}
arrivals: {process: poisson, rate: 20/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages:
  trees: {model: {file: FILE}, latency: {core: {1: 20 ms, 4: 40 ms}}}
"""


@pytest.mark.parametrize(
    ("objective", "outputs", "output_class", "predict_proba"),
    [
        ("binary:logistic", 1, "true", "true"),
        ("multi:softprob", 3, "true", "true"),
        ("multi:softmax", 1, "true", "false"),
        ("reg:squarederror", 1, "false", "false"),
    ],
)
def test_triton_forests_have_the_tensors_of_the_file(
    tmp_path: Path, objective: str, outputs: int, output_class: str, predict_proba: str
) -> None:
    """Triton's forest library completes nothing: it needs features, outputs, and whether the trees classify."""
    file = train_trees(tmp_path, objective)
    with zipfile.ZipFile(io.BytesIO(export_triton(plan_report(tmp_path, FOREST.replace("FILE", file))))) as archive:
        text = archive.read("trees/config.pbtxt").decode()
    assert 'name: "input__0" data_type: TYPE_FP32 dims: [ 5 ]' in text
    assert f'name: "output__0" data_type: TYPE_FP32 dims: [ {outputs} ]' in text
    for key, value in (("output_class", output_class), ("predict_proba", predict_proba), ("model_type", "xgboost_ubj")):
        assert f'key: "{key}" value {{ string_value: "{value}" }}' in text


@pytest.mark.parametrize("objective", ["binary:hinge", ""])
def test_triton_forests_that_cannot_be_described_are_refused(tmp_path: Path, objective: str) -> None:
    """A file that is not here, or with other outputs in Triton, is an error at its key."""
    file = train_trees(tmp_path, objective) if objective else str(tmp_path / "absent.ubj")
    with pytest.raises(UnfoldError, match="forest library") as caught:
        export_triton(plan_report(tmp_path, FOREST.replace("FILE", file)))
    assert caught.value.diagnostics[0].key == "stages.trees.model.file"


def train_trees(folder: Path, objective: str) -> str:
    """Store trees on five features."""
    import xgboost

    rows = np.random.default_rng(0).random((60, 5))
    classes = 3 if objective.startswith("multi") else 2
    data = xgboost.DMatrix(rows, (rows[:, 0] * classes).astype(int))
    options = {"objective": objective, "nthread": 1} | ({"num_class": 3} if classes == 3 else {})
    xgboost.train(options, data, 2).save_model(folder / "trees.ubj")
    return str(folder / "trees.ubj")
