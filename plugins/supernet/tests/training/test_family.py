"""Training, resuming and norm statistics."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_run,
    parse_spec,
)
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    build_digits_problem,
)
from unfold_supernet.networks import supernet as net  # noqa: E402
from unfold_supernet.training import (  # noqa: E402
    curriculum,
)
from unfold_supernet.training.accuracy import evaluate_predictions  # noqa: E402
from unfold_supernet.training.family import train_supernet  # noqa: E402
from unfold_supernet.training.latency import predict_classes  # noqa: E402
from unfold_supernet.verbs.build import (  # noqa: E402
    build_training_problem,
)
from unfoldkit.api import (  # noqa: E402
    Progress,
    RunDir,
)

pytestmark = pytest.mark.torch


def _dies(_step: str, done: int, _total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


PROGRESSIVE_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 4}, {width: 8}], expand: [0.5, 1], depth: [1, 2], coupling: independent}
training: {epochs: 2, batch: 256, rule: progressive, sort: true, alone: false}
"""


def _dying(at: int) -> Progress:
    def dies(_step: str, done: int, _total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return dies


def test_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Training that dies after an epoch and is restarted ends with the same weights."""
    problem, run = build_digits_problem(tmp_path / "whole")
    whole = train_supernet(problem, run.directory, run.progress)
    directory = RunDir(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train_supernet(problem, directory, _dies, itertools.count(0, 1000).__next__)
    resumed = train_supernet(problem, directory, run.progress)
    assert resumed.steps == whole.steps
    assert resumed.training_s > 1000
    for name, tensor in whole.supernet.weights.items():
        assert torch.equal(tensor, resumed.supernet.weights[name]), name


def test_logits_of_a_sampled_class_are_shifted(tmp_path: Path) -> None:
    """Where a class was sampled, every member and its temperature are those of the same training and the true odds."""
    problem, run = build_digits_problem(tmp_path / "all")
    whole = train_supernet(problem, run.directory, run.progress).supernet
    sampled = replace(problem, data=replace(problem.data, sampling=(0.25, *[1.0] * 9)))
    directory = RunDir(tmp_path / "sampled")
    found = train_supernet(sampled, directory, run.progress).supernet
    difference = found.weights["head.bias"] - whole.weights["head.bias"]
    assert difference[0] == pytest.approx(math.log(4), rel=1e-5)
    assert float(difference[1:].abs().max()) < 1e-6
    assert torch.equal(found.weights["head.weight"], whole.weights["head.weight"])
    # finishing again changes nothing
    again = train_supernet(sampled, directory, run.progress).supernet
    assert torch.equal(again.weights["head.bias"], found.weights["head.bias"])


def test_smoothed_labels_are_undone_without_held_out_rows(tmp_path: Path) -> None:
    """Without validation rows, members are surer than the smoothed labels made them; without smoothing, as sure."""
    problem, run = build_digits_problem(tmp_path / "smoothed")
    assert problem.options.smoothing > 0
    apart = replace(problem, data=replace(problem.data, holdout=problem.data.holdout[:0]))
    smoothed = train_supernet(apart, run.directory, run.progress).supernet
    assert all(bound.temperature < 1 for bound in smoothed.bound.values())
    plain = replace(apart, options=replace(problem.options, smoothing=0.0), fingerprint_parts=("plain",))
    found = train_supernet(plain, RunDir(tmp_path / "plain"), run.progress).supernet
    assert all(bound.temperature == 1 for bound in found.bound.values())


def test_borrowed_norm_statistics_lose_accuracy(tmp_path: Path) -> None:
    """A small subnet drops towards chance under the largest one's statistics; its own restore it."""
    problem, run = build_digits_problem(tmp_path, epochs=10)
    data = problem.data
    found = train_supernet(problem, run.directory, run.progress).supernet
    small, large = (found.space.subnets[at] for at in (0, -1))
    borrowed, at = [], 0
    for conv in found.bound[small.name].convs:
        at = next(i for i, one in enumerate(found.bound[large.name].convs) if one.name == conv.name)
        mean, variance = found.bound[large.name].statistics[at]
        borrowed.append((mean[: conv.out], variance[: conv.out]))
    wrong = net.bind_subnet(found.space, dict(found.weights), small, tuple(borrowed))
    y = data.y[data.test]
    own, other = (
        evaluate_predictions(predict_classes(one, data, data.test), y, 10).accuracy
        for one in (found.bound[small.name], wrong)
    )
    assert own > 70
    assert other < own - 15


def test_shrinking_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Progressive shrinking that dies in any epoch ends with the same weights after a restart."""
    spec = parse_spec(PROGRESSIVE_SPEC)
    run = make_run(tmp_path / "whole")
    problem = build_training_problem(spec, run)
    whole = train_supernet(problem, run.directory, run.progress)
    last = curriculum.build_phases(whole.supernet.space.subnets, problem.options)[-1].end_epoch
    for at in range(1, last):
        directory = RunDir(tmp_path / str(at))
        with pytest.raises(KeyboardInterrupt):
            train_supernet(problem, directory, _dying(at))
        resumed = train_supernet(problem, directory, run.progress)
        assert resumed.steps == whole.steps
        for name, tensor in whole.supernet.weights.items():
            assert torch.equal(tensor, resumed.supernet.weights[name]), (at, name)
