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

from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.family.datasets import Data, load  # noqa: E402
from unfold_supernet.family.names import FRONT  # noqa: E402
from unfold_supernet.networks import supernet as net  # noqa: E402
from unfold_supernet.networks.space import Space, Subnet, space_of  # noqa: E402
from unfold_supernet.replay import report as replay  # noqa: E402
from unfold_supernet.scheduling import escalation  # noqa: E402
from unfold_supernet.scheduling.policies import Served  # noqa: E402
from unfold_supernet.schema.models import DataSpec, SpaceSpec, SupernetSpec, TrainingSpec  # noqa: E402
from unfold_supernet.training import curriculum, family  # noqa: E402
from unfold_supernet.training.accuracy import quality  # noqa: E402
from unfold_supernet.training.latency import answers, switching, timed  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Report, Run, RunDir, UnfoldError  # noqa: E402
from unfoldkit.engines.local import LocalEngine  # noqa: E402
from unfoldkit.spec.validate import validate  # noqa: E402
from unfoldkit.spec.yaml_reader import parse  # noqa: E402

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
    return space_of(given, 3, sizes[form], extra, 4)


def random_net(of: Space, seed: int = 0) -> net.Supernet:
    """Return a family whose weights and statistics are random."""
    weights = net.initial(of, seed)
    generator = torch.Generator().manual_seed(seed)
    bound = {}
    for one in of.subnets:
        x = torch.randn((64, of.channels, *of.size), generator=generator)
        bound[one.name] = net.bind(of, weights, one, net.calibrate(of, weights, one, x))
    return net.Supernet(of, weights, bound)


def inputs(of: Space, rows: int = 5) -> Any:
    """Return random inputs."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((rows, of.channels, *of.size), generator=generator)
    return x, torch.randn((rows, of.extra), generator=generator)


def test_a_slow_net_is_timed_in_few_rounds() -> None:
    """Rounds end once their seconds are enough, but never before the least of them; quick calls get all rounds."""
    assert len(timed(lambda: time.sleep(0.01), 30, enough=0.02)) == 5
    assert len(timed(lambda: time.sleep(0.01), 30, enough=0.001, least=1)) == 1
    assert len(timed(lambda: None, 30, enough=5.0)) == 30


@pytest.mark.parametrize("rows", [2, 9, 16, 17])
def test_a_row_left_over_is_calibrated_with_others(rows: int) -> None:
    """Statistics are the means over all rows however many are left for the last batch, of a linear stem exactly."""
    of = space("mlp", 0)
    x = torch.randn(rows, 3, 1, generator=torch.Generator().manual_seed(1))
    weights = net.initial(of, 0)
    (mean, _variance), *_ = net.calibrate(of, weights, of.largest, x, batch=8)
    torch.testing.assert_close(mean, weights["stem.weight"][:, :, 0] @ x.mean(0)[:, 0])


@pytest.mark.parametrize("form", ["conv1d", "conv2d", "mlp", "transformer"])
def test_a_switched_subnet_is_the_extracted_one(form: str) -> None:
    """For every subnet, the shared weights give bit for bit what the extracted net gives; ONNX as good as that."""
    found = random_net(space(form))
    x, extra = inputs(found.space)
    with torch.inference_mode():
        for name, bound in found.bound.items():
            module = checkpoint.extract(found.space, bound)
            said = found(name, x, extra)
            assert torch.equal(said, module(x, extra)), name
            session = onnxruntime.InferenceSession(checkpoint.onnx_bytes(found.space, module))
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


def digits(folder: Path, epochs: int = 3) -> tuple[SupernetSpec, Data, Run]:
    """Return a small spec, its data, and a run."""
    spec = validate(SupernetSpec, parse(SPEC.replace("epochs: 3", f"epochs: {epochs}"), "t.yaml"))
    run = Run(directory=RunDir(folder), engine=LocalEngine(1))
    assert spec.data is not None
    return spec, load(spec.data, run), run


def test_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Training that dies after an epoch, and is started again, ends with the weights of one that did not die."""
    spec, data, run = digits(tmp_path / "whole")
    whole = family.train_family(spec, data, run)
    broken = replace(run, directory=RunDir(tmp_path / "broken"), progress=_dies)
    with pytest.raises(KeyboardInterrupt):
        family.train_family(spec, data, broken)
    resumed = family.train_family(spec, data, replace(broken, progress=run.progress))
    assert resumed.steps == whole.steps
    for name, tensor in whole.net.weights.items():
        assert torch.equal(tensor, resumed.net.weights[name]), name


def _dies(_step: str, done: int, _total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_own_statistics_are_needed(tmp_path: Path) -> None:
    """A small subnet under the largest one's statistics falls towards chance; its own bring it back."""
    spec, data, run = digits(tmp_path, epochs=10)
    found = family.train_family(spec, data, run).net
    small, large = (found.space.subnets[at] for at in (0, -1))
    borrowed, at = [], 0
    for conv in found.bound[small.name].convs:
        at = next(i for i, one in enumerate(found.bound[large.name].convs) if one.name == conv.name)
        mean, variance = found.bound[large.name].statistics[at]
        borrowed.append((mean[: conv.out], variance[: conv.out]))
    wrong = net.bind(found.space, dict(found.weights), small, tuple(borrowed))
    y = data.y[data.test]
    own, other = (quality(answers(one, data, data.test), y, 10).accuracy for one in (found.bound[small.name], wrong))
    assert own > 70
    assert other < own - 15


def test_the_sandwich_is_drawn_by_place() -> None:
    """What a step trains depends on seed, epoch, batch and place alone; largest and smallest are always there."""
    subnets = space("conv1d").subnets
    given = TrainingSpec(rule="sandwich", samples=2, delay=1)
    late, same = (
        curriculum.phase_of(curriculum.phases(found, given), 2) for found in (subnets, list(reversed(subnets)))
    )
    first = [curriculum.drawn(late, 3, 2, batch) for batch in range(50)]
    again = [curriculum.drawn(same, 3, 2, batch) for batch in range(50)]
    assert first == again
    assert all(one[0] == LARGEST and one[-1] == SMALLEST and len(one) == 4 for one in first)
    assert len({one[1] for one in first}) > 5
    assert curriculum.drawn(curriculum.phases(subnets, given)[0], 3, 0, 0) == [LARGEST]


@pytest.mark.parametrize("form", ["conv1d", "transformer"])
def test_a_stored_family_answers_the_same(tmp_path: Path, form: str) -> None:
    """A family that is written and read again gives the same logits."""
    found = random_net(space(form))
    directory = RunDir(tmp_path)
    norms = {name: bound.statistics for name, bound in found.bound.items()}
    checkpoint.keep_family(directory, found.space, dict(found.weights), norms, "x")
    again = checkpoint.read_family(directory)
    x, extra = inputs(found.space)
    for name in found.bound:
        assert torch.equal(found(name, x, extra), again(name, x, extra))


@pytest.mark.parametrize("form", ["conv2d", "transformer"])
def test_a_switch_is_a_lookup(form: str) -> None:
    """Routing is a thousand times quicker than building and loading a model; the family is smaller than its nets."""
    cost = switching(random_net(space(form)), 400)
    assert cost.p50 * 1000 < cost.reload
    assert cost.bytes < cost.separate


def test_train_leaves_what_it_says(tmp_path: Path) -> None:
    """The verb trains, measures, and leaves the family, every subnet alone, and the front."""
    spec = validate(SupernetSpec, parse(SPEC.replace("alone: false", "alone: true"), "t.yaml"))
    report: Report = train(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    for name in ("front_points", "accuracy_min", "accuracy_max", "cost_of_sharing_points", "switch_us_p50"):
        assert report.metrics[name].value is not None
    files = RunDir(tmp_path).files()
    assert {"front.json", "family/weights.safetensors", "subnets/0.5x1k3.onnx", "subnets/1x2k3.safetensors"} <= set(
        files
    )
    from unfold_supernet.verbs.plan import plan

    planned = plan(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
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
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1), base=tmp_path)
    one, other = (load(DataSpec(source="file", path=name, test=0.25), run) for name in ("d.npz", "d.csv"))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.y, other.y)
    assert np.bincount(one.y[one.test]).tolist() == [5, 5, 5]
    assert set(one.train).isdisjoint(one.test)
    flat = load(DataSpec(source="file", path="d.csv", test=0.25), run, form="mlp")
    assert flat.x.shape == (60, 5, 1)
    np.testing.assert_array_equal(flat.x[:, :, 0], one.x[:, 0])


def test_columns_of_a_table_are_told_apart(tmp_path: Path) -> None:
    """A family of form mlp learns which column is large, which nets that treat columns alike cannot."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    np.savez(tmp_path / "d.npz", x=(rng.normal(size=(600, 3)) + 4 * np.eye(3)[y]).astype(np.float32), y=y)
    text = SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = validate(SupernetSpec, parse(text.replace("epochs: 3", "epochs: 8"), "t.yaml"))
    report = train(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), base=tmp_path))
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
        spec = validate(SupernetSpec, parse(text.replace("epochs: 3", "epochs: 8"), "t.yaml"))
        run = Run(directory=RunDir(tmp_path / name), engine=LocalEngine(1), base=tmp_path)
        train(spec, run)
        known = json.loads(run.directory.read(FRONT))["nets"]
        accuracy[name] = {one["name"]: one["accuracy"] for one in known}
    assert accuracy["other"] == pytest.approx(accuracy["plain"], abs=1)
    assert min(accuracy["other"].values()) > 85


def test_training_that_diverges_is_no_family(tmp_path: Path) -> None:
    """Weights that are no numbers any more end the training with a mistake of the spec, and nothing of them is kept."""
    text = SPEC.replace("conv2d", "transformer").replace("epochs: 3", "epochs: 3, rate: 100, clip: 1e30, warmup: 0")
    spec = validate(SupernetSpec, parse(text, "t.yaml"))
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1))
    with pytest.raises(UnfoldError, match="training diverged"):
        train(spec, run)
    assert not run.directory.has(checkpoint.WEIGHTS)
    if run.directory.has(checkpoint.CHECKPOINT):
        kept = family._unpacked(run.directory.read(checkpoint.CHECKPOINT), ["1x2k1", "0.5x1k1"])
        assert all(tensor.isfinite().all() for tensor in kept.weights.values())


def test_classes_that_no_net_recognises_are_told(tmp_path: Path) -> None:
    """A class of which every net misses every test row is named, as accuracy hides it."""
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 40 == 0).astype(np.int64)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(400, 4)).astype(np.float32), y=y)
    text = SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = validate(SupernetSpec, parse(text, "t.yaml"))
    report = train(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), base=tmp_path))
    assert report.notes == ("No net recognises any test row of class 1.",)


def test_unsure_answers_are_asked_again(tmp_path: Path) -> None:
    """A pair gives each row the logits of the net that answers it, and is as accurate as the stored answers say."""
    spec, data, run = digits(tmp_path, epochs=2)
    found = family.train_family(spec, data, run).net
    small, large = (one.name for one in found.space.subnets)
    x, extra = torch.from_numpy(data.x[data.test]), torch.from_numpy(data.extra[data.test])
    with torch.inference_mode():
        first, then = found(small, x, extra), found(large, x, extra)
        sure = torch.softmax(first, 1).max(1).values
        below = float(sure.median())
        both, unsure = found.ready(small, large, below)(x, extra), sure < below
    assert 0 < int(unsure.sum()) < len(unsure)
    assert torch.equal(both[~unsure], first[~unsure])
    # another batch of rows: equal up to the order of sums
    assert torch.allclose(both[unsure], then[unsure], rtol=1e-4, atol=1e-4)
    nets = [Served(name, accuracy, ((1, 1.0),)) for name, accuracy in ((small, 1.0), (large, 2.0))]
    (stored,) = escalation.pairs(nets, family.answered(found, data), below)
    assert stored.accuracy == pytest.approx(float((both.argmax(1).numpy() == data.y[data.test]).mean()) * 100, abs=0.3)


@pytest.mark.parametrize("escalate", ["60%", "null"])
def test_a_guard_holds_for_whoever_answers(tmp_path: Path, escalate: str) -> None:
    """Under a guard every net that may answer, alone or in a pair, has the sensitivity; unknown classes are told."""
    text = SPEC + f"serving: {{slo: 20 ms, escalate: {escalate}}}\n"
    spec = validate(SupernetSpec, parse(text.replace("epochs: 3", "epochs: 8"), "t.yaml"))
    run = Run(directory=RunDir(tmp_path), engine=LocalEngine(1), options={})
    train(spec, run)
    given, known = replay.front(spec, run)
    # how far a few epochs lead is not the same on every processor: the better half of the nets keeps it
    least = float(np.median([item["sensitivity"][3] for item in known["nets"]]))
    serving = given.model_copy(update={"guard": {"3": least}})
    kept = replay.guarded(serving, known, run)
    assert {net_.name for net_ in kept} < {item["name"] for item in known["nets"]} or escalate != "null"
    assert any(net.then for net in kept) == (escalate != "null")
    data, stored = load(spec.data, run), checkpoint.read_family(run.directory)  # type: ignore[arg-type]
    threes = data.test[data.y[data.test] == 3]
    for net_ in kept:
        said = answers(stored.ready(escalation.first(net_), net_.then, serving.escalate), data, threes)
        assert (said == 3).mean() >= least - 0.02
    other = serving.model_copy(update={"guard": {"11": 0.9}})
    with pytest.raises(UnfoldError, match="no such class"):
        replay.guarded(other, known, run)
