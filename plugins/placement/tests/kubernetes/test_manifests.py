"""A plan in the words of Kubernetes: needs no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import call
from unfold_placement.kubernetes.manifests import export_manifests
from unfoldkit.api import Report, UnfoldError, Verdict

ROOT = Path(__file__).parents[4]


def exported(**cluster: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the manifests of a spec by kind and name."""
    spec = {"version": 1, "kind": "placement", "name": "mine", "cluster": {"kubernetes": cluster}}
    text = export_manifests(Report("placement", "plan", "mine", Verdict.YES, "", provenance={"spec": spec}))
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text)}


def test_counter_roles_are_exported_on_request() -> None:
    """The device class and the rights over slices and claims come with the option alone; nothing else differs."""
    plain, counting = exported(), exported(counters="dra")
    assert {kind for kind, _ in counting.keys() - plain.keys()} == {
        "DeviceClass", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
    }  # fmt: skip
    # the spec, and with it the note that restarts the controllers, differs
    same = [key for key in plain if key[1] != "unfold-placement-mine"]
    assert [counting[key] for key in same] == [plain[key] for key in same]
    rights = counting["Role", "unfold-placement-counters"]["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in rights] == [
        (["resourceclaims"], ["get", "list", "create", "delete"])
    ]
    served = yaml.safe_load(counting["ConfigMap", "unfold-placement-mine"]["data"]["spec.yaml"])
    assert served["cluster"]["kubernetes"]["counters"] == "dra"


def test_the_kustomize_base_is_the_export_of_its_spec() -> None:
    """The stored base equals what the command writes, and the kustomization names it."""
    base = ROOT / "deploy" / "placement"
    spec = yaml.safe_load((ROOT / "configs" / "placement" / "kubernetes.yaml").read_text("utf-8"))
    report = Report("placement", "plan", spec["name"], Verdict.YES, "", provenance={"spec": spec})
    assert (base / "controller.yaml").read_text("utf-8") == export_manifests(report)
    kustomization = yaml.safe_load((base / "kustomization.yaml").read_text("utf-8"))
    assert kustomization["resources"] == ["controller.yaml"]
    assert [image["name"] for image in kustomization["images"]] == [
        spec["cluster"]["kubernetes"].get("image", "unfoldkit")
    ]


def test_admission_checks_need_no_right_over_pods_or_jobs() -> None:
    """With kueue the controller may write the status of workloads and checks, and its Lease; and the check is there."""
    found = exported(kueue=True)
    assert found["AdmissionCheck", "unfold-mine"]["spec"] == {"controllerName": "placement.unfoldkit/mine"}
    rules = [rule for (kind, _), item in found.items() if kind in {"ClusterRole", "Role"} for rule in item["rules"]]
    writes = {
        (resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]
        if verb not in {"get", "list", "watch"}
    }  # fmt: skip
    assert writes == {
        ("workloads/status", "patch"), ("admissionchecks/status", "patch"), ("leases", "create"), ("leases", "update"),
    }  # fmt: skip


def test_only_placements_are_exported() -> None:
    """The report of another kind is refused."""
    with pytest.raises(UnfoldError, match="no placement"):
        export_manifests(Report("echo", "plan", "mine", Verdict.YES, ""))


def test_the_command_line_exports_a_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind has a format of the same name: the report decides which one writes it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(
        "{version: 1, kind: placement, name: training, cluster: {kubernetes: {}, nodes: [{gpu: 1}]},\n"
        " workload: {tasks: [{job: a, gpu: 1, run: 1 min}]}}\n",
        "utf-8",
    )
    outcome = call(["plan", "p.yaml", "--format", "kubernetes"])
    assert outcome.code == 0, outcome.err
    kinds = {document["kind"] for document in yaml.safe_load_all(outcome.out) if document}
    assert {"ClusterRole", "Deployment", "PodDisruptionBudget"} <= kinds
