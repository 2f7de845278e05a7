"""From a training problem to everything that is measured and exported: the work of the verb ``train``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from unfold_supernet._types import Float32Array, IntArray
from unfold_supernet.family import handoff
from unfold_supernet.family.artifacts import PREDICTIONS_FILE, write_record
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks import onnx_export, standalone
from unfold_supernet.networks.space import Subnet, count_macs
from unfold_supernet.networks.supernet import Supernet
from unfold_supernet.scheduling.engines import EngineCosts
from unfold_supernet.scheduling.escalation import SubnetPredictions, pack_predictions
from unfold_supernet.training import latency
from unfold_supernet.training.accuracy import SubnetQuality, evaluate_commonest_class, evaluate_predictions
from unfold_supernet.training.confidence_calibration import measure_calibration
from unfold_supernet.training.engine_costs import measure_engine_costs
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
    """Train the supernet, measure every subnet, and write all artifacts into the run.

    Args:
        problem: The resolved spec.
        directory: The run: receives weights, statistics, extracted subnets, predictions and the record.
        progress: Receives progress.
        clock: Source of time, in seconds.
    """
    data = problem.data
    trained = train_supernet(problem, directory, progress, clock)
    supernet = trained.supernet
    logits = _compute_test_logits(supernet, data)
    tested = latency.tabulate_predictions(logits, data.y[data.test])
    qualities = evaluate_subnets(tested, len(data.names), data.test_groups)
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
    engine_costs: dict[str, EngineCosts] = {}
    for subnet, content in _export_subnets(supernet, subnets, data, directory):
        progress("measure engines", len(engine_costs), len(subnets))
        engine_costs[subnet.name] = measure_engine_costs(content, data, seconds_by_batch[subnet.name])
    progress("measure engines", len(subnets), len(subnets))
    temperatures = {name: bound.temperature for name, bound in supernet.bound.items()}
    verdict = judge_family(
        qualities,
        [float(count_macs(supernet.space, subnet)) for subnet in subnets],
        [comparison.gap for comparison in comparisons.values()],
        evaluate_commonest_class(tested.labels, len(data.names), data.test_groups),
        problem.goal,
    )
    result = TrainingResult(
        space=supernet.space,
        qualities=qualities,
        seconds_by_batch=seconds_by_batch,
        engine_costs=engine_costs,
        comparisons=comparisons,
        calibration=(
            measure_calibration(logits, temperatures, tested.labels, data.test_groups) if len(data.holdout) else {}
        ),
        verdict=verdict,
        switch_costs=latency.measure_switch_costs(supernet),
        steps=trained.steps,
        training_s=trained.training_s,
        search=trained.search,
    )
    directory.write(PREDICTIONS_FILE, pack_predictions(tested))
    record = result.summarize(data.names)
    write_record(directory, record)
    profiles = [subnet.profile for subnet in record.subnets]
    handoff.write_handoff(directory, problem.name, data, profiles, tested)
    return result


def sort_by_macs(supernet: Supernet) -> list[Subnet]:
    """Sort the subnets of a supernet by their operations, cheapest first."""
    return sorted(supernet.space.subnets, key=lambda subnet: count_macs(supernet.space, subnet))


def predict_test_rows(supernet: Supernet, data: Dataset) -> SubnetPredictions:
    """Predict the test rows with every subnet, cheapest first."""
    return latency.tabulate_predictions(_compute_test_logits(supernet, data), data.y[data.test])


def _compute_test_logits(supernet: Supernet, data: Dataset) -> dict[str, Float32Array]:
    return {
        subnet.name: latency.compute_all_logits(supernet.bound[subnet.name], data, data.test)
        for subnet in sort_by_macs(supernet)
    }


def evaluate_subnets(
    tested: SubnetPredictions, classes: int, groups: IntArray | None = None
) -> dict[str, SubnetQuality]:
    """Evaluate every subnet on the test rows, cheapest first; intervals count their ``groups``, if known."""
    return {
        name: evaluate_predictions(row, tested.labels, classes, groups)
        for name, row in zip(tested.names, tested.predictions, strict=True)
    }


def _export_subnets(
    supernet: Supernet, subnets: list[Subnet], data: Dataset, directory: RunDir
) -> Iterator[tuple[Subnet, bytes]]:
    """Write the files of every subnet; yield its ONNX model."""
    for subnet in subnets:
        name = subnet.name
        module = standalone.extract_model(supernet.space, supernet.bound[name])
        directory.write(f"subnets/{name}.safetensors", standalone.serialize_state(module))
        content = onnx_export.export_onnx(supernet.space, module, data.names)
        directory.write(f"subnets/{name}.onnx", content)
        directory.write(f"stages/{name}.onnx", handoff.export_rows_onnx(supernet.space, module, data.names))
        yield subnet, content
