"""From a training problem to everything that is measured and exported: the work of the verb ``train``."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from unfold_supernet.family import checkpoint, handoff
from unfold_supernet.family.artifacts import PREDICTIONS_FILE, write_record
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks.space import Subnet, count_macs
from unfold_supernet.networks.supernet import Supernet
from unfold_supernet.scheduling.escalation import SubnetPredictions, pack_predictions
from unfold_supernet.training import latency
from unfold_supernet.training.accuracy import SubnetQuality, evaluate_predictions, select_front
from unfold_supernet.training.calibration import (
    CalibrationError,
    compute_calibration_error,
    compute_confidence,
)
from unfold_supernet.training.family import train_standalone, train_supernet
from unfold_supernet.training.problem import StandaloneComparison, TrainingProblem, TrainingResult
from unfold_supernet.training.verdict import judge_family
from unfoldkit.api import Progress, RunDir


def train_and_evaluate(
    problem: TrainingProblem,
    directory: RunDir,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingResult:
    """Train the supernet, measure every subnet, and write all artefacts into the run.

    Args:
        problem: The resolved spec.
        directory: The run: receives weights, statistics, extracted subnets, predictions and the record.
        progress: Receives progress.
        clock: Source of time, in seconds.
    """
    data = problem.data
    trained = train_supernet(problem, directory, progress, clock)
    supernet = trained.supernet
    tested = predict_test_rows(supernet, data)
    qualities = evaluate_subnets(tested, len(data.names))
    seconds_by_batch: dict[str, dict[int, float]] = {}
    for name in qualities:
        progress("measure latencies", len(seconds_by_batch), len(qualities))
        seconds_by_batch[name] = latency.measure_latencies(supernet.bound[name], data)
    progress("measure latencies", len(seconds_by_batch), len(qualities))
    subnets = sort_by_macs(supernet)
    comparisons = {}
    if problem.options.standalone:
        extremes = dict.fromkeys((subnets[0], subnets[(len(subnets) - 1) // 2], subnets[-1]))
        comparisons = {
            subnet.name: StandaloneComparison(
                qualities[subnet.name], train_standalone(problem, subnet, directory, progress)
            )
            for subnet in extremes
        }
    _export_subnets(supernet, subnets, data, directory)
    macs = [float(count_macs(supernet.space, subnet)) for subnet in subnets]
    verdict = judge_family(
        qualities,
        [subnets[index].name for index in select_front(macs, list(qualities.values()))],
        [comparison.gap for comparison in comparisons.values()],
        data.y[data.train],
        data.y[data.test],
        problem.goal,
    )
    result = TrainingResult(
        space=supernet.space,
        qualities=qualities,
        seconds_by_batch=seconds_by_batch,
        comparisons=comparisons,
        calibration=_measure_calibration(supernet, data) if len(data.holdout) else {},
        verdict=verdict,
        switch_costs=latency.measure_switch_costs(supernet),
        steps=trained.steps,
        training_s=trained.training_s,
        search=trained.search,
    )
    directory.write(PREDICTIONS_FILE, pack_predictions(tested))
    record = result.summarise(data.names)
    write_record(directory, record)
    profiles = [subnet.profile for subnet in record.subnets]
    handoff.write_handoff(directory, problem.name, data, profiles, tested)
    return result


def sort_by_macs(supernet: Supernet) -> list[Subnet]:
    """Sort the subnets of a supernet by their operations, cheapest first."""
    return sorted(supernet.space.subnets, key=lambda subnet: count_macs(supernet.space, subnet))


def predict_test_rows(supernet: Supernet, data: Dataset) -> SubnetPredictions:
    """Predict the test rows with every subnet, cheapest first."""
    subnets = sort_by_macs(supernet)
    results = [latency.predict_with_confidence(supernet.bound[subnet.name], data, data.test) for subnet in subnets]
    predictions, confidence = (np.stack(rows) for rows in zip(*results, strict=True))
    return SubnetPredictions(tuple(subnet.name for subnet in subnets), predictions, confidence, data.y[data.test])


def evaluate_subnets(tested: SubnetPredictions, classes: int) -> dict[str, SubnetQuality]:
    """Evaluate every subnet on the test rows, cheapest first."""
    return {
        name: evaluate_predictions(row, tested.labels, classes)
        for name, row in zip(tested.names, tested.predictions, strict=True)
    }


def _measure_calibration(supernet: Supernet, data: Dataset) -> dict[str, CalibrationError]:
    """Measure the calibration error of every subnet on the test rows, without and with its temperature."""
    errors = {}
    for subnet in sort_by_macs(supernet):
        bound = supernet.bound[subnet.name]
        logits = latency.compute_all_logits(bound, data, data.test)
        correct = logits.argmax(1) == data.y[data.test]
        # the bound subnet divides by its temperature
        before, after = (
            compute_calibration_error(compute_confidence(logits, divisor), correct)
            for divisor in (1 / bound.temperature, 1.0)
        )
        errors[subnet.name] = CalibrationError(before, after)
    return errors


def _export_subnets(supernet: Supernet, subnets: list[Subnet], data: Dataset, directory: RunDir) -> None:
    for subnet in subnets:
        name = subnet.name
        module = checkpoint.extract_model(supernet.space, supernet.bound[name])
        directory.write(f"subnets/{name}.safetensors", checkpoint.serialise_state(module))
        directory.write(f"subnets/{name}.onnx", checkpoint.export_onnx(supernet.space, module, data.names))
        directory.write(f"stages/{name}.onnx", handoff.export_rows_onnx(supernet.space, module, data.names))
