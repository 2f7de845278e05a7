"""A trained cascade answers over a real socket, by the Open Inference Protocol."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from plugins.cascade.tests.runs import TUMOURS, run_in, solve_spec, spec_of
from tests.served import find_address
from unfold_cascade.planner.policy import follow
from unfold_cascade.serving.model import select_answered
from unfoldkit.serving.model import Call, Field, reject_large_values

X = load_breast_cancer().data


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    folder = tmp_path_factory.mktemp("served") / "run"
    unfold = [sys.executable, "-m", "unfoldkit"]
    subprocess.run(
        [*unfold, "train", str(TUMOURS), "--run", str(folder), "--jobs", "1"], check=True, capture_output=True
    )
    process = subprocess.Popen([*unfold, "serve", str(folder), "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        url = find_address(process.stderr)
        # probes are answered while the service starts, other requests wait until it serves
        _get(f"{url}/v2")
        yield url, folder, process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _post(url: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def _asked(url: str, rows: np.ndarray) -> tuple[int, Any]:
    about = json.loads(_get(f"{url}/v2/models/tumours"))
    name = about["inputs"][0]["name"]
    tensor = {"name": name, "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
    if about["inputs"][0]["datatype"] == "FP32":
        tensor["datatype"] = "FP32"
    return _post(f"{url}/v2/models/tumours/infer", json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.e2e
def test_the_service_is_live_ready_and_describes_itself(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """Health, metadata, metrics and the OpenAPI document answer."""
    url, _, _ = served
    assert json.loads(_get(f"{url}/v2/health/live"))["live"]
    assert json.loads(_get(f"{url}/v2/health/ready"))["ready"]
    assert json.loads(_get(f"{url}/v2"))["name"] == "unfoldkit"
    assert "/v2/models/tumours/infer" in _get(f"{url}/openapi.json")
    assert "# TYPE" in _get(f"{url}/metrics")


@pytest.mark.slow
def test_served_answers_equal_the_plan(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """Served labels of the calibration and test rows, which no model was fitted on, equal those of the plan."""
    url, folder, _ = served
    plan = solve_spec(spec_of(TUMOURS), run_in(folder))
    rows = np.concatenate([plan.problem.dataset.rows.calibrate, plan.problem.dataset.rows.test])[:200]
    assert plan.policy
    wanted = [plan.problem.dataset.names[answer] for answer in follow(plan.tables, plan.policy, rows).answer]
    status, answer = _asked(url, X[rows])
    assert status == 200
    outputs = {item["name"]: item for item in answer["outputs"]}
    assert [str(label) for label in outputs["label"]["data"]] == wanted


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": []}', b'{"inputs": [{"name": "x"}]}', b"\xff" * 50])
def test_a_malformed_body_is_answered_400(served: tuple[str, Path, subprocess.Popen[str]], body: bytes) -> None:
    """An invalid request body is rejected, and the server goes on."""
    url, _, _ = served
    status, answer = _post(f"{url}/v2/models/tumours/infer", body)
    assert status == 400
    assert answer["error"]
    assert json.loads(_get(f"{url}/v2/health/ready"))["ready"]


def test_wrong_shapes_and_nan_are_rejected(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """Rows of another width are answered 400 with a sentence."""
    url, _, _ = served
    status, answer = _asked(url, X[:2, :3])
    assert status == 400
    assert answer["error"]


def test_values_outside_single_precision_are_rejected(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """A number too large for trees is the client's mistake, reported with its row and column."""
    url, _, _ = served
    data = X[:2].ravel().tolist()
    data[31] = -1e39
    tensor = {"name": "x", "shape": [2, 30], "datatype": "FP64", "data": data}
    status, answer = _post(f"{url}/v2/models/tumours/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 400
    assert 'holds -1e+39 in row 2, column "mean_texture"' in answer["error"]


def test_only_the_call_with_a_large_value_is_rejected() -> None:
    """Of the calls of one batch, those with values of any usual size are answered and counted, gaps among them."""
    x = np.array([[1.0, np.nan], [2.0, 1e39], [3.0, 4.0]])
    field = Field("x", "FP64", (2,), missing=True)
    kept, refused = reject_large_values(x, (Call(1), Call(1), Call(1)), field)
    assert set(refused) == {1}
    assert refused[1].status == 400
    assert np.array_equal(kept, [[1.0, np.nan], [2.0, 0.0], [3.0, 4.0]], equal_nan=True)
    assert select_answered([7, 8, 9], (Call(1), Call(1), Call(1)), refused) == [7, 9]
    assert reject_large_values(x[:1], (Call(1),), field)[1] == {}


def test_an_unknown_model_is_answered_404(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """A request for an unknown model is rejected with the names of those available."""
    url, _, _ = served
    assert _post(f"{url}/v2/models/other/infer", b"{}")[0] == 404


@pytest.mark.e2e
def test_sigterm_exits_with_0(served: tuple[str, Path, subprocess.Popen[str]]) -> None:
    """A service ends cleanly on SIGTERM (last of this module: it ends the service)."""
    _, _, process = served
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
