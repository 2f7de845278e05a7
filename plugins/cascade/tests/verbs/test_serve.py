"""From `unfold train` to answers over HTTP, by the command line."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from plugins.cascade.tests.runs import TUMOURS
from tests.served import rest, serving, unfold


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as reply:
        return json.load(reply)


def request(x: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    done = unfold(folder, "train", str(TUMOURS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: unfold serve runs/tumours\n")
    return folder


@pytest.mark.e2e
def test_a_trained_run_is_served_and_served_again(trained: Path) -> None:
    """What train names next answers with labels and routes, ends with 0, and answers the same after a restart."""
    x = np.asarray(load_breast_cancer().data)[:40]
    answers = []
    for _ in range(2):
        with serving(trained, "runs/tumours") as (process, place):
            about = ask(f"{place}/v2/models/tumours")
            answers.append(ask(f"{place}/v2/models/tumours/infer", request(x)))
            process.send_signal(signal.SIGTERM)
            remaining = rest(process)
        assert process.returncode == 0
        assert re.search(r"engine +ONNX Runtime, equal to the native model on 285 rows", remaining), remaining
    assert answers[0] == answers[1]
    outputs = {output["name"]: output for output in answers[0]["outputs"]}
    assert about["inputs"][0]["shape"] == [-1, 30]
    assert about["inputs"][0]["parameters"]["columns"][0] == "mean_radius"
    right = np.array(outputs["label"]["data"]) == load_breast_cancer().target[:40].astype(str)
    assert right.mean() > 0.85
    for row in range(40):
        steps = outputs["route_steps"]["data"][row]
        assert [bool(name) for name in outputs["route_model"]["data"][row]] == [
            place < steps for place in range(len(outputs["route_model"]["data"][row]))
        ]
        assert sum(outputs["route_cost"]["data"][row]) == pytest.approx(outputs["cost"]["data"][row])


@pytest.mark.e2e
def test_plans_and_specs_can_be_served(trained: Path) -> None:
    """The plan of the run and the spec that it was trained with lead to the same service."""
    for what in ("runs/tumours/plan.yaml", str(TUMOURS)):
        with serving(trained, what) as (_, place):
            assert ask(f"{place}/v2/models/tumours")["parameters"]["serves"] == "cascade"


@pytest.mark.e2e
def test_an_untrained_spec_is_not_served(tmp_path: Path) -> None:
    """Without training, serve ends with 2, names the command to run, and leaves no spec in the run."""
    done = unfold(tmp_path, "serve", str(TUMOURS), "--port", "0")
    assert done.returncode == 2
    assert "this cascade was not trained" in done.stderr
    assert "unfold train" in done.stderr
    assert not (tmp_path / "runs" / "tumours" / "spec.yaml").exists()


@pytest.mark.slow
def test_a_changed_plan_is_rejected(trained: Path) -> None:
    """A plan in the run that was edited by hand is refused by its hash."""
    plan = trained / "runs" / "tumours" / "plan.yaml"
    before = plan.read_bytes()
    try:
        plan.write_bytes(before.replace(b"cuts", b"Cuts"))
        done = unfold(trained, "serve", "runs/tumours", "--port", "0")
    finally:
        plan.write_bytes(before)
    assert done.returncode == 2
    assert "plan.yaml: the file was changed" in done.stderr
