"""Dependencies between the channels of layers, as torch-pruning finds them, and where it is corrected.

Torch-pruning (Fang et al., CVPR 2023) couples the layers with channels that depend on each other: through residual
sums, concatenations, depthwise convolutions and squeeze-and-excitation. It loses track of some operations, which are
mapped here, or through which nothing is followed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from unfold_supernet.elasticity.inputs import Inputs, list_tensors

CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001 - torch has no public name for all convolutions
ROOTS = (CONVOLUTIONS, nn.Linear)
UNFOLLOWED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises where it cannot follow channels."""
MAX_REDUCED = 2
"""Maps up to which the inputs of a layer are taken for a mean or maximum over channels."""
EXCHANGING = ("Transpose", "Permute", "View", "Reshape", "Squeeze")
"""Operations that may move channels to another axis."""
MIN_STEPS, STEPS_PER_DEPENDENCY = 200, 2
"""Steps in which a group is found at most; those of ResNet-50, DenseNet-121 and HRNet take 0.2 a dependency."""


@dataclass(frozen=True, slots=True)
class HeadLayers:
    """Linear layers between which channels belong to heads of attention; other groups do not reach through them.

    Attributes:
        reads: Paths of the layers that put out channels of heads.
        written: Paths of the layers that take them in.
        unfollowed: Paths of layers that keep their outputs, as it is not known which of them belong together.
    """

    reads: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    unfollowed: frozenset[str] = frozenset()


NO_HEADS = HeadLayers()


def build_graph(module: nn.Module, example: Inputs, heads: HeadLayers = NO_HEADS) -> Any:
    """Trace the dependencies between the layers of a module.

    Args:
        module: The module.
        example: Inputs (n, *size).
        heads: Layers between which nothing is traced.
    """
    graph = import_torch_pruning().DependencyGraph()
    with warnings.catch_warnings():
        # parameters outside layers, such as position embeddings, are found without a hint
        warnings.simplefilter("ignore")
        pruners = {nn.RMSNorm: _make_rms_pruner()}
        # one slope for all channels couples nothing, and may be called with other numbers of channels
        single = [layer for layer in module.modules() if isinstance(layer, nn.PReLU) and layer.num_parameters == 1]
        try:
            graph.build_dependency(
                module, example_inputs=list_tensors(example), customized_pruners=pruners, ignored_layers=single
            )
        except UNFOLLOWED:
            # the last step maps indices through reshapes, by channels that it may have counted as 0
            if not getattr(graph, "module2node", None):
                raise
            _map_indices(graph)
    _count_concatenated(graph)
    _follow_splits(graph)
    _follow_slices(graph)
    _follow_gates(graph)
    _follow_flattened(graph)
    reads, written = ({module.get_submodule(path) for path in paths} for paths in (heads.reads, heads.written))
    _cut(graph, lambda layer, is_output: layer in (reads if is_output else written))
    _cut_reductions(graph)
    _cut_shared_heads(graph)
    _limit_steps(graph)
    return graph


def _map_indices(graph: Any) -> None:
    """Map the indices of channels operation by operation, and follow nothing through those where this fails."""
    mapping, nodes = import_torch_pruning().dependency.index_mapping, graph.module2node
    unfollowed = set()
    for operation, node in nodes.items():
        graph.module2node = {operation: node}
        try:
            mapping.update_index_mapping(graph)
        except UNFOLLOWED:
            unfollowed.add(operation)
    graph.module2node = nodes
    _cut(graph, lambda operation, _is_output: operation in unfollowed)
    # those that remain are mapped again for every group
    graph.module2node = {operation: node for operation, node in nodes.items() if operation not in unfollowed}


def _count_concatenated(graph: Any) -> None:
    """Count the channels of concatenated parts, also of those without gradients, such as the module's inputs.

    Torch-pruning leaves these out, and would remove channels of the others at wrong places.
    """
    torch_pruning = import_torch_pruning()
    infer_channels, uncounted = torch_pruning.dependency.shape_infer.infer_channels_between, set()
    for node in [each for each in graph.module2node.values() if each.type == torch_pruning.ops.OPTYPE.CONCAT]:
        axis, (shape,), results = node.grad_fn._saved_dim, _list_shapes(node.grad_fn), node.grad_fn.next_functions  # noqa: SLF001
        axis = axis if axis < len(shape) else axis - 2**64
        missing = [place for place, (made, _) in enumerate(results) if not _is_followed(graph, made)]
        if len(missing) + len(node.inputs) != len(results):
            continue
        if not missing:
            # parts of a split have fewer channels than what was split
            if axis == 1 and (len(shape) > 3 or (len(shape) == 3 and _find_channel_axis(node) == 1)):
                node.module.concat_sizes = [_list_shapes(made)[index][axis] for made, index in results]
            continue
        sizes = [
            0 if place in missing else _list_shapes(made)[index][axis] for place, (made, index) in enumerate(results)
        ]
        present = [size for place, size in enumerate(sizes) if place not in missing]
        # tokens are concatenated too
        if len(shape) > 2 and present != [infer_channels(graph, source, node) for source in node.inputs]:
            continue
        if missing[-1] - missing[0] >= len(missing):
            uncounted.add(node.module)
            continue
        # the first of neighbours stands for all of them
        sizes = [shape[axis] - sum(present), *[0] * (len(missing) - 1)]
        for place, size in zip(missing, sizes, strict=True):
            constant = nn.BatchNorm1d(size, affine=False, track_running_stats=False)
            node.inputs.insert(place, torch_pruning.dependency.node.Node(constant, None))
        node.module.concat_sizes = [*present[: missing[0]], *sizes, *present[missing[0] :]]
    _cut(graph, lambda operation, _is_output: operation in uncounted)


def _is_followed(graph: Any, function: Any) -> bool:
    """Return whether torch-pruning follows a result: it is no constant, and no parameter of a layer."""
    if function is None:
        return False
    variable = getattr(function, "variable", None)
    return variable is None or any(variable is parameter for parameter, _ in graph.unwrapped_parameters)


def _follow_splits(graph: Any) -> None:
    """Map the indices of channels that are split, along axis 1 or the last one.

    Torch-pruning takes the uses of parts for the parts, in any order. Behind a position embedding it maps none, lest it
    takes tokens for channels; tokens are never last.
    """
    operations = import_torch_pruning().ops.OPTYPE
    for node in [each for each in graph.module2node.values() if each.type == operations.SPLIT]:
        axis = getattr(node.grad_fn, "_saved_dim", None)
        sizes = _list_part_sizes(node.grad_fn, axis)
        if not sizes or not (takes_channels(node) or (axis == 1 and node.enable_index_mapping)):
            continue
        node.module.split_sizes, node.module.offsets = sizes, [0, *itertools.accumulate(sizes)]
        # torch-pruning would map them anew for every group
        node.enable_index_mapping = False
        for target in dict.fromkeys(node.outputs):
            _map_parts(node, target)


def _list_part_sizes(function: Any, axis: int | None) -> list[int]:
    """List the numbers of channels of the parts that a split returns; none if autograd does not keep them."""
    sizes, shape = getattr(function, "_saved_split_sizes", None), getattr(function, "_saved_self_sym_sizes", None)
    if sizes is not None:
        return [int(size) for size in sizes]
    if axis is None or shape is None or not hasattr(function, "_saved_split_size"):
        return []
    channels, size = int(shape[-1 if _is_last_axis(axis) else axis]), int(function._saved_split_size)  # noqa: SLF001
    return [min(size, channels - start) for start in range(0, channels, size)]


@dataclass(frozen=True, slots=True)
class _PartMapping:
    """Maps the indices of channels to those of one of the parts into which they are split.

    Attributes:
        split: The operation, which keeps where its parts begin, also after channels were removed.
        part: Number of the part.
        is_back: Whether the part is mapped to the whole.
    """

    split: Any
    part: int
    is_back: bool

    def __call__(self, indices: list[Any]) -> list[Any]:
        """Map indices; those of other parts have none."""
        make = import_torch_pruning()._helpers._HybridIndex  # noqa: SLF001 - it has no public name
        start, end = self.split.offsets[self.part : self.part + 2]
        if self.is_back:
            return [make(idx=each.idx + start, root_idx=each.root_idx) for each in indices]
        return [make(idx=each.idx - start, root_idx=each.root_idx) for each in indices if start <= each.idx < end]


def _map_parts(split: Any, target: Any) -> None:
    """Map the indices between a split and a node that uses some of its parts, each use by its part."""
    uses = [part for function, part in target.grad_fn.next_functions if function is split.grad_fn]
    for start, end in ((split, target), (target, split)):
        dependencies = [dependency for dependency in start.dependencies if dependency.target is end]
        # a layer that is called several times has one node for all calls
        if len(dependencies) == len(uses):
            for dependency, part in zip(dependencies, uses, strict=True):
                dependency.index_mapping[0] = _PartMapping(split.module, part, start is target)


def _follow_slices(graph: Any) -> None:
    """Map the indices of channels that slices take of tokens or signals, and count those from the end.

    Torch-pruning takes the last of three axes for channels, also behind convolutions.
    """
    torch_pruning = import_torch_pruning()
    operations, make_mapping = torch_pruning.ops.OPTYPE, torch_pruning.dependency.index_mapping._SliceIndexMapping  # noqa: SLF001
    for node in [each for each in graph.module2node.values() if each.type == operations.SLICE]:
        taken, shape = node.module, node.grad_fn._saved_self_sym_sizes  # noqa: SLF001
        size = int(shape[-1 if _is_last_axis(taken.dim) else taken.dim])
        taken.start, taken.end = (_count_from_start(each, size) for each in (taken.start, taken.end))
        if len(shape) != 3 or _find_channel_axis(node) is None:
            continue
        # torch-pruning would map them anew for every group
        node.type = operations.ELEMENTWISE
        if not takes_channels(node):
            continue
        for source in node.inputs:
            for start, end in ((source, node), (node, source)):
                mapping = make_mapping(taken.dim, taken.start, taken.step, taken.end, start is node)
                for dependency in start.dependencies:
                    if dependency.target is end:
                        dependency.index_mapping[0] = mapping


def _count_from_start(index: int, size: int) -> int:
    """Count an index, which autograd keeps without its sign, from the start of an axis."""
    return index - 2**64 + size if index >= 2**63 else min(index, size)


def takes_channels(node: Any) -> bool:
    """Return whether a split or slice is along the axis of channels; of signals (n, channels, length) that is 1."""
    axis, rank = node.grad_fn._saved_dim, len(node.grad_fn._saved_self_sym_sizes)  # noqa: SLF001
    if rank == 3:
        return bool((2 if _is_last_axis(axis) else axis) == (_find_channel_axis(node) or 2))
    return bool(_is_last_axis(axis) or axis == 1)


def _find_channel_axis(node: Any) -> int | None:
    """Find the axis of channels of the input of an operation: behind convolutions 1, behind linear layers the last.

    ``None`` if axes are exchanged between, or if layers of both kinds precede.
    """
    found, visited, waiting = set[int | None](), set[Any](), [*node.inputs]
    while waiting:
        source = waiting.pop()
        if source in visited:
            continue
        visited.add(source)
        name = source.grad_fn.name() if source.grad_fn is not None else ""
        if isinstance(source.module, CONVOLUTIONS):
            found.add(1)
        elif isinstance(source.module, nn.Linear):
            found.add(2)
        elif any(word in name for word in EXCHANGING):
            found.add(None)
        else:
            waiting += source.inputs
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class _GateMapping:
    """Maps the indices of the channels of a gated linear unit: both halves of its inputs, and its outputs.

    Attributes:
        half: Number of its outputs.
        is_back: Whether outputs are mapped to inputs.
    """

    half: int
    is_back: bool

    def __call__(self, indices: list[Any]) -> list[Any]:
        """Map indices, each of them once."""
        make = import_torch_pruning()._helpers._HybridIndex  # noqa: SLF001 - it has no public name
        shifts = (0, self.half) if self.is_back else (0,)
        mapped = {each.idx % self.half + shift: each.root_idx for each in indices for shift in shifts}
        return [make(idx=index, root_idx=root) for index, root in mapped.items()]


def _follow_gates(graph: Any) -> None:
    """Map the indices of channels through gated linear units, which torch-pruning takes for element-wise."""
    infer_channels = import_torch_pruning().dependency.shape_infer.infer_out_channels_recursively
    for node in [each for each in graph.module2node.values() if is_gate(each)]:
        axis, (shape,) = node.grad_fn._saved_dim, _list_shapes(node.grad_fn)  # noqa: SLF001
        half = shape[-1 if _is_last_axis(axis) else axis]
        for source in node.inputs:
            if infer_channels(graph, source, [0]) != 2 * half:
                continue
            for start, end in ((source, node), (node, source)):
                for dependency in start.dependencies:
                    if dependency.target is end:
                        dependency.index_mapping[0] = _GateMapping(half, start is node)


def is_gate(node: Any) -> bool:
    """Return whether a node of the graph is a gated linear unit."""
    return node.grad_fn is not None and node.grad_fn.name().startswith("Glu")


def _follow_flattened(graph: Any) -> None:
    """Map the indices of channels of maps that are flattened, each into several values, and then concatenated.

    Torch-pruning takes the channels before they are flattened for the parts that are concatenated.
    """
    torch_pruning = import_torch_pruning()
    mapping, kinds = torch_pruning.dependency.index_mapping, torch_pruning.ops.OPTYPE
    infer_channels = torch_pruning.dependency.shape_infer.infer_out_channels_recursively
    for node in [each for each in graph.module2node.values() if each.type == kinds.CONCAT]:
        results = node.grad_fn.next_functions
        counted = node.module.concat_sizes or ()
        sizes = counted if len(counted) == len(results) else [0] * len(results)
        shapes = [
            _list_shapes(made)[index] if made else (1, size) for (made, index), size in zip(results, sizes, strict=True)
        ]
        if len(shapes) != len(node.inputs) or any(len(shape) != 2 for shape in shapes):
            continue
        node.module.concat_sizes = [columns for _, columns in shapes]
        mapping.update_concat_index_mapping(graph, node)
        for reshape in _list_sources(node, kinds.RESHAPE):
            sizes = [*getattr(reshape.grad_fn, "_saved_self_sym_sizes", ())][1:]
            present = {infer_channels(graph, source, [0]) for source in reshape.inputs}
            if _list_shapes(reshape.grad_fn)[0][1:] != (math.prod(sizes),) or present != {*sizes[:1]}:
                continue
            # torch-pruning would map reshapes anew for every group
            reshape.type = kinds.ELEMENTWISE
            for source in reshape.inputs:
                for start, end in ((source, reshape), (reshape, source)):
                    flatten = mapping._FlattenIndexMapping(math.prod(sizes[1:]), start is reshape)  # noqa: SLF001
                    for dependency in start.dependencies:
                        if dependency.target is end:
                            dependency.index_mapping[0] = flatten


def _list_sources(node: Any, kind: Any) -> list[Any]:
    """List the nearest nodes of a kind before a node, with nothing but operations between."""
    found, visited, waiting = list[Any](), set[Any](), [*node.inputs]
    while waiting:
        source = waiting.pop()
        if source in visited or isinstance(source.module, ROOTS):
            continue
        visited.add(source)
        if source.type == kind:
            found.append(source)
        else:
            waiting += source.inputs
    return found


def _list_shapes(function: Any) -> list[tuple[int, ...]]:
    """List the shapes of the results of an operation, as autograd keeps them."""
    return [tuple(metadata.shape) for metadata in function._input_metadata]  # noqa: SLF001


def _is_last_axis(saved: int | None) -> bool:
    """Return whether an axis, as autograd saves it, was counted as -1: without its sign."""
    return saved in (-1, 2**64 - 1)


def _make_rms_pruner() -> Any:
    """Make what removes channels of ``torch.nn.RMSNorm``, which torch-pruning does not know."""
    function = import_torch_pruning().pruner.function

    class RMSNormPruner(function.LayernormPruner):  # type: ignore[misc,name-defined,unused-ignore]
        """As that of a layer norm, without a bias."""

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            """Remove channels."""
            (channels,) = layer.normalized_shape
            kept = torch.tensor(sorted({*range(channels)} - {*idxs}))
            if layer.elementwise_affine:
                layer.weight = self._prune_parameter_and_grad(layer.weight, kept, -1)
            layer.normalized_shape = (len(kept),)
            return layer

        prune_in_channels = prune_out_channels

    return RMSNormPruner()


def _cut(graph: Any, is_cut: Callable[[nn.Module, bool], bool]) -> None:
    """Remove the dependencies of the outputs or inputs of layers."""

    def ends(layer: nn.Module, function: Any) -> bool:
        return is_cut(layer, graph.is_out_channel_pruning_fn(function))

    for node in graph.module2node.values():
        node.dependencies = [
            dependency
            for dependency in node.dependencies
            if not ends(dependency.source.module, dependency.trigger)
            and not ends(dependency.target.module, dependency.handler)
        ]


def _cut_reductions(graph: Any) -> None:
    """Remove the dependencies of layers with one channel, which multiplies all others, and those of reduced channels.

    Spatial attention reads the mean and the maximum over all channels: two maps, however many channels there are.
    """
    nodes = {
        layer: node
        for layer, node in graph.module2node.items()
        if isinstance(layer, ROOTS) and min(*count_channels(layer)) <= MAX_REDUCED
    }

    def is_cut(layer: nn.Module, is_output: bool) -> bool:
        if layer not in nodes:
            return False
        outputs, inputs = count_channels(layer)
        return outputs == 1 if is_output else inputs <= MAX_REDUCED

    if nodes:
        _cut(graph, is_cut)


class _CountedList(list[Any]):
    """A list that counts how often it is iterated over.

    Attributes:
        steps: Shared with other lists: iterations that are left.
    """

    def __init__(self, items: list[Any], steps: list[int]) -> None:
        super().__init__(items)
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        """Iterate, unless too many steps were made.

        Raises:
            RuntimeError: There were.
        """
        self.steps[0] -= 1
        if self.steps[0] < 0:
            raise RuntimeError("channels are followed in circles")
        return super().__iter__()


class _CheckedMappings(list[Any]):
    """Mappings of indices from one layer to the next, which end if there are more of them than any layer has channels.

    Attributes:
        most: Largest number of indices.
    """

    def __init__(self, items: list[Any], most: int) -> None:
        super().__init__(items)
        self.most = most

    def __iter__(self) -> Iterator[Any]:
        """Iterate over mappings that raise RuntimeError for too many indices."""
        return (None if mapping is None else partial(self._map, mapping) for mapping in super().__iter__())

    def _map(self, mapping: Callable[[list[Any]], list[Any]], indices: list[Any]) -> list[Any]:
        mapped = mapping(indices)
        if len(mapped) > self.most:
            raise RuntimeError("channels are followed in circles")
        return mapped


def _limit_steps(graph: Any) -> None:
    """Limit the steps in which a group is found, where torch-pruning walks in circles with ever other indices."""
    layers = [layer for layer in graph.module2node if isinstance(layer, ROOTS)]
    most = max((edge for layer in layers for edge in count_channels(layer)), default=0)
    limit = MIN_STEPS + STEPS_PER_DEPENDENCY * sum(len(node.dependencies) for node in graph.module2node.values())
    steps, find = [limit], graph.get_pruning_group
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _CheckedMappings(dependency.index_mapping, most)
        node.dependencies = _CountedList(node.dependencies, steps)

    def get_pruning_group(*args: Any, **kwargs: Any) -> Any:
        steps[0] = limit
        return find(*args, **kwargs)

    graph.get_pruning_group = get_pruning_group


def _cut_shared_heads(graph: Any) -> None:
    """Remove the dependencies of keys and values that serve several queries: torch-pruning walks in circles there."""
    mapping = import_torch_pruning().dependency.index_mapping._GQAIndexMapping  # noqa: SLF001 - it has no public name
    for node in graph.module2node.values():
        node.dependencies = [
            dependency
            for dependency in node.dependencies
            if not any(isinstance(step, mapping) for step in dependency.index_mapping)
        ]


def count_channels(layer: Any) -> tuple[int, int]:
    """Count the outputs and inputs of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels


def import_torch_pruning() -> Any:
    """Import torch-pruning, which takes a while, where it is needed."""
    import torch_pruning

    return torch_pruning
