"""One cascade, from its spec to an answer over HTTP."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from conftest import TrainedRun
from tests.served import serving
from tests.support import Unfold

pytestmark = pytest.mark.smoke


def test_trained_cascade_reports_and_answers_requests(trained_run: TrainedRun, unfold: Unfold, tmp_path: Path) -> None:
    """A run that was trained once is certified, can be reported again, and answers a request over HTTP."""
    shutil.copytree(trained_run("cascade/digits") / "runs", tmp_path / "runs")
    report = json.loads(unfold("report", "runs/digits", "--format", "json").out)
    assert report["verdict"] == "yes"
    rows = load_digits().data[:32]
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    with serving(tmp_path, "runs/digits") as (_, address):
        url = f"{address}/v2/models/digits/infer"
        # a server on loopback, started by this test
        with urllib.request.urlopen(url, data=body, timeout=30) as response:  # noqa: S310
            answer = json.load(response)
    labels = np.array(answer["outputs"][0]["data"], dtype=int)
    assert (labels == load_digits().target[:32]).mean() > 0.8
