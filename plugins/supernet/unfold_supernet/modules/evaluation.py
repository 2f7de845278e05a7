"""From a user's module to a trained family, everything that is measured, and the files of its run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from unfold_supernet._types import Float32Array, Task
from unfold_supernet.elasticity.inputs import takes_extra
from unfold_supernet.family.artifacts import PREDICTIONS_FILE, write_record
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.modules.elastic_family import ElasticFamily, elastic
from unfold_supernet.modules.heads import (
    bound_loss,
    evaluate_constant,
    evaluate_outputs,
    finish_outputs,
    make_training_targets,
)
from unfold_supernet.modules.int8 import PrecisionChoice, choose_precision
from unfold_supernet.modules.member_engines import open_member, write_members
from unfold_supernet.modules.onnx_export import export_onnx, measure_disagreement
from unfold_supernet.modules.problem import EAGER_BATCH, ModuleProblem, ModuleResult
from unfold_supernet.modules.training import CheckpointStore, fit
from unfold_supernet.modules.user_module import digest_code, load_module
from unfold_supernet.scheduling.escalation import pack_predictions
from unfold_supernet.scheduling.speed import ENOUGH_S, time_rounds
from unfold_supernet.training.accuracy import Quality
from unfold_supernet.training.confidence_calibration import fit_temperature, measure_calibration
from unfold_supernet.training.latency import (
    Model,
    compute_all_logits,
    measure_latencies,
    tabulate_predictions,
)
from unfold_supernet.training.problem import StandaloneComparison
from unfold_supernet.training.verdict import judge_family
from unfoldkit.api import Progress, RunDir, fingerprint, format_percent, user_error
from unfoldkit.safe_io.arrays import load_tensors

STATE_FILE = "family/module.safetensors"
CHECKPOINT_FILE = "family/module-checkpoint.safetensors"
STATE_VERSION = 2
"""Increase it when the state of a family changes, so that runs are trained again."""
COMPARED_ROWS, MAX_DISAGREEMENT = 32, 1e-3
"""Test rows for which an exported member is compared with the trained one, and how far it may be off."""
SUM_TOLERANCE = 1e-4
"""Difference to 1 up to which the outputs of a row are probabilities."""


def train_module(
    problem: ModuleProblem,
    directory: RunDir,
    progress: Progress,
) -> ModuleResult:
    """Make a family of the module, train it, measure every member, and write the run.

    Args:
        problem: The resolved spec.
        directory: The run: receives weights, ONNX models, predictions and the record.
        progress: Receives progress.

    Raises:
        UnfoldError: The module cannot be loaded, is not elastic, or its training diverged.
    """
    torch.set_num_threads(problem.threads)
    data = problem.data
    progress("trace module", 0, 1)
    module = load_module(problem.source, len(data.names), problem.seed)
    code = digest_code(module, problem.source)
    problem = replace(problem, fingerprint_parts=(*problem.fingerprint_parts, code))
    arrays = _name_arrays(module, data)
    family = _trace_family(problem, module, arrays, progress)
    untrained = copy.deepcopy(family)
    training_s = _train_family(problem, family, directory, progress)
    temperatures = {member.name: _fit_temperature(family, member.name, data) for member in family.members()}
    contents = _export_members(family, data, temperatures, progress)
    contents, precisions = _choose_precisions(problem, contents, arrays, progress)
    write_members(directory, data.x.shape[1:], contents, 0 if family.extra is None else family.extra.shape[1])
    members = {name: open_member(content) for name, content in contents.items()}
    outputs = {name: compute_all_logits(member, data, data.test) for name, member in members.items()}
    qualities = {name: evaluate_outputs(values, data, data.test) for name, values in outputs.items()}
    comparisons = _compare_standalone(problem, untrained, qualities, directory, progress) if problem.compares else {}
    macs = {member.name: member.macs for member in family.members()}
    largest = list(contents)[-1]
    result = ModuleResult(
        qualities=qualities,
        seconds_by_batch={name: measure_latencies(member, data) for name, member in members.items()},
        eager_seconds={name: _measure_eager(family, name, data) for name in members},
        macs=macs,
        parameters={member.name: member.parameters for member in family.members()},
        comparisons=comparisons,
        calibration=(
            measure_calibration(outputs, temperatures, data.y[data.test], data.test_groups)
            if len(data.holdout) and data.task != "values"
            else {}
        ),
        verdict=judge_family(
            qualities,
            list(macs.values()),
            [comparison.gap for comparison in comparisons.values()],
            evaluate_constant(data, qualities[largest]),
            problem.goal,
            data.task,
        ),
        groups=len(family.groups),
        attentions=len(family.heads),
        skippable=sum(len(run.paths) for run in family.runs),
        inelastic=tuple((part.path, part.reason) for part in family.inelastic),
        training_s=training_s,
        takes_extra=family.extra is not None,
        precisions=precisions,
        load_s=float(np.median(time_rounds(partial(open_member, contents[largest]), 5, ENOUGH_S, min_rounds=2))),
    )
    if data.task == "classes":
        directory.write(PREDICTIONS_FILE, pack_predictions(tabulate_predictions(outputs, data.y[data.test])))
    write_record(directory, result.summarize(data.names))
    return result


def _name_arrays(module: nn.Module, data: Dataset) -> dict[str, Float32Array]:
    """Name the arrays of the data that a module takes."""
    return {"x": data.x} | ({"extra": data.extra} if data.extra.shape[1] and takes_extra(module) else {})


def _trace_family(
    problem: ModuleProblem, module: nn.Module, arrays: Mapping[str, Float32Array], progress: Progress
) -> ElasticFamily:
    """Trace the module on two rows, and find what can be left out of it."""
    data = problem.data
    family = elastic(
        module,
        tuple(torch.from_numpy(array[data.train[:2]]) for array in arrays.values()),
        widths=problem.widths,
        depths=problem.depths,
        resolutions=problem.resolutions,
    )
    _check_outputs(family, len(data.names), data.task)
    progress("trace module", 1, 1)
    return family


def _export_members(
    family: ElasticFamily, data: Dataset, temperatures: Mapping[str, float], progress: Progress
) -> dict[str, bytes]:
    """Export every member to ONNX, with its temperature; accuracies are measured in torch, so both must agree.

    Raises:
        UnfoldError: A member returns something else in ONNX Runtime.
    """
    contents = {}
    arrays = (data.x, data.extra)[: len(family.inputs)]
    rows = tuple(torch.from_numpy(array[data.test[:COMPARED_ROWS]]) for array in arrays)
    for index, (name, temperature) in enumerate(temperatures.items()):
        progress("export members", index, len(temperatures))
        member = finish_outputs(family.extract(name), data, temperature)
        contents[name] = export_onnx(member, family.inputs)
        disagreement = measure_disagreement(member, contents[name], rows)
        if not disagreement <= MAX_DISAGREEMENT:
            message = (
                f"member {name} returns other outputs in ONNX Runtime than in torch, by {format_percent(disagreement)}"
            )
            hint = "leave out layers one by one to find the operator, and write it with others"
            raise user_error(message, key="model.from", hint=hint)
    progress("export members", len(temperatures), len(temperatures))
    return contents


def _choose_precisions(
    problem: ModuleProblem, contents: dict[str, bytes], arrays: Mapping[str, Float32Array], progress: Progress
) -> tuple[dict[str, bytes], dict[str, PrecisionChoice]]:
    """Choose int8 or float32 for every member on validation rows; return the models to serve."""
    if problem.max_int8_loss is None:
        return contents, {}
    data, chosen, choices = problem.data, {}, {}
    for index, (name, content) in enumerate(contents.items()):
        progress("choose int8 or float32", index, len(contents))
        chosen[name], choices[name] = choose_precision(
            content, arrays, data.holdout, partial(bound_loss, data), problem.max_int8_loss, problem.seed
        )
    progress("choose int8 or float32", len(contents), len(contents))
    return chosen, choices


def _check_outputs(family: ElasticFamily, count: int, task: Task) -> None:
    with torch.no_grad():
        outputs = family(family.members()[-1].name, *family.inputs)
    if outputs.shape != (len(family.example), count):
        message = f"the module returns {tuple(outputs.shape[1:])} values a row for {count} {task}"
        raise user_error(message, key="model.arguments", hint=f"one output for each, such as num_classes: {count}")
    if task == "classes" and bool((outputs >= 0).all() & ((outputs.sum(1) - 1).abs() < SUM_TOLERANCE).all()):
        message = "the module returns probabilities, and its logits are needed"
        raise user_error(message, key="model.from", hint="remove the softmax at its end")


def _train_family(problem: ModuleProblem, family: ElasticFamily, directory: RunDir, progress: Progress) -> float:
    """Train the family, or read the state that an earlier command trained; return the seconds of training."""
    data = problem.data
    made_from = _compute_fingerprint(problem)
    if directory.has(STATE_FILE, made_from=made_from):
        with directory.decoding(STATE_FILE, "tensors") as content:
            family.load_state_dict(load_tensors(content))
        return 0.0
    seconds = fit(
        family,
        torch.from_numpy(data.x),
        torch.from_numpy(make_training_targets(data)),
        problem.fit,
        lambda epoch, epochs: progress("train family", epoch, epochs),
        _make_store(directory, CHECKPOINT_FILE, made_from),
        torch.from_numpy(data.train),
        None if family.extra is None else torch.from_numpy(data.extra),
    )
    state = {key: tensor.contiguous() for key, tensor in family.state_dict().items()}
    directory.write(STATE_FILE, save(state), made_from=made_from)
    return seconds


def _compute_fingerprint(problem: ModuleProblem) -> str:
    """Compute the fingerprint of all that the weights depend on."""
    return fingerprint(*problem.fingerprint_parts, problem.data.digest, problem.seed, torch.__version__, STATE_VERSION)


def _make_store(directory: RunDir, file: str, made_from: str) -> CheckpointStore:
    """Make a store in a file of the run; a state of other data or another spec does not count."""

    def read() -> bytes | None:
        return directory.read(file) if directory.has(file, made_from=made_from) else None

    path = str(directory.path / file)
    return CheckpointStore(read, lambda content: directory.write(file, content, made_from=made_from), path)


def _bind(family: ElasticFamily, name: str) -> Model:
    """Bind a member as a model; one with a single input ignores the numbers beside it."""
    return lambda x, extra: family(name, *(x, extra)[: len(family.inputs)])


def _fit_temperature(family: ElasticFamily, name: str, data: Dataset) -> float:
    """Fit a member's temperature on the held-out rows, which no weight depends on."""
    if not len(data.holdout) or data.task == "values":
        return 1.0
    groups = None if data.groups is None else data.groups[data.holdout]
    logits = compute_all_logits(_bind(family, name), data, data.holdout)
    logits = logits + data.logit_shift if data.task == "classes" else logits
    return fit_temperature(logits, data.y[data.holdout], groups)


def _measure_eager(family: ElasticFamily, name: str, data: Dataset) -> float:
    return measure_latencies(_bind_module(family.extract(name), len(family.inputs)), data, (EAGER_BATCH,))[EAGER_BATCH]


def _bind_module(module: nn.Module, inputs: int) -> Model:
    """Bind a module as a model; one with a single input ignores the numbers beside it."""
    return lambda x, extra: module(*(x, extra)[:inputs])


def _compare_standalone(
    problem: ModuleProblem,
    untrained: ElasticFamily,
    qualities: dict[str, Quality],
    directory: RunDir,
    progress: Progress,
) -> dict[str, StandaloneComparison]:
    """Train the smallest, middle and largest member alone, from the same start for as many steps."""
    data, members = problem.data, untrained.members()
    extremes = dict.fromkeys((members[0].name, members[(len(members) - 1) // 2].name, members[-1].name))
    x, y, train = (torch.from_numpy(array) for array in (data.x, make_training_targets(data), data.train))
    extra = None if untrained.extra is None else torch.from_numpy(data.extra)
    comparisons = {}
    for name in extremes:
        single = copy.deepcopy(untrained.keep(name))
        made_from = fingerprint(_compute_fingerprint(problem), name)
        store = _make_store(directory, f"alone/{name}.safetensors", made_from)
        fit(single, x, y, problem.fit, partial(progress, f"train {name} standalone"), store, train, extra)
        finished = finish_outputs(single.extract(name), data, 1.0)
        outputs = compute_all_logits(_bind_module(finished, len(untrained.inputs)), data, data.test)
        comparisons[name] = StandaloneComparison(qualities[name], evaluate_outputs(outputs, data, data.test))
    return comparisons
