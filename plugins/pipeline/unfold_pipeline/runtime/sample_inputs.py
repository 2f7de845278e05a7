"""What stages read for sample queries if their models do not state it: the outputs of the models before them.

Code states no size, and an ONNX model may have inputs of open size, so random numbers would be none that it ever gets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from unfold_pipeline._types import Tensors
from unfold_pipeline.flow_syntax import ConditionError
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Stage
from unfold_pipeline.runtime.deployment import resolve_models
from unfold_pipeline.runtime.models.data_flow import DataFlow, DataFlowError, name_tensors, stack_inputs, take_row
from unfold_pipeline.runtime.models.flow_resolution import reads_request
from unfold_pipeline.runtime.models.model_loader import read_width
from unfold_pipeline.runtime.replica import READY, BatchAnswer, Replica, launch_replica
from unfold_pipeline.runtime.stage import build_hang_error, build_start_error
from unfoldkit.api import user_error

MAX_SAMPLE_QUERIES = 32
QueryOutputs = dict[int, dict[str, NDArray[Any]]]
"""By stage: the tensors of one query."""


def list_upstream_readers(pipeline: Pipeline, sources: Mapping[str, ModelSource]) -> dict[str, list[str]]:
    """Return the stages that read others and do not state what, with the names of all stages upstream of each.

    Raises:
        UnfoldError: The file of a model is damaged.
    """
    return {
        stage.name: [pipeline.stages[before].name for before in sorted(_list_upstream(pipeline, index))]
        for index, stage in enumerate(pipeline.stages)
        if stage.name in sources and _is_upstream_reader(stage, sources[stage.name])
    }


def record_inputs(
    pipeline: Pipeline, sources: Mapping[str, ModelSource], names: Collection[str]
) -> dict[str, list[Tensors]]:
    """Return what the models of some stages read for sample queries, by stage.

    A stage gets the queries that the conditions lead to it; if there are none in the sample, it gets all.

    Args:
        pipeline: The stages, in topological order.
        sources: Their models.
        names: The stages to record.

    Raises:
        UnfoldError: A stage has no model, or a model does not fit, does not start or answer in time, or fails on all
            of its queries.
    """
    for stage in pipeline.stages:
        if stage.name not in sources:
            message = f"{', '.join(names)} reads what other stages return, and this one has no model"
            hint = "model, or rows or features of the stage that reads"
            raise user_error(message, key=f"stages.{stage.name}", hint=hint)
    models = resolve_models(pipeline, sources)
    readers = {index for index, stage in enumerate(pipeline.stages) if stage.name in names}
    upstream = set[int]().union(*(_list_upstream(pipeline, index) for index in readers))
    rows = models.rows[:MAX_SAMPLE_QUERIES]
    outputs: list[QueryOutputs] = [{} for _ in rows]
    recorded: dict[str, list[Tensors]] = {}
    for index in sorted(upstream | readers):
        name = pipeline.stages[index].name
        reached = [query for query, known in enumerate(outputs) if _is_reached(pipeline, index, known)]
        queries = reached or [query for query, known in enumerate(outputs) if _has_parent(pipeline, index, known)]
        inputs = [_build_input(models.flow, name, index, rows[query], outputs[query]) for query in queries]
        if index in readers:
            recorded[name] = inputs
        if index in upstream:
            answers = _answer_each(name, models.sources[index], inputs)
            for query, answer in zip(queries, answers, strict=True):
                if answer is not None:
                    outputs[query][index] = name_tensors(answer, models.flow.signatures[index])
    return recorded


def _is_upstream_reader(stage: Stage, source: ModelSource) -> bool:
    is_stated = bool(source.rows_file) or (source.features is not None and len(stage.inputs) < 2)
    if is_stated or reads_request(stage):
        return False
    return bool(source.code) or (source.path.endswith(".onnx") and read_width(stage.name, source) is None)


def _list_upstream(pipeline: Pipeline, index: int) -> set[int]:
    upstream, waiting = set[int](), [index]
    while waiting:
        parents = {edge.parent for edge in pipeline.stages[waiting.pop()].parents} - upstream
        upstream |= parents
        waiting += parents
    return upstream


def _is_reached(pipeline: Pipeline, index: int, outputs: QueryOutputs) -> bool:
    edges = pipeline.stages[index].parents
    followed = [edge for edge in edges if edge.parent in outputs]
    try:
        return not edges or any(
            edge.condition is None or edge.condition.holds(outputs[edge.parent]) for edge in followed
        )
    except ConditionError:
        return False


def _has_parent(pipeline: Pipeline, index: int, outputs: QueryOutputs) -> bool:
    return any(edge.parent in outputs for edge in pipeline.stages[index].parents)


def _build_input(flow: DataFlow, name: str, index: int, row: Tensors, outputs: QueryOutputs) -> Tensors:
    try:
        return flow.build_input(index, row, outputs)
    except (ConditionError, DataFlowError) as error:
        raise user_error(str(error), key=f"stages.{name}") from error


def _answer_each(stage: str, source: ModelSource, inputs: Sequence[Tensors]) -> list[Tensors | None]:
    """Return the answer of a model to each query, ``None`` where it fails, from a process of its own."""
    replica = launch_replica(source)
    try:
        message = replica.pipe.recv() if replica.pipe.poll(source.start_s) else "it did not load in time"
        if message != READY:
            raise build_start_error(stage, str(message))
        answers = [_answer_query(stage, source, replica, tensors) for tensors in inputs]
    except EOFError as error:
        raise build_start_error(stage, replica.describe_end()) from error
    finally:
        replica.stop()
    replies = [None if answer is None else take_row(answer.outputs, 0) for answer in answers]
    if all(reply is None for reply in replies):
        message = f"the model fails on each of {len(inputs)} queries, and other stages read what it returns"
        raise user_error(message, key=f"stages.{stage}.model", hint="rows: queries.npz names queries that it answers")
    return replies


def _answer_query(stage: str, source: ModelSource, replica: Replica, tensors: Tensors) -> BatchAnswer | None:
    replica.pipe.send(stack_inputs([tensors]))
    if not replica.pipe.poll(source.start_s):
        raise build_hang_error(stage, "a sample query", source.start_s)
    answer = replica.pipe.recv()
    return answer if isinstance(answer, BatchAnswer) else None
