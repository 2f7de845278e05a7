"""Candidates of a replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import make_run, parse_spec  # noqa: E402
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    DIGITS_SPEC,
)
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.family.artifacts import (  # noqa: E402
    read_predictions,
    read_record,
)
from unfold_supernet.replay.problem import select_candidates  # noqa: E402
from unfold_supernet.scheduling import escalation  # noqa: E402
from unfold_supernet.training.latency import predict_classes  # noqa: E402
from unfold_supernet.verbs.build import build_dataset, build_serving_options  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("escalate", ["60%", "null"])
def test_guard_holds_for_every_candidate(tmp_path: Path, escalate: str) -> None:
    """Every candidate, single or pair, has the guarded sensitivity; unknown classes are refused."""
    text = DIGITS_SPEC + f"serving: {{slo: 20 ms, escalate: {escalate}}}\n"
    spec = parse_spec(text.replace("epochs: 3", "epochs: 8"))
    run = make_run(tmp_path, options={})
    train(spec, run)
    record, tested = read_record(run.directory), read_predictions(run.directory)
    # how far a few epochs lead is not the same on every processor: the better half of the nets keeps it
    least = float(np.median([subnet.sensitivity[3] or 0.0 for subnet in record.subnets]))
    serving = replace(build_serving_options(spec.serving), guard={"3": least})
    kept = select_candidates(serving, record, tested)
    assert {net_.name for net_ in kept} < {subnet.name for subnet in record.subnets} or escalate != "null"
    assert any(net.fallback for net in kept) == (escalate != "null")
    data, stored = build_dataset(spec, run), checkpoint.read_supernet(run.directory)
    threes = data.test[data.y[data.test] == 3]
    for net_ in kept:
        said = predict_classes(
            stored.select(escalation.get_small_subnet(net_), net_.fallback, serving.escalate_below), data, threes
        )
        assert (said == 3).mean() >= least - 0.02
    other = replace(serving, guard={"11": 0.9})
    with pytest.raises(UnfoldError, match="no such class"):
        select_candidates(other, record, tested)
