"""A transformer from spec to responses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_run,
    parse_spec,
)
from unfold_supernet.verbs.plan import plan  # noqa: E402
from unfold_supernet.verbs.serve import serve  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Report, RunDir, Service  # noqa: E402

pytestmark = pytest.mark.torch
TRANSFORMER_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space:
  form: transformer
  stages: [{width: 16}, {width: 24}]
  attention: {patch: 2, width: 8, heads: 2}
  expand: [0.25, 1]
  depth: [1, 2]
training: {epochs: 2, batch: 64, alone: false}
serving: {slo: 500 ms, escalate: 60%}
accelerator: {persistent_buffer: 1 KiB, sizes: [1 KiB], bandwidths: [1 GB/s]}
queries: {count: 100}
"""


def test_transformer_is_trained_planned_and_served(tmp_path: Path) -> None:
    """A transformer is trained, planned and served like other forms; the plan states what the layer table omits."""
    spec = parse_spec(TRANSFORMER_SPEC)
    run = make_run(tmp_path)
    report = train(spec, run)
    assert report.metrics["memory_ratio"].value is not None
    files = set(RunDir(tmp_path).files())
    assert {"subnets/0.25x1k1.onnx", "subnets/1x2k1.safetensors", "stages/1x2k1.onnx"} <= files
    planned = plan(spec, run)
    assert planned.decision is not None
    assert set(planned.decision["nets"]) == {"0.25x1k1", "1x2k1"}
    assert "products of activations" in dict(planned.lines)["family"]
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n" + "".join(f"{at / 100}\n" for at in range(20)), "utf-8")
    played = serve(spec, replace(run, options={"replay": str(trace)}))
    assert isinstance(played, Report)
    low, high = (report.metrics[f"accuracy_{end}"].value or 0 for end in ("min", "max"))
    assert low - 5 <= (played.metrics["accuracy_served"].value or 0) <= high + 5
    assert isinstance(serve(spec, run), Service)
    foretold = plan(spec, replace(run, options={"replay": str(trace)}))
    for name in ("attainment", "accuracy_served"):
        assert played.metrics[f"{name}_predicted"].value == foretold.metrics[name].value
    assert (played.metrics["pace"].value or 0) > 0
    heavy = parse_spec(TRANSFORMER_SPEC.replace("serving: {", "serving: {load: 1%, "))
    loaded = [verb(heavy, replace(run, options={"replay": str(trace)})) for verb in (plan, serve)]
    for message in loaded:
        assert isinstance(message, Report)
        assert "demand 1 % of the fastest subnet's capacity" in dict(message.lines)["load"]
        assert message.subtitle[0] != played.subtitle[0]
