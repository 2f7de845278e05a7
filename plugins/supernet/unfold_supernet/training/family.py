"""Training of a supernet: resumes where a killed run stopped, and reads the supernet back from its run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import save

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.family import checkpoint
from unfold_supernet.family.artifacts import SPACE_FILE
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks.batch_norm import calibrate_norms
from unfold_supernet.networks.layers import Statistics, Weights
from unfold_supernet.networks.space import Space, Subnet
from unfold_supernet.networks.supernet import Supernet, bind_subnet, init_weights
from unfold_supernet.training.accuracy import SubnetQuality, evaluate_predictions
from unfold_supernet.training.confidence_calibration import fit_temperature, undo_smoothing
from unfold_supernet.training.curriculum import build_phases, count_epochs
from unfold_supernet.training.latency import compute_all_logits, predict_classes
from unfold_supernet.training.problem import SearchResult, TrainingProblem
from unfold_supernet.training.subnet_search import search_subnets
from unfold_supernet.training.trainer import TrainingState, run_training
from unfoldkit.api import Progress, RunDir, fingerprint
from unfoldkit.safe_io.arrays import load_tensors

CALIBRATION = "smoothing and sampling undone, temperatures shrunk"
"""How members are finished; a run that was finished otherwise is finished again, without training."""


@dataclass(frozen=True, slots=True)
class TrainedSupernet:
    """A trained supernet.

    Attributes:
        supernet: Weights and bound subnets.
        steps: Training steps by subnet.
        training_s: Seconds of training, with those before it was killed; about 0 if the run was already trained.
        search: Result of the search, if the space was searched.
    """

    supernet: Supernet
    steps: dict[str, int]
    training_s: float
    search: SearchResult | None = None


def compute_fingerprint(problem: TrainingProblem) -> str:
    """Compute the fingerprint of everything that the weights depend on."""
    standardized = ("columns alike",) if problem.form == "mlp" else ()
    return fingerprint(*problem.fingerprint_parts, problem.data.digest, problem.seed, torch.__version__, *standardized)


def train_supernet(
    problem: TrainingProblem,
    directory: RunDir,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainedSupernet:
    """Train the supernet, or continue where a killed run stopped."""
    space, made_from = problem.space, compute_fingerprint(problem)
    finished_from = fingerprint(made_from, CALIBRATION)
    start = clock()
    state = _train_subnets(problem, space.subnets, directory, progress, made_from, checkpoint.CHECKPOINT_FILE, clock)
    search = _search(problem, state.weights) if problem.is_searched else None
    members = space if search is None else replace(space, subnets=search.subnets)
    if not directory.has(SPACE_FILE, made_from=finished_from):
        norms = {subnet.name: _calibrate(problem, members, state.weights, subnet) for subnet in members.subnets}
        temperatures = {
            subnet.name: _fit_temperature(problem, members, state.weights, subnet, norms[subnet.name])
            for subnet in members.subnets
        }
        checkpoint.write_supernet(directory, members, state.weights, norms, finished_from, temperatures)
    return TrainedSupernet(checkpoint.read_supernet(directory), state.steps, state.earlier_s + clock() - start, search)


def train_standalone(problem: TrainingProblem, subnet: Subnet, directory: RunDir, progress: Progress) -> SubnetQuality:
    """Train a subnet as a standalone model with the same batches and steps, and evaluate it on the test rows."""
    data, space = problem.data, problem.space
    made_from = fingerprint(compute_fingerprint(problem), subnet.name)
    file = f"alone/{subnet.name}.safetensors"
    state = _train_subnets(problem, [subnet], directory, progress, made_from, file)
    bound = bind_subnet(space, state.weights, subnet, _calibrate(problem, space, state.weights, subnet))
    predictions = predict_classes(bound, data, data.test)
    return evaluate_predictions(predictions, data.y[data.test], len(data.names), data.test_groups)


def _search(problem: TrainingProblem, weights: Weights) -> SearchResult:
    space, data = problem.space, problem.data

    def measure(subnet: Subnet) -> float:
        bound = bind_subnet(space, weights, subnet, _calibrate(problem, space, weights, subnet))
        return float((predict_classes(bound, data, data.holdout) == data.y[data.holdout]).mean() * 100)

    return search_subnets(space, problem.search, measure, problem.seed)


def _train_subnets(
    problem: TrainingProblem,
    subnets: Sequence[Subnet],
    directory: RunDir,
    progress: Progress,
    made_from: str,
    file: str,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingState:
    """Train some subnets and store the state in ``file`` after each epoch; the weights accept raw inputs."""
    options, space, data = problem.options, problem.space, problem.data
    torch.set_num_threads(options.threads)
    standalone = subnets[0] if len(subnets) == 1 else None
    state = TrainingState(epoch=0, weights=init_weights(space, problem.seed, standalone), momentum={}, steps={})
    names = [subnet.name for subnet in subnets]
    if directory.has(file, made_from=made_from):
        with directory.decoding(file, "the state of this training") as content:
            state = unpack_state(content, names, state.weights)
    start = clock()
    label = f"train {standalone.name} standalone" if standalone else "train supernet"
    epochs = count_epochs(build_phases(subnets, options), options)
    if state.epoch == epochs:
        state = replace(state, earlier_s=0.0)
    progress(label, state.epoch, epochs)

    def save_state(current: TrainingState) -> None:
        content = pack_state(replace(current, earlier_s=current.earlier_s + clock() - start), names)
        directory.write(file, content, made_from=made_from)
        progress(label, current.epoch, epochs)

    if problem.form != "mlp":
        return _shift_logits(run_training(space, subnets, data, options, problem.seed, state, save_state), data)
    mean, deviation = compute_column_statistics(data)
    standardized = replace(data, x=((data.x - mean) / deviation).astype(np.float32))
    state = run_training(space, subnets, standardized, options, problem.seed, state, save_state)
    # subtracting a mean only shifts the sums behind the stem, which its norm removes again; only the scale matters
    stem = state.weights["stem.weight"] / torch.from_numpy(deviation.astype(np.float32))
    return _shift_logits(replace(state, weights={**state.weights, "stem.weight": stem}), data)


def _shift_logits(state: TrainingState, data: Dataset) -> TrainingState:
    """Add to the logits what they lack because the training rows of a class were sampled."""
    bias = state.weights["head.bias"] + torch.from_numpy(data.logit_shift)
    return replace(state, weights={**state.weights, "head.bias": bias})


def compute_column_statistics(data: Dataset) -> tuple[FloatArray, FloatArray]:
    """Compute mean and standard deviation of each column [columns, 1] over the training rows; 1 if it is constant."""
    x = data.x[data.train].astype(np.float64)
    return x.mean(axis=0), np.where(x.max(axis=0) > x.min(axis=0), x.std(axis=0), 1.0)


def _calibrate(problem: TrainingProblem, space: Space, weights: Weights, subnet: Subnet) -> Statistics:
    """Compute a subnet's norm statistics, from the same training rows for all subnets."""
    rows = _sample_training_rows(problem)
    return calibrate_norms(space, weights, subnet, torch.from_numpy(problem.data.x[rows]))


def _sample_training_rows(problem: TrainingProblem) -> IntArray:
    """Sample the training rows on which members are finished."""
    rows: IntArray = np.random.default_rng(0xCA1).permutation(problem.data.train)[: problem.options.calibrate]
    return np.sort(rows)


def _fit_temperature(
    problem: TrainingProblem, space: Space, weights: Weights, subnet: Subnet, statistics: Statistics
) -> float:
    """Find a subnet's temperature: it undoes label smoothing, and fits held-out rows, which no weight depends on."""
    data, smoothing = problem.data, problem.options.smoothing
    bound = bind_subnet(space, weights, subnet, statistics)
    if not len(data.holdout):
        rows = _sample_training_rows(problem)
        return undo_smoothing(compute_all_logits(bound, data, rows), smoothing, data.logit_shift)
    logits = compute_all_logits(bound, data, data.holdout)
    undone = undo_smoothing(logits, smoothing, data.logit_shift)
    groups = None if data.groups is None else data.groups[data.holdout]
    return undone * fit_temperature(logits / np.float32(undone), data.y[data.holdout], groups)


def pack_state(state: TrainingState, names: Sequence[str]) -> bytes:
    """Serialize a training state; ``names`` is the order of the subnets' steps."""
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"momentum/{name}": tensor.contiguous() for name, tensor in state.momentum.items()}
    tensors |= {f"teacher/{name}": tensor.contiguous() for name, tensor in state.teacher.items()}
    tensors["epoch"] = torch.tensor(state.epoch)
    tensors["seconds"] = torch.tensor(state.earlier_s)
    tensors["steps"] = torch.tensor([state.steps.get(name, 0) for name in names])
    return bytes(save(tensors))


def unpack_state(content: bytes, names: Sequence[str], untrained: Weights) -> TrainingState:
    """Restore a training state from its bytes.

    Args:
        content: What :func:`pack_state` wrote.
        names: The order of the subnets' steps.
        untrained: The weights that the training began with; all tensors have their names and shapes.

    Raises:
        ValueError: It holds something else; so do ``KeyError``, ``RuntimeError`` and the like.
    """
    tensors = load_tensors(content)
    weights, momentum, teacher = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("weights/", "momentum/", "teacher/")
    )
    steps = dict(zip(names, tensors["steps"].tolist(), strict=True))
    epoch, seconds = int(tensors["epoch"]), float(tensors.get("seconds", 0.0))
    if weights.keys() != untrained.keys():
        raise ValueError("it has other weights")
    for name, tensor in (item for part in (weights, momentum, teacher) for item in part.items()):
        if tensor.shape != untrained[name].shape:
            raise ValueError(f"{name} has another shape")
    return TrainingState(
        epoch=epoch, weights=weights, momentum=momentum, steps=steps, teacher=teacher, earlier_s=seconds
    )
