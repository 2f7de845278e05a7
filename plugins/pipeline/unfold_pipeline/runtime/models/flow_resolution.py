"""Compare the inputs and conditions of a spec with the models before the first query: names, types and sizes.

Models that do not state them (code without ``outputs``) are checked as they answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline.flow_syntax import ConditionError, TensorValue, find_tensor
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Stage, TensorInput, TensorSource
from unfold_pipeline.runtime.models.data_flow import ROW_INPUT, DataFlow, StageFeed, pass_requests, select_tensors
from unfold_pipeline.runtime.models.model_loader import read_width
from unfold_pipeline.runtime.models.model_signature import DEFAULT_OUTPUT, ModelSignature, TensorType, read_signature
from unfold_pipeline.runtime.models.onnx_inputs import ModelInput
from unfoldkit.api import did_you_mean, user_error


def reads_request(stage: Stage) -> bool:
    """Return whether a stage reads the row of the request and nothing else."""
    if not stage.inputs:
        return not stage.parents
    sources = [source for tensor_input in stage.inputs for source in tensor_input.sources]
    return len(sources) == 1 and sources[0].stage is None


def find_request_width(pipeline: Pipeline, sources: Sequence[ModelSource]) -> int | None:
    """Return the numbers of a query, as the first model that reads all of them states them; ``None`` if none does.

    Raises:
        UnfoldError: A model is damaged, or reads other rows than that one.
    """
    readers = [
        (stage.name, source) for stage, source in zip(pipeline.stages, sources, strict=True) if reads_request(stage)
    ]
    widths = [(name, source, source.features or read_width(name, source)) for name, source in readers]
    features = next((width for _, source, width in widths if width is not None and not source.columns), None)
    if features is not None:
        for name, source, width in widths:
            check_request_width(name, source, width, features)
    return features


def check_request_width(stage: str, source: ModelSource, width: int | None, features: int) -> None:
    """Reject a stage if its model reads other rows than the queries.

    Raises:
        UnfoldError: It needs another number of features, or a column that the queries do not have.
    """
    required = max(source.columns) + 1 if source.columns else width
    if required is None or required == features or (source.columns and required < features):
        return
    hint = f"stages.{stage}.model.columns names the numbers of a query that it reads"
    message = f"reads {required} numbers per row, and queries have {features}"
    raise user_error(message, key=f"stages.{stage}.model", hint=hint)


def request_tensors(pipeline: Pipeline, sources: Sequence[ModelSource]) -> tuple[ModelSource, ...]:
    """Return the models with the tensors that inputs and conditions of other stages name."""
    return tuple(
        replace(source, wanted=tuple(dict.fromkeys(_list_wanted(pipeline, index))))
        for index, source in enumerate(sources)
    )


def resolve_data_flow(pipeline: Pipeline, sources: Sequence[ModelSource], features: int | None = None) -> DataFlow:
    """Hold the inputs and conditions of the stages against their models.

    Args:
        pipeline: The stages with their inputs and conditions.
        sources: The models, as :func:`request_tensors` returns them.
        features: Numbers of the row of a request, if they are known.

    Raises:
        UnfoldError: A tensor does not exist, or has a type or size that its reader does not take.
    """
    if not any(stage.parents for stage in pipeline.stages):
        return pass_requests(pipeline)
    resolver = _FlowResolver(pipeline, sources, features, list_certain_sources(pipeline))
    feeds = tuple(resolver.resolve_feed(index) for index in range(len(sources)))
    for index in range(len(sources)):
        resolver.check_conditions(index)
    return DataFlow(feeds, tuple(resolver.signatures.get(index) for index in range(len(sources))))


def list_certain_sources(pipeline: Pipeline) -> list[set[int]]:
    """Return for each stage the stages upstream of it that have run, with their output here, whenever it runs."""
    certain: list[set[int]] = []
    for stage in pipeline.stages:
        flows = [{edge.parent} | certain[edge.parent] for edge in stage.parents]
        upstream = set.intersection(*flows) if flows else set()
        if len(flows) > 1:
            # each flow that comes implies stages that have run, and the certain flows of these come too
            implied = set.intersection(*(_imply_stages(pipeline, flow, certain) for flow in flows))
            for edge, flow in zip(stage.parents, flows, strict=True):
                if edge.parent in implied and stage.is_certain(edge):
                    upstream |= flow
        certain.append(upstream)
    return certain


@dataclass(frozen=True, slots=True)
class _FlowResolver:
    """Compares inputs and conditions with models; it inspects each model once, and only if it matters."""

    pipeline: Pipeline
    sources: Sequence[ModelSource]
    features: int | None
    certain: Sequence[set[int]]
    signatures: dict[int, ModelSignature] = field(default_factory=dict)

    def resolve_feed(self, index: int) -> StageFeed | None:
        """Return what the model of a stage reads; ``None`` for the row of the request."""
        stage = self.pipeline.stages[index]
        if reads_request(stage):
            # x is the name of the tensor of a request, whatever the model calls it
            if [item.name for item in stage.inputs] not in ([], [ROW_INPUT]):
                self._check_names(stage, self._inspect(index))
            return None
        signature = self._inspect(index)
        inputs = self._check_names(stage, signature) if stage.inputs else self._list_default(stage, signature)
        if len(inputs) > 1 and signature.columns:
            hint = "leave it out: inputs selects what the model reads"
            raise user_error("several inputs have no columns", key=f"stages.{stage.name}.model.columns", hint=hint)
        sources = {source.stage for tensor_input in inputs for source in tensor_input.sources}
        feed = StageFeed(
            inputs=inputs,
            is_named=len(inputs) > 1,
            # code that states one feature reads rows of one number, as it does from a request and a profile
            is_flat=not signature.is_code or (signature.width == 1 and len(inputs) == 1),
            missing=stage.missing,
            skippable=frozenset(source for source in sources - self.certain[index] if source is not None),
        )
        for tensor_input in inputs:
            self._check_input(index, tensor_input, signature)
        return feed

    def check_conditions(self, index: int) -> None:
        """Reject conditions on tensors that do not exist, are no single value, or are compared to another type."""
        stage = self.pipeline.stages[index]
        for edge in stage.parents:
            if edge.condition is None:
                continue
            parent = self.pipeline.stages[edge.parent].name
            key = f"stages.{stage.name}.when" + (f".{parent}" if len(stage.parents) > 1 else "")
            types = self._inspect(edge.parent).types
            for value, constant in edge.condition.list_values() if types else ():
                if problem := _describe_untestable(value, constant, types):
                    raise user_error(
                        f"{parent}: {problem}", key=key, hint=self._list_tensors(value.tensor, edge.parent)
                    )

    def _inspect(self, index: int) -> ModelSignature:
        if index not in self.signatures:
            self.signatures[index] = read_signature(self.pipeline.stages[index].name, self.sources[index])
        return self.signatures[index]

    def _check_names(self, stage: Stage, signature: ModelSignature) -> tuple[TensorInput, ...]:
        """Return the inputs of the spec in the order of the model."""
        key, names = f"stages.{stage.name}.inputs", [item.name for item in stage.inputs]
        if signature.is_code:
            unfit = [name for name in names if len(names) > 1 and not name.isidentifier()]
            if unfit:
                hint = "code gets several inputs as keyword arguments"
                raise user_error(f"{unfit[0]} is not the name of an argument", key=f"{key}.{unfit[0]}", hint=hint)
            return stage.inputs
        expected = [item.name for item in signature.inputs] or [ROW_INPUT]
        for name in names:
            if name not in expected:
                hint = did_you_mean(name, expected)
                raise user_error(f"the model has no input {name}", key=f"{key}.{name}", hint=hint)
        if absent := [name for name in expected if name not in names]:
            raise user_error(f"the input {absent[0]} of the model has no source", key=key, hint=f"{absent[0]}: STAGE")
        return tuple(sorted(stage.inputs, key=lambda item: expected.index(item.name)))

    def _list_default(self, stage: Stage, signature: ModelSignature) -> tuple[TensorInput, ...]:
        """Return inputs that are named like a tensor of one parent, else one input of all that the parents return."""
        matches = {}
        for model_input in signature.inputs:
            parents = [edge.parent for edge in stage.parents if model_input.name in self._inspect(edge.parent).types]
            if len(parents) == 1:
                matches[model_input.name] = (TensorSource(parents[0], model_input.name),)
        if signature.inputs and len(matches) == len(signature.inputs):
            return tuple(TensorInput(name, sources) for name, sources in matches.items())
        if len(signature.inputs) > 1:
            absent = next(item.name for item in signature.inputs if item.name not in matches)
            parent = self.pipeline.stages[stage.parents[0].parent].name
            message = f"the model has {len(signature.inputs)} inputs, and no upstream tensor is named {absent}"
            raise user_error(message, key=f"stages.{stage.name}", hint=f"inputs: {{{absent}: {parent}.TENSOR, ...}}")
        name = signature.inputs[0].name if signature.inputs else ROW_INPUT
        return (TensorInput(name, tuple(TensorSource(edge.parent) for edge in stage.parents)),)

    def _check_input(self, index: int, tensor_input: TensorInput, signature: ModelSignature) -> None:
        stage = self.pipeline.stages[index]
        is_written = tensor_input in stage.inputs
        key = f"stages.{stage.name}.inputs.{tensor_input.name}" if is_written else f"stages.{stage.name}.after"
        model_input = next((item for item in signature.inputs if item.name == tensor_input.name), None)
        types = [tensor for source in tensor_input.sources for tensor in self._list_types(source, key)]
        reads_text = model_input is not None and model_input.is_text
        _require_kind(tensor_input.name, types, key, reads_text=reads_text, is_code=signature.is_code)
        self._check_missing(index, tensor_input, model_input, key)
        sizes = [tensor.size for tensor in types]
        # code states one number of features, which is that of no single keyword argument of several
        is_one_of_several = signature.is_code and len(stage.inputs) > 1
        if None not in sizes and not is_one_of_several:
            size = sum(size for size in sizes if size is not None)
            if problem := _describe_misfit(size, model_input, signature):
                hint = f"inputs: {{{tensor_input.name}: STAGE.TENSOR}} selects what the model reads"
                raise user_error(f"{problem}, and gets {size} ({_format_sources(types)})", key=key, hint=hint)
        if model_input is not None and np.dtype(model_input.dtype).kind in "iub":
            for tensor in types:
                if tensor.kind == "f" and tensor.name:
                    message = f"{tensor.name} holds real numbers, and the input takes {model_input.dtype}"
                    raise user_error(message, key=key, hint="a tensor of integers")

    def _list_types(self, source: TensorSource, key: str) -> Iterator[TensorType]:
        """Yield the tensors of a source; those of a request have no name."""
        if source.stage is None:
            yield TensorType("", "f", None if self.features is None else (self.features,))
            return
        name, types = self.pipeline.stages[source.stage].name, self._inspect(source.stage).types
        if not types:
            yield TensorType(source.tensor or name)
            return
        try:
            yield from select_tensors(types, source.tensor, self._inspect(source.stage))
        except ConditionError as error:
            message = f"the model of {name} returns no tensor {source.tensor}"
            raise user_error(message, key=key, hint=self._list_tensors(source.tensor, source.stage)) from error

    def _list_tensors(self, name: str, stage: int) -> str:
        """Return what would do instead of a tensor that a stage does not return, or not according to the spec."""
        types = self._inspect(stage).types
        known = ("" if name in types else did_you_mean(name, types)) or f"it returns {', '.join(types)}"
        is_stated = bool(self.sources[stage].outputs)
        return f"{known}; stages.{self.pipeline.stages[stage].name}.model.outputs states all" if is_stated else known

    def _check_missing(self, index: int, tensor_input: TensorInput, model_input: ModelInput | None, key: str) -> None:
        """Reject a source that may be skipped if nothing can stand for its output."""
        stage = self.pipeline.stages[index]
        for source in tensor_input.sources:
            if source.stage is None or source.stage in self.certain[index]:
                continue
            name = self.pipeline.stages[source.stage].name
            if any(tensor.size is None for tensor in self._list_types(source, key)):
                message = f"{name} may be skipped, and the size of its output is not known"
                if self.sources[source.stage].code:
                    hint = f"stages.{name}.model.outputs: {{{source.tensor or DEFAULT_OUTPUT}: 3}} states it"
                else:
                    hint = "export the model with fixed sizes"
                raise user_error(message, key=key, hint=hint)
            if model_input is not None and model_input.is_text:
                if all(tensor.is_text for tensor in self._list_types(source, key)):
                    continue
                message = f"{name} may be skipped, and no number can stand for text"
                raise user_error(message, key=key, hint="a stage that always runs returns it")
            if model_input is not None and np.dtype(model_input.dtype).kind != "f" and math.isnan(stage.missing):
                message = f"{name} may be skipped, and NaN cannot stand for {model_input.dtype}"
                raise user_error(message, key=key, hint=f"stages.{stage.name}.missing: 0")


def _require_kind(name: str, types: Sequence[TensorType], key: str, *, reads_text: bool, is_code: bool) -> None:
    """Reject text for an input of numbers, numbers for one of text, and text in a joined row."""
    text = next((tensor.name for tensor in types if tensor.is_text), "")
    if text and (len(types) > 1 or not (is_code or reads_text)):
        hint = f"inputs: {{{name}: STAGE.TENSOR}} selects a tensor of numbers"
        raise user_error(f"{text} holds text, and the model reads numbers", key=key, hint=hint)
    number = next((tensor.name or "request" for tensor in types if tensor.kind and not tensor.is_text), "")
    if reads_text and (number or len(types) > 1):
        hint = f"inputs: {{{name}: STAGE.TENSOR}} selects a tensor of text"
        raise user_error(f"{number or 'a joined row'} holds numbers, and the model reads text", key=key, hint=hint)


def _imply_stages(pipeline: Pipeline, ran: set[int], certain: Sequence[set[int]]) -> set[int]:
    """Return the stages that have run or will run for a query that the stages ``ran`` have served."""
    implied = set(ran)
    for index, stage in enumerate(pipeline.stages):
        is_entered = not stage.parents and stage.share >= 1
        if is_entered or any(edge.parent in implied and stage.is_certain(edge) for edge in stage.parents):
            implied |= {index} | (certain[index] if index < len(certain) else set())
    return implied


def _list_wanted(pipeline: Pipeline, stage: int) -> Iterator[str]:
    for child in pipeline.stages:
        for tensor_input in child.inputs:
            yield from (source.tensor for source in tensor_input.sources if source.stage == stage and source.tensor)
        for edge in child.parents:
            if edge.parent == stage and edge.condition is not None:
                yield from (value.tensor for value, _ in edge.condition.list_values())


def _describe_misfit(size: int, model_input: ModelInput | None, signature: ModelSignature) -> str:
    """Return what is wrong with so many numbers for an input; empty if they fit."""
    if signature.columns:
        return "" if max(signature.columns) < size else f"the model reads column {max(signature.columns)}"
    if model_input is not None:
        if model_input.accepts_width(size):
            return ""
        return f"the input {model_input.name} takes {model_input.width or 'another number of'} numbers"
    return "" if signature.width in (None, size) else f"the model reads {signature.width} numbers per row"


def _describe_untestable(value: TensorValue, constant: object, types: Mapping[str, TensorType]) -> str:
    """Return why a tensor cannot be tested so; empty if it can."""
    try:
        tensor = find_tensor(types, value.tensor)
    except ConditionError as error:
        return str(error)
    if value.function:
        return f"{value.function} needs numbers" if tensor.is_text else ""
    if tensor.kind and constant is not None and tensor.is_text != isinstance(constant, str):
        return f"{value.tensor} holds {'text' if tensor.is_text else 'numbers'}, and is compared to {constant!r}"
    shape = tensor.shape
    if shape is None or (not tensor.kind and len(value.index) > 1):
        # code states how many values it returns, not their shape
        return ""
    pairs = zip(value.index, shape, strict=False)
    if len(value.index) > len(shape) or any(not -size <= index < size for index, size in pairs):
        return f"{value.tensor} has the shape {list(shape)}, and the index {list(value.index)}"
    is_single = math.prod(shape[len(value.index) :]) == 1
    return "" if is_single else f"{value.tensor} has the shape {list(shape)}; name a value, or max({value.tensor})"


def _format_sources(types: Iterable[TensorType]) -> str:
    return " + ".join(f"{tensor.name or 'request'} {tensor.size}" for tensor in types)
