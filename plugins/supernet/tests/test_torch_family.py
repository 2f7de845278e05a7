"""Laws of a trained family: switching, extraction, statistics, resuming."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import load_data, make_options, make_run, make_space, parse_spec  # noqa: E402
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.family.artifacts import (  # noqa: E402
    RECORD_FILE,
    read_predictions,
    read_record,
)
from unfold_supernet.networks import supernet as net  # noqa: E402
from unfold_supernet.networks.space import Space, Subnet  # noqa: E402
from unfold_supernet.replay.problem import select_candidates  # noqa: E402
from unfold_supernet.scheduling import escalation  # noqa: E402
from unfold_supernet.scheduling.policies import SubnetProfile  # noqa: E402
from unfold_supernet.schema.space import SpaceSpec  # noqa: E402
from unfold_supernet.schema.training import DataSpec  # noqa: E402
from unfold_supernet.training import curriculum  # noqa: E402
from unfold_supernet.training.accuracy import evaluate_predictions  # noqa: E402
from unfold_supernet.training.evaluation import predict_test_rows  # noqa: E402
from unfold_supernet.training.family import train_supernet, unpack_state  # noqa: E402
from unfold_supernet.training.latency import measure_switch_costs, predict_classes, time_rounds  # noqa: E402
from unfold_supernet.training.problem import TrainingProblem  # noqa: E402
from unfold_supernet.verbs.build import build_dataset, build_serving_options, build_training_problem  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Report, Run, RunDir, UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch
LARGEST, SMALLEST = (Subnet((e, e), (d, d), (k, k), r) for e, d, k, r in ((1.0, 2, 5, 1.0), (0.25, 1, 3, 0.5)))
STAGES = ({"width": 8}, {"width": 12})
SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {form: conv2d, stages: [{width: 8}, {width: 16}], expand: [0.5, 1], depth: [1, 2]}
training: {epochs: 3, batch: 64, alone: false}
"""


def space(form: str, extra: int = 2) -> Space:
    """Return a space of every combination of three widths, two depths and two kernels."""
    lists = {"expand": (0.25, 0.5, 1.0), "depth": (1, 2), "kernel": (3, 5), "coupling": "independent"}
    lists |= {} if form == "mlp" else {"resolution": (1.0, 0.5)}
    lists |= {"kernel": (1,), "attention": {"width": 12, "heads": 3}} if form == "transformer" else {}
    given = SpaceSpec.model_validate({"form": form, "stages": STAGES, **lists})
    sizes: dict[str, tuple[int, ...]] = {"conv1d": (20,), "conv2d": (9, 7), "mlp": (1,), "transformer": (9, 7)}
    return make_space(given, 3, sizes[form], extra, 4)


def random_net(of: Space, seed: int = 0) -> net.Supernet:
    """Return a family whose weights and statistics are random."""
    weights = net.init_weights(of, seed)
    generator = torch.Generator().manual_seed(seed)
    bound = {}
    for one in of.subnets:
        x = torch.randn((64, of.channels, *of.size), generator=generator)
        bound[one.name] = net.bind_subnet(of, weights, one, net.calibrate_norms(of, weights, one, x))
    return net.Supernet(of, weights, bound)


def inputs(of: Space, rows: int = 5) -> Any:
    """Return random inputs."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((rows, of.channels, *of.size), generator=generator)
    return x, torch.randn((rows, of.extra), generator=generator)


def test_a_slow_net_is_timed_in_few_rounds() -> None:
    """Rounds end once their seconds are enough, but never before the least of them; quick calls get all rounds."""
    assert len(time_rounds(lambda: time.sleep(0.01), 30, enough_s=0.02)) == 5
    assert len(time_rounds(lambda: time.sleep(0.01), 30, enough_s=0.001, min_rounds=1)) == 1
    assert len(time_rounds(lambda: None, 30, enough_s=5.0)) == 30


@pytest.mark.parametrize("rows", [2, 9, 16, 17])
def test_a_row_left_over_is_calibrated_with_others(rows: int) -> None:
    """Statistics are the means over all rows however many are left for the last batch, of a linear stem exactly."""
    of = space("mlp", 0)
    x = torch.randn(rows, 3, 1, generator=torch.Generator().manual_seed(1))
    weights = net.init_weights(of, 0)
    (mean, _variance), *_ = net.calibrate_norms(of, weights, of.largest, x, batch=8)
    torch.testing.assert_close(mean, weights["stem.weight"][:, :, 0] @ x.mean(0)[:, 0])


@pytest.mark.parametrize("form", ["conv1d", "conv2d", "mlp", "transformer"])
def test_a_switched_subnet_is_the_extracted_one(form: str) -> None:
    """For every subnet, the shared weights give bit for bit what the extracted net gives; ONNX as good as that."""
    found = random_net(space(form))
    x, extra = inputs(found.space)
    with torch.inference_mode():
        for name, bound in found.bound.items():
            module = checkpoint.extract_model(found.space, bound)
            said = found(name, x, extra)
            assert torch.equal(said, module(x, extra)), name
            session = onnxruntime.InferenceSession(checkpoint.export_onnx(found.space, module))
            other = session.run(["logits"], {"x": x.numpy(), "extra": extra.numpy()})[0]
            np.testing.assert_allclose(said.numpy(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["conv1d", "transformer"])
def test_nothing_is_copied(form: str) -> None:
    """Every view lies in the memory of the shared weights."""
    found = random_net(space(form))
    homes = {tensor.untyped_storage().data_ptr() for tensor in found.weights.values()}
    for bound in found.bound.values():
        for view in (*bound.views, bound.head):
            assert {tensor.untyped_storage().data_ptr() for tensor in view} <= homes


@pytest.mark.parametrize("form", ["conv2d", "transformer"])
def test_threads_do_not_disturb_each_other(form: str) -> None:
    """Threads that ask for different subnets at once each get what they would get alone."""
    found = random_net(space(form))
    x, extra = inputs(found.space)
    names = list(found.bound)
    alone = {name: found(name, x, extra) for name in names}
    wrong: list[str] = []

    def ask(start: int) -> None:
        for at in range(150):
            name = names[(start + at) % len(names)]
            if not torch.equal(found(name, x, extra), alone[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def digits(folder: Path, epochs: int = 3) -> tuple[TrainingProblem, Run]:
    """Return a small training problem and a run."""
    spec = parse_spec(SPEC.replace("epochs: 3", f"epochs: {epochs}"))
    run = make_run(folder)
    return build_training_problem(spec, run), run


def test_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Training that dies after an epoch, and is started again, ends with the weights of one that did not die."""
    problem, run = digits(tmp_path / "whole")
    whole = train_supernet(problem, run.directory, run.progress)
    directory = RunDir(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train_supernet(problem, directory, _dies)
    resumed = train_supernet(problem, directory, run.progress)
    assert resumed.steps == whole.steps
    for name, tensor in whole.supernet.weights.items():
        assert torch.equal(tensor, resumed.supernet.weights[name]), name


def _dies(_step: str, done: int, _total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_own_statistics_are_needed(tmp_path: Path) -> None:
    """A small subnet under the largest one's statistics falls towards chance; its own bring it back."""
    problem, run = digits(tmp_path, epochs=10)
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


def test_the_sandwich_is_drawn_by_place() -> None:
    """What a step trains depends on seed, epoch, batch and place alone; largest and smallest are always there."""
    subnets = space("conv1d").subnets
    given = make_options(rule="sandwich", samples=2, delay=1)
    late, same = (
        curriculum.find_phase(curriculum.build_phases(found, given), 2) for found in (subnets, list(reversed(subnets)))
    )
    first = [curriculum.draw_subnets(late, 3, 2, batch) for batch in range(50)]
    again = [curriculum.draw_subnets(same, 3, 2, batch) for batch in range(50)]
    assert first == again
    assert all(one[0] == LARGEST and one[-1] == SMALLEST and len(one) == 4 for one in first)
    assert len({one[1] for one in first}) > 5
    assert curriculum.draw_subnets(curriculum.build_phases(subnets, given)[0], 3, 0, 0) == [LARGEST]


@pytest.mark.parametrize("form", ["conv1d", "transformer"])
def test_a_stored_family_answers_the_same(tmp_path: Path, form: str) -> None:
    """A family that is written and read again gives the same logits."""
    found = random_net(space(form))
    directory = RunDir(tmp_path)
    norms = {name: bound.statistics for name, bound in found.bound.items()}
    checkpoint.write_supernet(directory, found.space, dict(found.weights), norms, "x")
    again = checkpoint.read_supernet(directory)
    x, extra = inputs(found.space)
    for name in found.bound:
        assert torch.equal(found(name, x, extra), again(name, x, extra))


@pytest.mark.parametrize("form", ["conv2d", "transformer"])
def test_a_switch_is_a_lookup(form: str) -> None:
    """Routing is a thousand times quicker than building and loading a model; the family is smaller than its nets."""
    cost = measure_switch_costs(random_net(space(form)), 400)
    assert cost.route_p50_s * 1000 < cost.reload_s
    assert cost.shared_bytes < cost.separate_bytes


def test_train_leaves_what_it_says(tmp_path: Path) -> None:
    """The verb trains, measures, and leaves the family, every subnet alone, and the front."""
    spec = parse_spec(SPEC.replace("alone: false", "alone: true"))
    report: Report = train(spec, make_run(tmp_path))
    for name in ("front_points", "accuracy_min", "accuracy_max", "cost_of_sharing_points", "switch_us_p50"):
        assert report.metrics[name].value is not None
    files = RunDir(tmp_path).files()
    assert {"front.json", "family/weights.safetensors", "subnets/0.5x1k3.onnx", "subnets/1x2k3.safetensors"} <= set(
        files
    )
    from unfold_supernet.verbs.plan import plan

    planned = plan(spec, make_run(tmp_path))
    assert planned.decision is not None
    assert planned.decision["nets"] == ["0.5x1k3", "1x2k3"]


def test_data_of_ones_own(tmp_path: Path) -> None:
    """An NPZ and a CSV give the same rows, and the split is by class."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.repeat(["a", "b", "c"], 20)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    lines = [
        "f0,f1,f2,f3,f4,target",
        *(",".join([*map(repr, map(float, row)), label]) for row, label in zip(x, y, strict=True)),
    ]
    (tmp_path / "d.csv").write_text("\n".join(lines), "utf-8")
    run = make_run(tmp_path, base=tmp_path)
    one, other = (load_data(DataSpec(source="file", path=name, test=0.25), run) for name in ("d.npz", "d.csv"))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.y, other.y)
    assert np.bincount(one.y[one.test]).tolist() == [5, 5, 5]
    assert set(one.train).isdisjoint(one.test)
    flat = load_data(DataSpec(source="file", path="d.csv", test=0.25), run, "mlp")
    assert flat.x.shape == (60, 5, 1)
    np.testing.assert_array_equal(flat.x[:, :, 0], one.x[:, 0])


def test_columns_of_a_table_are_told_apart(tmp_path: Path) -> None:
    """A family of form mlp learns which column is large, which nets that treat columns alike cannot."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    np.savez(tmp_path / "d.npz", x=(rng.normal(size=(600, 3)) + 4 * np.eye(3)[y]).astype(np.float32), y=y)
    text = SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = parse_spec(text.replace("epochs: 3", "epochs: 8"))
    report = train(spec, make_run(tmp_path / "run", base=tmp_path))
    assert (report.metrics["accuracy_min"].value or 0) > 80


def test_columns_may_be_of_any_size(tmp_path: Path) -> None:
    """A table in other units gives the same family: it learns as well, and its weights take the values as they are."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 4)) + 3 * np.eye(3, 4)[y]
    x[:, 3] = 7
    units = {"plain": (np.zeros(4), np.ones(4)), "other": (np.array([1000, 0, -50, 2]), np.array([300, 1e-3, 20, 1]))}
    accuracy = {}
    for name, (middle, spread) in units.items():
        np.savez(tmp_path / f"{name}.npz", x=(x * spread + middle).astype(np.float32), y=y)
        text = SPEC.replace("{source: digits}", f"{{source: file, path: {name}.npz}}").replace("conv2d", "mlp")
        spec = parse_spec(text.replace("epochs: 3", "epochs: 8"))
        run = make_run(tmp_path / name, base=tmp_path)
        train(spec, run)
        known = json.loads(run.directory.read(RECORD_FILE))["nets"]
        accuracy[name] = {one["name"]: one["accuracy"] for one in known}
    assert accuracy["other"] == pytest.approx(accuracy["plain"], abs=1)
    assert min(accuracy["other"].values()) > 85


def test_training_that_diverges_is_no_family(tmp_path: Path) -> None:
    """Weights that are no numbers any more end the training with a mistake of the spec, and nothing of them is kept."""
    text = SPEC.replace("conv2d", "transformer").replace("epochs: 3", "epochs: 3, rate: 100, clip: 1e30, warmup: 0")
    spec = parse_spec(text)
    run = make_run(tmp_path)
    with pytest.raises(UnfoldError, match="training diverged"):
        train(spec, run)
    assert not run.directory.has(checkpoint.WEIGHTS_FILE)
    if run.directory.has(checkpoint.CHECKPOINT_FILE):
        kept = unpack_state(run.directory.read(checkpoint.CHECKPOINT_FILE), ["1x2k1", "0.5x1k1"])
        assert all(tensor.isfinite().all() for tensor in kept.weights.values())


def test_classes_that_no_net_recognises_are_told(tmp_path: Path) -> None:
    """A class of which every net misses every test row is named, as accuracy hides it."""
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 40 == 0).astype(np.int64)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(400, 4)).astype(np.float32), y=y)
    text = SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = parse_spec(text)
    report = train(spec, make_run(tmp_path / "run", base=tmp_path))
    assert report.notes == ("No subnet recognises any test row of class 1.",)


def test_unsure_answers_are_asked_again(tmp_path: Path) -> None:
    """A pair gives each row the logits of the net that answers it, and is as accurate as the stored answers say."""
    problem, run = digits(tmp_path, epochs=2)
    data = problem.data
    found = train_supernet(problem, run.directory, run.progress).supernet
    small, large = (one.name for one in found.space.subnets)
    x, extra = torch.from_numpy(data.x[data.test]), torch.from_numpy(data.extra[data.test])
    with torch.inference_mode():
        first, then = found(small, x, extra), found(large, x, extra)
        sure = torch.softmax(first, 1).max(1).values
        below = float(sure.median())
        both, unsure = found.select(small, large, below)(x, extra), sure < below
    assert 0 < int(unsure.sum()) < len(unsure)
    assert torch.equal(both[~unsure], first[~unsure])
    # another batch of rows: equal up to the order of sums
    assert torch.allclose(both[unsure], then[unsure], rtol=1e-4, atol=1e-4)
    nets = [SubnetProfile(name, accuracy, ((1, 1.0),)) for name, accuracy in ((small, 1.0), (large, 2.0))]
    (stored,) = escalation.build_pairs(nets, predict_test_rows(found, data), below)
    assert stored.accuracy == pytest.approx(float((both.argmax(1).numpy() == data.y[data.test]).mean()) * 100, abs=0.3)


@pytest.mark.parametrize("escalate", ["60%", "null"])
def test_a_guard_holds_for_whoever_answers(tmp_path: Path, escalate: str) -> None:
    """Under a guard every net that may answer, alone or in a pair, has the sensitivity; unknown classes are told."""
    text = SPEC + f"serving: {{slo: 20 ms, escalate: {escalate}}}\n"
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
