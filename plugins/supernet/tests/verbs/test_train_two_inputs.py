"""A module with two inputs, from the arrays of a file to served ONNX members."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.served import serving  # noqa: E402
from tests.support import Outcome, call  # noqa: E402

pytestmark = pytest.mark.torch

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(12, 16), nn.Linear(16, 24), nn.Linear(24, classes)

    def forward(self, input_ids, attention_mask):
        x = torch.relu(self.hidden(self.embed(input_ids.long())))
        return self.head((x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


def net(num_classes):
    return Net(num_classes)
"""
SPEC = """
version: 1
kind: supernet
name: mine
data: {source: file, path: tokens.npz}
model: {from: "tokens:net", widths: [0.5, 1], max_int8_loss: 2}
training: {epochs: 8, batch: 32, rate: 0.02}
serving: {slo: 500 ms}
"""
ROWS, TOKENS = 400, 7


def make_arrays() -> dict[str, Any]:
    """Make tokens; their class is the commoner of two kinds among those that the mask does not hide."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 12, (ROWS, TOKENS))
    extra = (np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (ROWS, 1))).astype(np.float32)
    return {"x": x, "extra": extra, "y": ((x >= 6) * extra).sum(1) > extra.sum(1) / 2}


def train(folder: Path, arrays: dict[str, Any]) -> Outcome:
    (folder / "tokens.py").write_text(CODE, "utf-8")
    (folder / "mine.yaml").write_text(SPEC, "utf-8")
    np.savez(folder / "tokens.npz", **arrays)
    sys.modules.pop("tokens", None)
    with contextlib.chdir(folder):
        return call(("train", "mine.yaml", "--allow-code"))


def test_both_inputs_are_trained_exported_and_served(tmp_path: Path) -> None:
    """The mask reaches the network: it learns what depends on it, and a request carries both inputs."""
    arrays = make_arrays()
    done = train(tmp_path, arrays)
    assert done.code in (0, 1), done.err
    assert "receives only x" not in done.out
    session = onnxruntime.InferenceSession(tmp_path / "runs" / "mine" / "subnets" / "1x1.onnx")
    x, extra = arrays["x"][:20].astype(np.float32), arrays["extra"][:20]
    labels = session.run(None, {"x": x, "extra": extra})[0].argmax(1)
    assert (labels == arrays["y"][:20]).mean() > 0.8
    with serving(tmp_path, "runs/mine") as (_, address):
        tensors = [
            {"name": name, "shape": list(array.shape), "datatype": "FP64", "data": array.ravel().tolist()}
            for name, array in (("x", x), ("extra", extra))
        ]
        body = {"inputs": tensors, "parameters": {"deadline_ms": 20_000}}
        request = urllib.request.Request(f"{address}/v2/models/mine/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    served = onnxruntime.InferenceSession(tmp_path / "runs" / "mine" / "subnets" / f"{outputs['net'][0]}.onnx")
    expected = served.run(None, {"x": x, "extra": extra})[0].argmax(1)
    assert outputs["label"] == [str(bool(label)) for label in expected]


def test_a_second_input_that_is_missing_is_named(tmp_path: Path) -> None:
    """Data without the second array ends with exit code 2 before the training; the hint names array and argument."""
    arrays = make_arrays()
    del arrays["extra"]
    done = train(tmp_path, arrays)
    assert done.code == 2
    assert "store attention_mask as the array extra" in " ".join(done.err.split())
