"""What each model of a served pipeline reads: tensors of the stages upstream, or the row of the request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import RowArray, Tensors
from unfold_pipeline.flow_syntax import find_tensor
from unfold_pipeline.problem.pipeline import Pipeline, TensorInput, TensorSource
from unfold_pipeline.problem.routing import Item, Routes
from unfold_pipeline.runtime.models.model_signature import DEFAULT_OUTPUT, ModelSignature, TensorType

Outputs = Mapping[int, dict[str, NDArray[Any]]]
"""By stage: the tensors of one query."""
Value = TypeVar("Value")
ROW_INPUT = "x"
"""The name of the input of a model that reads rows."""


class DataFlowError(ValueError):
    """The output of a stage does not fit what reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFeed:
    """What the model of a stage reads.

    Attributes:
        inputs: Its inputs and their sources.
        is_named: Whether it gets tensors by name, instead of one row.
        is_flat: Whether each tensor is flattened to a row of numbers.
        missing: Stands for each value of a stage that was skipped.
        skippable: Stages among its sources that may be skipped.
    """

    inputs: tuple[TensorInput, ...]
    is_named: bool
    is_flat: bool
    missing: float
    skippable: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class DataFlow:
    """The data of a pipeline in service.

    Attributes:
        feeds: What the model of each stage reads; ``None`` for the row of the request.
        signatures: What each model returns, as far as it is known.
    """

    feeds: tuple[StageFeed | None, ...]
    signatures: tuple[ModelSignature | None, ...]

    def includes_request(self, stage: int) -> bool:
        """Return whether the input of a stage includes what a client has sent, alone or beside outputs."""
        feed = self.feeds[stage]
        return feed is None or any(source.stage is None for item in feed.inputs for source in item.sources)

    def build_input(self, stage: int, row: Tensors, outputs: Outputs) -> Tensors:
        """Return what the model of a stage reads for one query.

        Args:
            stage: Its index.
            row: The row of the request; tensors by name are what the model reads.
            outputs: What the stages upstream of the item returned.

        Raises:
            DataFlowError: A stage upstream has returned something else than the mapping needs.
        """
        feed = self.feeds[stage]
        if feed is None or isinstance(row, dict):
            return row
        tensors = {}
        for tensor_input in feed.inputs:
            parts = [part for source in tensor_input.sources for part in self._read_source(source, feed, row, outputs)]
            tensors[tensor_input.name] = _join_tensors(tensor_input.name, parts, is_flat=feed.is_flat)
        return tensors if feed.is_named else next(iter(tensors.values()))

    def pass_on(self, routes: Routes, item: Item, output: Tensors, received: dict[Item, Outputs]) -> list[Item]:
        """Hand the output of an item to the items that may read it; return those that are ready.

        Args:
            routes: The routes of its query.
            item: The item that is done.
            output: What its model has returned.
            received: By item of the query that is not done, what the stages upstream have returned; is updated.

        Raises:
            ConditionError: A condition cannot be tested on the output.
        """
        stage, pipeline = item[0], routes.pipeline
        tensors = name_tensors(output, self.signatures[stage])
        _check_output(pipeline.stages[stage].name, self.signatures[stage], tensors)
        followed = {child: _is_followed(routes, stage, child, tensors) for child in pipeline.children(stage)}
        lineage = {**received.pop(item, {}), stage: tensors}
        for flow in routes.list_flows(item):
            if followed[flow[0]]:
                received[flow] = {**received.get(flow, {}), **lineage}
        return list(routes.release_children(item, followed.__getitem__))

    def _read_source(
        self, source: TensorSource, feed: StageFeed, row: RowArray, outputs: Outputs
    ) -> Iterator[NDArray[Any]]:
        if source.stage is None:
            yield row
        elif source.stage in outputs:
            if source.stage not in feed.skippable:
                yield from select_tensors(outputs[source.stage], source.tensor, self.signatures[source.stage])
                return
            # other queries of the batch may have skipped the stage: all have the shape that is stated
            for stated in self._list_stated(source):
                yield np.reshape(outputs[source.stage][stated.name], stated.shape or ())
        else:
            for stated in self._list_stated(source):
                yield np.full(stated.shape or (), "" if stated.is_text else feed.missing)

    def _list_stated(self, source: TensorSource) -> list[TensorType]:
        """Return the tensors of a source as its signature states them."""
        signature = None if source.stage is None else self.signatures[source.stage]
        return select_tensors(signature.types if signature else {}, source.tensor, signature)


def name_tensors(output: Tensors, signature: ModelSignature | None = None) -> dict[str, NDArray[Any]]:
    """Return an output by tensor; a single one has the name in the signature, or is named ``output``."""
    if isinstance(output, dict):
        return output
    is_known = signature is not None and len(signature.outputs) == 1
    return {signature.outputs[0].name if signature and is_known else DEFAULT_OUTPUT: np.asarray(output)}


def format_output(output: Tensors) -> Any:
    """Return the output for one query as plain data: a mapping by tensor if there are several."""
    if isinstance(output, dict):
        return {name: np.asarray(tensor).tolist() for name, tensor in output.items()}
    return np.asarray(output).tolist()


def encode_answer(answer: Any) -> str:
    """Return the answer of a stage as JSON text.

    JSON has no NaN, infinity or bytes: they become null and base64.

    Raises:
        TypeError: The answer is of a type without a JSON form.
    """
    try:
        return json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError):
        return msgspec.json.encode(answer).decode()


def stack_inputs(inputs: Sequence[Tensors]) -> Tensors:
    """Return what the model reads for several queries as one batch.

    Raises:
        ValueError: The tensors of the queries differ in shape.
    """
    first = inputs[0]
    if isinstance(first, dict):
        return {name: _stack_values([item[name] for item in inputs if isinstance(item, dict)]) for name in first}
    return _stack_values(inputs)


def _stack_values(values: Sequence[Any]) -> NDArray[Any]:
    """Stack values as one array; texts next to numbers stay what they are, whatever else is in the batch."""
    tensors = [np.asarray(value) for value in values]
    if len({tensor.dtype.kind in "US" for tensor in tensors}) > 1:
        # NumPy would write the number that stands for a skipped stage as a text
        tensors = [tensor.astype(object) for tensor in tensors]
    return np.stack(tensors)


def count_rows(batch: Tensors) -> int:
    """Return the number of queries in a batch."""
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)


def take_row(outputs: Tensors, index: int) -> Tensors:
    """Return the output of one query of a batch."""
    if isinstance(outputs, dict):
        return {name: _take_value(tensor, index) for name, tensor in outputs.items()}
    return np.asarray(_take_value(outputs, index))


def _take_value(tensor: NDArray[Any], index: int) -> Any:
    value = tensor[index]
    if not isinstance(value, bytes) or isinstance(value, np.bytes_):
        return value
    # as an array of bytes it would lose the zeros at its end
    wrapped = np.empty((), object)
    wrapped[()] = value
    return wrapped


def count_bytes(batch: Tensors) -> int:
    """Return the size of a batch in memory."""
    return sum(tensor.nbytes for tensor in batch.values()) if isinstance(batch, dict) else batch.nbytes


def pass_requests(pipeline: Pipeline) -> DataFlow:
    """Return the flow in which every stage reads the row of the request."""
    nothing = (None,) * len(pipeline.stages)
    return DataFlow(nothing, nothing)


def _is_followed(routes: Routes, stage: int, child: int, tensors: Mapping[str, NDArray[Any]]) -> bool:
    if not routes.tests_values:
        return True
    edge = next(edge for edge in routes.pipeline.stages[child].parents if edge.parent == stage)
    return edge.condition is None or edge.condition.holds(tensors)


def select_tensors(tensors: Mapping[str, Value], name: str, signature: ModelSignature | None) -> list[Value]:
    """Return the tensor of a name, or all of the whole output.

    Raises:
        ConditionError: No tensor has the name.
    """
    if name:
        return [find_tensor(tensors, name)]
    return [tensor for key, tensor in tensors.items() if signature is None or key not in signature.extras]


def _join_tensors(name: str, parts: Sequence[NDArray[Any]], *, is_flat: bool) -> NDArray[Any]:
    """Return the parts of an input as one tensor; several become a row of numbers."""
    if len(parts) == 1:
        return np.ravel(parts[0]) if is_flat else np.asarray(parts[0])
    if any(np.asarray(part).dtype.kind not in "biuf" for part in parts):
        raise DataFlowError(f"text cannot be joined with other tensors into {name}")
    return np.concatenate([np.ravel(part) for part in parts])


def _check_output(name: str, signature: ModelSignature | None, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Reject an output of code that differs from what its spec states."""
    if signature is None or not signature.is_code:
        return
    for tensor in signature.outputs:
        if tensor.name not in tensors:
            raise DataFlowError(f"{name} returned no tensor {tensor.name}: {', '.join(tensors)}")
        if np.size(tensors[tensor.name]) != tensor.size:
            count = np.size(tensors[tensor.name])
            raise DataFlowError(f"{name} returned {count} values as {tensor.name}, and its spec states {tensor.size}")
