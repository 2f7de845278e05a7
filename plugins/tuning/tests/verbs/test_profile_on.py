"""``profile --on``: a rented instance, a Ray node, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuning_runs import SPEC, load_spec

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.job.build import build_problem
from unfold_tuning.job.paces import describe_hardware
from unfold_tuning.verbs import profile as profile_verb
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine

pytestmark = pytest.mark.usefixtures("sleeper_log")
AWS = SPEC.replace("provider: local", "provider: aws").replace(
    "{type: p, accelerators: 1, price: $3.6/h}",
    "{type: g5.xlarge, accelerators: 1, price: $3.6/h}, {type: g4dn.xlarge, accelerators: 1, price: $1/h}",
)
SLEEPER = Path(__file__).parents[1]
UNMEASURED = AWS[: AWS.index("profile:")] + AWS[AWS.index("samples:") :]


def build_run(folder: Path, on: str, ray_address: str | None = None) -> Run:
    """Build the context of a call with ``--on``."""
    engine: Any = LocalEngine(1) if ray_address is None else SimpleNamespace(name="ray", address=ray_address)
    return Run(directory=RunDir(folder), engine=engine, allow_code=True, options={"on": on})


def test_a_named_instance_is_rented_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance that is named is rented, not the first; plans for it need no speed, plans for others do."""
    rented: list[str] = []

    def build_provider(config: Any, machine: Any, ledger: Any, *_: Any) -> Any:
        rented.append(f"{config.provider} {machine.name}")
        return build_local_provider(ledger, machine.usd_per_hour)

    monkeypatch.setattr(profile_verb, "build_provider", build_provider)
    monkeypatch.setattr(
        profile_verb, "build_cluster", lambda _, setup, size, provider: LocalCluster(setup, size, provider)
    )
    spec = load_spec(UNMEASURED)
    report = profile_verb.profile(spec, build_run(tmp_path, "g4dn.xlarge", "10.0.0.1:6379"))
    assert rented == ["aws g4dn.xlarge"]
    assert json.loads((tmp_path / "profile.json").read_text())["measured_on"] == "g4dn.xlarge"
    assert (report.metrics["spent_usd"].value or 0) > 0
    with pytest.raises(UnfoldError, match=r"measured on g4dn.xlarge, not on g5.xlarge"):
        build_problem(spec, build_run(tmp_path, ""))
    related = load_spec(UNMEASURED.replace("price: $3.6/h", "price: $3.6/h, speed: 2"))
    assert [machine.speed for machine in build_problem(related, build_run(tmp_path, "")).machines] == [2, 1]
    wrong = load_spec(UNMEASURED.replace("price: $1/h", "price: $1/h, speed: 3").replace("$3.6/h", "$3.6/h, speed: 2"))
    with pytest.raises(UnfoldError, match=r"measured on g4dn\.xlarge itself"):
        build_problem(wrong, build_run(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "on", "message"),
    [
        (UNMEASURED, "p3.2xlarge", "one of: g5.xlarge, g4dn.xlarge, ray"),
        (UNMEASURED, "g5.xlarge", "no address is given"),
        (UNMEASURED.replace("provider: aws", "provider: gcp"), "g5.xlarge", "cannot start instances of gcp"),
    ],
)
def test_impossible_nodes_are_refused(tmp_path: Path, text: str, on: str, message: str) -> None:
    """An unknown type, a missing Ray head, and a cloud that cannot be rented are errors before anything runs."""
    with pytest.raises(UnfoldError, match=message):
        profile_verb.profile(load_spec(text), build_run(tmp_path, on))


@pytest.mark.ray
@pytest.mark.e2e
def test_a_ray_node_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--on ray`` the trials run on a raylet of this machine, and the profile records its hardware."""
    pytest.importorskip("ray")
    # the raylet imports the function from there
    monkeypatch.setenv("PYTHONPATH", str(SLEEPER))
    profile_verb.profile(load_spec(UNMEASURED), build_run(tmp_path, "ray"))
    assert json.loads((tmp_path / "profile.json").read_text())["measured_on"] == describe_hardware()
