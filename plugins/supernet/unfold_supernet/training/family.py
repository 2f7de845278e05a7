"""A family from data to measured front: trained, or read from the run if it was trained there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save

from unfold_supernet.arrays import Floats
from unfold_supernet.family import checkpoint
from unfold_supernet.family.datasets import Data
from unfold_supernet.family.names import SPACE
from unfold_supernet.networks.layers import Statistics, Weights
from unfold_supernet.networks.space import Space, Subnet, macs, space_of
from unfold_supernet.networks.supernet import Supernet, bind, calibrate, initial
from unfold_supernet.scheduling.escalation import Answered
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.training.accuracy import Quality, quality
from unfold_supernet.training.curriculum import epochs, phases
from unfold_supernet.training.latency import answers, confident
from unfold_supernet.training.subnet_search import Searched, search
from unfold_supernet.training.trainer import State, learn
from unfoldkit.api import Run, dump, fingerprint


@dataclass(frozen=True, slots=True)
class Trained:
    """A family that is trained, and how many steps each subnet got; ``seconds`` of training now, 0 if it was there."""

    net: Supernet
    steps: dict[str, int]
    seconds: float
    searched: Searched | None = None


def space(spec: SupernetSpec, data: Data) -> Space:
    """Return the space of a spec for its data."""
    assert spec.space is not None  # noqa: S101 - the spec was validated
    return space_of(spec.space, data.x.shape[1], data.x.shape[2:], data.extra.shape[1], len(data.names))


def mark(spec: SupernetSpec, data: Data, seed: int) -> str:
    """Return the fingerprint of all that the weights depend on."""
    told = dump(spec)
    training = {key: value for key, value in told["training"].items() if key != "alone"}
    alike = ("columns alike",) if spec.form == "mlp" else ()
    return fingerprint(told["data"], told["space"], training, data.digest, seed, torch.__version__, *alike)


def train_family(spec: SupernetSpec, data: Data, run: Run) -> Trained:
    """Train the family of a spec, or go on where a run that was killed stopped."""
    whole, made_from = space(spec, data), mark(spec, data, run.seed)
    began = run.clock()
    found = train(spec, whole, whole.subnets, data, run, made_from, checkpoint.CHECKPOINT)
    searched = _searched(spec, whole, found.weights, data, run)
    members = whole if searched is None else replace(whole, subnets=searched.nets)
    if not run.directory.has(SPACE, made_from=made_from):
        checkpoint.keep_family(
            run.directory, members, found.weights, norms(spec, members, found.weights, data), made_from
        )
    return Trained(checkpoint.read_family(run.directory), found.steps, run.clock() - began, searched)


def _searched(spec: SupernetSpec, whole: Space, weights: Weights, data: Data, run: Run) -> Searched | None:
    """Return the members that a search finds in a large space, or nothing: then all are."""
    if not len(data.held):
        return None

    def measure(subnet: Subnet) -> float:
        bound = bind(whole, weights, subnet, own_norms(spec, whole, weights, data, subnet))
        return float((answers(bound, data, data.held) == data.y[data.held]).mean() * 100)

    assert spec.space is not None  # noqa: S101 - the spec was validated
    return search(whole, spec.space.search, measure, run.seed)


def train(
    spec: SupernetSpec, whole: Space, subnets: Sequence[Subnet], data: Data, run: Run, made_from: str, file: str
) -> State:
    """Return the trained state of some subnets, kept in ``file`` after each epoch; weights take inputs as they are."""
    torch.set_num_threads(spec.training.threads)
    alone = subnets[0] if len(subnets) == 1 else None
    start = State(0, initial(whole, run.seed, alone), {}, {})
    if run.directory.has(file, made_from=made_from):
        start = _unpacked(run.directory.read(file), [one.name for one in subnets])
    label = f"train {alone.name} alone" if alone else "train family"
    whole_epochs = epochs(phases(subnets, spec.training), spec.training)
    run.progress(label, start.epoch, whole_epochs)

    def keep(state: State) -> None:
        run.directory.write(file, _packed(state, [one.name for one in subnets]), made_from=made_from)
        run.progress(label, state.epoch, whole_epochs)

    if spec.form != "mlp":
        return learn(whole, subnets, data, spec.training, run.seed, start, keep)
    middle, spread = columns(data)
    alike = replace(data, x=((data.x - middle) / spread).astype(np.float32))
    state = learn(whole, subnets, alike, spec.training, run.seed, start, keep)
    # what is taken off an input moves the sums behind the stem only, of which the norm takes the mean off again
    stem = state.weights["stem.weight"] / torch.from_numpy(spread.astype(np.float32))
    return replace(state, weights={**state.weights, "stem.weight": stem})


def columns(data: Data) -> tuple[Floats, Floats]:
    """Return mean and deviation of each column [columns, 1] over the rows to train on; what never differs has 1."""
    x = data.x[data.train].astype(np.float64)
    return x.mean(axis=0), np.where(x.max(axis=0) > x.min(axis=0), x.std(axis=0), 1.0)


def norms(spec: SupernetSpec, whole: Space, weights: Weights, data: Data) -> dict[str, Statistics]:
    """Return each subnet's statistics from clean training examples."""
    return {one.name: own_norms(spec, whole, weights, data, one) for one in whole.subnets}


def own_norms(spec: SupernetSpec, whole: Space, weights: Weights, data: Data, subnet: Subnet) -> Statistics:
    """Return one subnet's statistics, from the same examples for all."""
    rows = np.random.default_rng(0xCA1).permutation(data.train)[: spec.training.calibrate]
    return calibrate(whole, weights, subnet, torch.from_numpy(data.x[np.sort(rows)]))


def answered(net: Supernet, data: Data) -> Answered:
    """Return what every subnet says of the test rows, cheapest first."""
    ordered = sorted(net.space.subnets, key=lambda one: macs(net.space, one))
    found = [confident(net.bound[one.name], data, data.test) for one in ordered]
    said, confidence = (np.stack(part) for part in zip(*found, strict=True))
    return Answered(tuple(one.name for one in ordered), said, confidence, data.y[data.test])


def qualities(net: Supernet, data: Data, said: Answered | None = None) -> dict[str, Quality]:
    """Return the quality of every subnet on the test rows, cheapest first."""
    found = said or answered(net, data)
    return {name: quality(row, found.y, len(data.names)) for name, row in zip(found.names, found.said, strict=True)}


def trained_alone(spec: SupernetSpec, data: Data, run: Run, subnet: Subnet) -> Quality:
    """Return the quality of a subnet that was trained on its own, with the same batches and steps."""
    whole = space(spec, data)
    file = f"alone/{subnet.name}.safetensors"
    state = train(spec, whole, [subnet], data, run, fingerprint(mark(spec, data, run.seed), subnet.name), file)
    bound = bind(whole, state.weights, subnet, own_norms(spec, whole, state.weights, data, subnet))
    return quality(answers(bound, data, data.test), data.y[data.test], len(data.names))


def _packed(state: State, names: Sequence[str]) -> bytes:
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"momentum/{name}": tensor.contiguous() for name, tensor in state.momentum.items()}
    tensors |= {f"teacher/{name}": tensor.contiguous() for name, tensor in state.teacher.items()}
    tensors["epoch"] = torch.tensor(state.epoch)
    tensors["steps"] = torch.tensor([state.steps.get(name, 0) for name in names])
    return bytes(save(tensors))


def _unpacked(content: bytes, names: Sequence[str]) -> State:
    tensors = read_tensors(content)
    weights, momentum, teacher = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("weights/", "momentum/", "teacher/")
    )
    steps = dict(zip(names, tensors["steps"].tolist(), strict=True))
    return State(int(tensors["epoch"]), weights, momentum, steps, teacher)
