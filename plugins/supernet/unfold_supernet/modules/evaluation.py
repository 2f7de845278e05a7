"""From a user's module to a trained family, everything that is measured, and the files of its run."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from unfold_supernet._types import IntArray
from unfold_supernet.family.artifacts import PREDICTIONS_FILE, write_record
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.modules.family import ElasticFamily, elastic, export_onnx
from unfold_supernet.modules.onnx_members import OnnxMember, open_member, predict_logits, write_members
from unfold_supernet.modules.problem import ModuleProblem, ModuleResult, ModuleSource
from unfold_supernet.modules.training import FitOptions, fit
from unfold_supernet.scheduling.escalation import SubnetPredictions, pack_predictions
from unfold_supernet.training.accuracy import SubnetQuality, evaluate_predictions, select_front
from unfold_supernet.training.calibration import (
    CalibrationError,
    compute_calibration_error,
    compute_confidence,
    fit_temperature,
)
from unfold_supernet.training.latency import BATCHES, ENOUGH_S, time_rounds
from unfold_supernet.training.problem import StandaloneComparison
from unfold_supernet.training.verdict import judge_family
from unfoldkit.api import Progress, RunDir, fingerprint, user_error
from unfoldkit.safe_io.files import decoding, read_bytes

STATE_FILE = "family/module.safetensors"
RATE = 1e-3
"""Learning rate of AdamW where the spec names none."""
ROUNDS = 30
EAGER_BATCH = 32


class _Calibrated(nn.Module):  # type: ignore[misc,unused-ignore]
    """A member with logits divided by its temperature."""

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module, self.temperature = module, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Compute calibrated logits (n, classes)."""
        result: Tensor = self.module(x) / self.temperature
        return result


def train_module(
    problem: ModuleProblem,
    directory: RunDir,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> ModuleResult:
    """Make a family of the module, train it, measure every member, and write the run.

    Args:
        problem: The resolved spec.
        directory: The run: receives weights, ONNX models, predictions and the record.
        progress: Receives progress.
        clock: Source of time, in seconds.

    Raises:
        UnfoldError: The module cannot be loaded, is not elastic, or its training diverged.
    """
    torch.set_num_threads(problem.options.threads)
    data, start = problem.data, clock()
    progress("trace module", 0, 1)
    module = load_module(problem.source, len(data.names), problem.seed)
    family = elastic(
        module,
        torch.from_numpy(data.x[data.train[:2]]),
        widths=problem.widths,
        depths=problem.depths,
        resolutions=problem.resolutions,
    )
    _check_outputs(family, len(data.names))
    progress("trace module", 1, 1)
    _train_family(problem, family, directory, progress)
    training_s = clock() - start
    temperatures = {member.name: _calibrate(family, member.name, data) for member in family.members()}
    contents = {}
    for index, (name, temperature) in enumerate(temperatures.items()):
        progress("export members", index, len(temperatures))
        contents[name] = export_onnx(_Calibrated(family.extract(name), temperature).eval(), family.example)
    progress("export members", len(temperatures), len(temperatures))
    write_members(directory, data.x.shape[1:], contents)
    members = {name: open_member(content) for name, content in contents.items()}
    tested = _predict_test_rows(members, data)
    qualities = {
        name: evaluate_predictions(row, tested.labels, len(data.names))
        for name, row in zip(tested.names, tested.predictions, strict=True)
    }
    comparisons = _compare_standalone(problem, family, qualities, progress) if problem.options.standalone else {}
    macs = {member.name: member.macs for member in family.members()}
    front = [list(macs)[index] for index in select_front(list(macs.values()), list(qualities.values()))]
    gaps = [comparison.gap for comparison in comparisons.values()]
    largest = list(contents)[-1]
    result = ModuleResult(
        qualities=qualities,
        seconds_by_batch={name: _measure_latencies(member, data) for name, member in members.items()},
        eager_seconds={name: _measure_eager(family, name, data) for name in members},
        macs=macs,
        parameters={member.name: member.parameters for member in family.members()},
        comparisons=comparisons,
        calibration={name: _measure_error(members[name], temperatures[name], data) for name in members},
        verdict=judge_family(qualities, front, gaps, data.y[data.train], data.y[data.test], problem.goal),
        groups=len(family.groups),
        skippable=sum(len(run.paths) for run in family.runs),
        inelastic=tuple((part.path, part.reason) for part in family.inelastic),
        training_s=training_s,
        load_s=float(np.median(time_rounds(partial(open_member, contents[largest]), 5, ENOUGH_S, min_rounds=2))),
    )
    directory.write(PREDICTIONS_FILE, pack_predictions(tested))
    write_record(directory, result.summarise(data.names))
    return result


def load_module(source: ModuleSource, classes: int, seed: int) -> nn.Module:
    """Call the user's function, and load the weights to start from.

    Raises:
        UnfoldError: There is no such function, it fails, it returns no module, or the weights do not fit.
    """
    name = f"{source.module}:{source.function}"
    sys.path.insert(0, str(source.folder))
    try:
        function: Any = importlib.import_module(source.module)
        for part in source.function.split("."):
            function = getattr(function, part)
        arguments = dict(source.arguments)
        if "num_classes" not in arguments and _accepts(function, "num_classes"):
            arguments["num_classes"] = classes
        torch.manual_seed(seed)
        module = function(**arguments)
    # the user's code may raise anything
    except Exception as error:
        message = f"{name} fails: {type(error).__name__}: {error}"
        raise user_error(message, key="model.from", hint="check the name and model.arguments") from error
    finally:
        sys.path.remove(str(source.folder))
    if not isinstance(module, nn.Module):
        message = f"{name} returns a {type(module).__name__}, not a torch module"
        raise user_error(message, key="model.from", hint="name a function that returns the network")
    if source.weights is not None:
        _load_weights(module, source)
    return module


def _accepts(function: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(each.name == argument or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _load_weights(module: nn.Module, source: ModuleSource) -> None:
    assert source.weights is not None  # noqa: S101 - the caller checks
    file, content = str(source.weights), read_bytes(source.weights)
    with decoding(file, "safetensors"):
        try:
            state = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # the first line names the module only
        reason = " ".join(str(error).split()[:40])
        message = f"the weights do not fit the module: {reason}"
        raise user_error(message, file=file, key="model.weights", hint="save model.state_dict()") from error


def _check_outputs(family: ElasticFamily, classes: int) -> None:
    with torch.no_grad():
        outputs = family(family.members()[-1].name, family.example)
    if outputs.shape != (len(family.example), classes):
        message = f"the module returns {tuple(outputs.shape[1:])} values a row for {classes} classes"
        raise user_error(message, key="model.arguments", hint=f"one logit a class, such as num_classes: {classes}")


def _train_family(problem: ModuleProblem, family: ElasticFamily, directory: RunDir, progress: Progress) -> None:
    """Train the family, or read the state that an earlier command trained."""
    data = problem.data
    made_from = fingerprint(*problem.fingerprint_parts, data.digest, problem.seed, torch.__version__)
    if directory.has(STATE_FILE, made_from=made_from):
        with directory.decoding(STATE_FILE, "tensors") as content:
            family.load_state_dict(load(content))
        return
    fit(
        family,
        torch.from_numpy(data.x[data.train]),
        torch.from_numpy(data.y[data.train]),
        _make_options(problem),
        lambda epoch, epochs: progress("train family", epoch, epochs),
    )
    state = {key: tensor.contiguous() for key, tensor in family.state_dict().items()}
    directory.write(STATE_FILE, save(state), made_from=made_from)


def _make_options(problem: ModuleProblem) -> FitOptions:
    options = problem.options
    return FitOptions(
        epochs=options.epochs,
        batch=options.batch,
        rate=options.rate if problem.has_rate else RATE,
        optimizer="sgd" if problem.has_rate and options.rate > 10 * RATE else "adamw",
        decay=options.decay,
        distill=options.distill or 0.5,
        clip=options.clip,
        calibrate=options.calibrate,
        seed=problem.seed,
    )


def _calibrate(family: ElasticFamily, name: str, data: Dataset) -> float:
    """Fit a member's temperature on the held-out rows, which no weight depends on."""
    if not len(data.holdout):
        return 1.0
    return fit_temperature(_compute_logits(family, name, data, data.holdout), data.y[data.holdout])


def _compute_logits(family: ElasticFamily, name: str, data: Dataset, rows: IntArray, chunk: int = 512) -> np.ndarray:
    with torch.no_grad():
        parts = [
            family(name, torch.from_numpy(data.x[rows[start : start + chunk]])).numpy()
            for start in range(0, len(rows), chunk)
        ]
    return np.concatenate(parts)


def _predict_test_rows(members: dict[str, OnnxMember], data: Dataset) -> SubnetPredictions:
    logits = {name: predict_logits(member, data.x[data.test]) for name, member in members.items()}
    return SubnetPredictions(
        tuple(members),
        np.stack([values.argmax(1) for values in logits.values()]).astype(np.int64),
        np.stack([compute_confidence(values, 1.0) for values in logits.values()]).astype(np.float32),
        data.y[data.test],
    )


def _measure_error(member: OnnxMember, temperature: float, data: Dataset) -> CalibrationError:
    logits = predict_logits(member, data.x[data.test])
    correct = logits.argmax(1) == data.y[data.test]
    # the exported member divides by its temperature
    before, after = (
        compute_calibration_error(compute_confidence(logits, divisor), correct) for divisor in (1 / temperature, 1.0)
    )
    return CalibrationError(before, after)


def _measure_latencies(member: OnnxMember, data: Dataset) -> dict[int, float]:
    empty, result = torch.zeros(0), {}
    for batch in BATCHES:
        x = torch.from_numpy(data.x[np.resize(data.test, batch)])
        call = partial(member, x, empty)
        time_rounds(call, 2, ENOUGH_S / 10, min_rounds=1)
        result[batch] = float(np.median(time_rounds(call, ROUNDS, ENOUGH_S, min_rounds=2)))
    return result


def _measure_eager(family: ElasticFamily, name: str, data: Dataset) -> float:
    x, module = torch.from_numpy(data.x[np.resize(data.test, EAGER_BATCH)]), family.extract(name)
    with torch.inference_mode():
        call = partial(module, x)
        time_rounds(call, 2, ENOUGH_S / 10, min_rounds=1)
        return float(np.median(time_rounds(call, ROUNDS, ENOUGH_S, min_rounds=2)))


def _compare_standalone(
    problem: ModuleProblem, family: ElasticFamily, qualities: dict[str, SubnetQuality], progress: Progress
) -> dict[str, StandaloneComparison]:
    """Train the smallest, middle and largest member alone, from the same start for as many steps."""
    data, members = problem.data, family.members()
    extremes = dict.fromkeys((members[0].name, members[(len(members) - 1) // 2].name, members[-1].name))
    x, y = torch.from_numpy(data.x[data.train]), torch.from_numpy(data.y[data.train])
    start = load_module(problem.source, len(data.names), problem.seed)
    comparisons = {}
    for name in extremes:
        fresh = elastic(
            start, family.example, widths=problem.widths, depths=problem.depths, resolutions=problem.resolutions
        )
        single = fresh.keep(name)
        fit(single, x, y, _make_options(problem), partial(progress, f"train {name} standalone"))
        predictions = _compute_logits(single, name, data, data.test).argmax(1)
        alone = evaluate_predictions(predictions, data.y[data.test], len(data.names))
        comparisons[name] = StandaloneComparison(qualities[name], alone)
    return comparisons
