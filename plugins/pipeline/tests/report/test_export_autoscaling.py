"""Exported autoscaling never has fewer replicas than the tuner's table, and the targets' own schemas accept it."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.pipeline.tests.helpers import DEEP_SPEC, EXPORT_SPEC, plan_report
from unfold_pipeline.control.prometheus import select_queries
from unfold_pipeline.report.export_autoscaling import export_keda, export_knative, parse_scaling
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfoldkit.api import Report, UnfoldError

SPEC = EXPORT_SPEC + "tuner: {table: true, hold: 90 s}\n"
LARGE_BATCH = 512
CRDS = {
    "github.com/kedacore/keda/v2@v2.21.0": "config/crd/bases/keda.sh_scaledobjects.yaml",
    "knative.dev/serving@v0.51.0": "config/core/300-resources/service.yaml",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A plan with its table."""
    return plan_report(tmp_path_factory.mktemp("plan"), SPEC)


def count_by_rule(rate: float, target: float, low: int, high: int) -> int:
    """Return the replicas of a proportional rule."""
    return min(high, max(low, math.ceil(rate / target)))


def check_rule(report: Report, name: str, target: float, low: int, high: int) -> None:
    """Hold a rule against the table: at each rate, and just above the one before, it has enough replicas."""
    assert report.decision is not None
    rates = report.decision["scaling"]["queries_per_second"]
    needed = report.decision["scaling"]["stages"][name]["replicas"]
    for number, count in enumerate(needed):
        for rate in (rates[number], rates[number - 1] * (1 + 1e-9) if number else 0.0):
            assert count_by_rule(rate, target, low, high) >= count, (name, rate)


def test_rules_have_no_fewer_replicas_than_the_table(report: Report) -> None:
    """KEDA and Knative order at least what the table states, at every rate of it."""
    labels = {"enter": "enter", "left": "left", "right_one": "right-one", "last": "last"}
    keda = {item["metadata"]["name"]: item["spec"] for item in yaml.safe_load_all(export_keda(report))}
    knative = {item["metadata"]["name"]: item["spec"] for item in yaml.safe_load_all(export_knative(report))}
    rules = parse_scaling(report)
    assert any(rule.max_replicas > rule.min_replicas for rule in rules.values())
    for name, label in labels.items():
        spec = keda[label]
        metadata = spec["triggers"][0]["metadata"]
        assert select_queries(report.name) in metadata["query"]
        threshold = float(metadata["threshold"])
        check_rule(report, name, threshold, spec["minReplicaCount"], spec["maxReplicaCount"])
        assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"] == {
            "stabilizationWindowSeconds": 90
        }
        annotations = {
            key.partition("/")[2]: value for key, value in knative[label]["template"]["metadata"]["annotations"].items()
        }
        target = float(annotations["target"]) / rules[name].items_per_query
        check_rule(report, name, target, int(annotations["min-scale"]), int(annotations["max-scale"]))
        assert annotations["scale-down-delay"] == "90s"
    assert knative["left"]["template"]["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


def test_each_file_states_what_it_cannot_express(report: Report) -> None:
    """Comments at the top name batch sizes, look-ahead and quotas, and no excess where there is none."""
    for text in (export_keda(report), export_knative(report), export_ray_serve(report)):
        notes = [line for line in text.splitlines() if line.startswith("#")]
        for word in ("batch sizes", "extrapolated", "quotas"):
            assert any(word in note for note in notes), word
        has_excess = any(round(100 * rule.excess) for rule in parse_scaling(report).values())
        assert any("in proportion" in note for note in notes) == has_excess


def test_spares_stay_in_the_table(tmp_path: Path) -> None:
    """With N+1 no stage scales below two replicas."""
    report = plan_report(tmp_path, SPEC.replace("p99: 400 ms", "p99: 400 ms, survive: 1"))
    assert min(rule.min_replicas for rule in parse_scaling(report).values()) >= 2


def test_maximum_of_the_tuner_is_no_less_than_the_plan(tmp_path: Path) -> None:
    """A plan with more replicas than ``tuner.most`` keeps them; the note names the rate at which the maximum binds."""
    report = plan_report(tmp_path, DEEP_SPEC + "tuner: {table: true, most: 2}\n")
    assert report.decision is not None
    planned = report.decision["stages"]["slow"]["replicas"]
    rates = report.decision["scaling"]["queries_per_second"]
    rule = parse_scaling(report)["slow"]
    assert rule.max_replicas == planned > 2
    assert count_by_rule(rates[-1], rule.queries_per_replica, rule.min_replicas, rule.max_replicas) == planned
    counts = report.decision["scaling"]["stages"]["slow"]["replicas"]
    reached = f"reached at {rates[counts.index(planned)]:.4g} queries/s"
    assert f"# the maximum of {planned} replicas, tuner.most, is {reached}" in export_keda(report).splitlines()
    # KEDA would round a threshold of less than one query a second
    (keda,) = yaml.safe_load_all(export_keda(report))
    metadata = keda["spec"]["triggers"][0]["metadata"]
    assert metadata["query"].startswith("1000 * sum(rate(")
    assert float(metadata["threshold"]) == pytest.approx(1000 * rule.queries_per_replica, rel=1e-5)
    assert rule.excess <= planned / min(counts) - 1


def test_large_batches_have_no_limit_in_knative(report: Report) -> None:
    """Knative refuses a concurrency above a thousand; 0 is none."""
    decision = json.loads(json.dumps(report.decision))
    decision["stages"]["enter"]["batch"] = LARGE_BATCH
    services = yaml.safe_load_all(export_knative(replace(report, decision=decision)))
    limits = {item["metadata"]["name"]: item["spec"]["template"]["spec"]["containerConcurrency"] for item in services}
    assert limits["enter"] == 0
    assert 0 < limits["last"] <= 1000


def test_plan_without_a_table_is_refused(tmp_path: Path) -> None:
    """Without the table there is nothing to derive a rule from; the error names the option."""
    report = plan_report(tmp_path)
    for export in (export_keda, export_knative):
        with pytest.raises(UnfoldError, match=r"tuner.table: .* --set tuner.table=true") as caught:
            export(report)
        assert caught.value.code == 2
    assert "autoscaling_config" not in export_ray_serve(report)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_serve_accepts_the_autoscaling(report: Report) -> None:
    """Ray Serve's own schema accepts the config, with its limits."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    read = schema.ServeDeploySchema.model_validate(yaml.safe_load(export_ray_serve(report)))
    rules = parse_scaling(report)
    for deployment in read.applications[0].deployments:
        if deployment.name in rules:
            config, rule = deployment.autoscaling_config, rules[deployment.name]
            assert (config["min_replicas"], config["max_replicas"]) == (rule.min_replicas, rule.max_replicas)
            assert config["target_ongoing_requests"] <= max(rule.ongoing_per_replica, 1.0)


def load_schema(module: str) -> Any:
    """Return the published schema of a custom resource; skips where the module proxy is out of reach."""
    command = ["go", "mod", "download", "-json", module]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "GOFLAGS": "-mod=mod"}
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{module} cannot be downloaded: {error}")
    folder = json.loads(done.stdout)["Dir"]
    resource = yaml.safe_load((Path(folder) / CRDS[module]).read_text())
    return resource["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def forbid_unknown_keys(schema: Any) -> Any:
    """Return the schema as the API server prunes by it: a key that it does not name is an error."""
    if isinstance(schema, list):
        return [forbid_unknown_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: forbid_unknown_keys(value) for key, value in schema.items() if key != "default"}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        strict["additionalProperties"] = False
    return strict


@pytest.mark.targets
@pytest.mark.parametrize(("module", "export"), [*zip(CRDS, (export_keda, export_knative), strict=True)])
def test_published_schemas_accept_the_resources(report: Report, module: str, export: Any) -> None:
    """The CRDs of KEDA and Knative accept every resource, and reject one with a key that they do not know."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = forbid_unknown_keys(load_schema(module))
    schema["properties"]["metadata"] = {"type": "object"}
    documents = list(yaml.safe_load_all(export(report)))
    for document in documents:
        jsonschema.validate(document, schema)
    documents[0]["spec"]["unknown"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(documents[0], schema)
