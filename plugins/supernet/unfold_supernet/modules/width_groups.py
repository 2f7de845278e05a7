"""Width of a user's module: groups of channels that must be narrowed together, found by a dependency graph.

torch-pruning (Fang et al., CVPR 2023) couples the layers with channels that depend on each other: through residual
sums, concatenations, depthwise convolutions and squeeze-and-excitation. A member keeps the most important channels of
every group, so that a narrow member is contained in each wider one.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from unfold_supernet.modules.inputs import Inputs, copy_module, list_tensors, run_module

Indices = tuple[Tensor | None, ...]
"""For each axis of a tensor, the kept indices; ``None`` keeps all of them."""
CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001 - torch has no public name for all convolutions
ROOTS = (CONVOLUTIONS, nn.Linear)
NORMS_OF_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TRIAL_WIDTH = 0.5
TOLERANCE = 1e-4
"""Largest difference at which outputs count as equal, relative to how much they differ from row to row."""
UNFOLLOWED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises where it cannot follow channels."""
MAX_REDUCED = 2
"""Maps up to which the inputs of a layer are taken for a mean or maximum over channels."""
MOVING = ("Flip", "Roll", "Sort", "Gather", "CopySlices", "Stack", "ChannelShuffle")
"""Operations that move pixels, or channels, to other places."""
SELECTING = ("Slice", "Select")
"""Operations that take some of the channels, or of the pixels."""
CUSTOM = "Backward"
"""End of the names of the user's own functions with gradients; those of torch end in a digit."""
MIN_STEPS, STEPS_PER_DEPENDENCY = 200, 2
"""Steps in which a group is found at most; those of ResNet-50, DenseNet-121 and HRNet take 0.2 a dependency."""
MIXED_HEADS = "it computes heads of attention in a way that is not followed"
UNTRACED = "its channels are split or reshaped in a way that is not followed"


@dataclass(frozen=True, slots=True)
class WidthGroup:
    """Channels that must be narrowed together.

    Attributes:
        root: Path of the layer that produces the channels.
        order: Channels of that layer, the most important first; of a layer in parts, those of its first part.
        parts: Equal parts of the channels of which as many remain: those that are multiplied, as in a gated linear
            unit, and those of grouped convolutions and norms.
        is_interleaved: Whether the first channels of all parts come first, as where a slice takes every other channel.
    """

    root: str
    order: tuple[int, ...]
    parts: int = 1
    is_interleaved: bool = False

    @property
    def channels(self) -> int:
        """Number of channels of the layer."""
        return len(self.order) * self.parts

    def drop(self, width: float) -> list[int]:
        """List the channels to remove at a fraction of the width; at least one remains in each part."""
        dropped = self.order[max(1, round(len(self.order) * width)) :]
        step, stride = (self.parts, 1) if self.is_interleaved else (1, len(self.order))
        return sorted(channel * step + part * stride for part in range(self.parts) for channel in dropped)


@dataclass(frozen=True, slots=True)
class Inelastic:
    """A part of a module that every member shares in full.

    Attributes:
        path: Path of the layer.
        reason: Why it cannot be narrowed.
    """

    path: str
    reason: str


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


def find_width_groups(
    module: nn.Module,
    example: Inputs,
    widths: Sequence[float] = (),
    heads: HeadLayers = NO_HEADS,
    finish: Callable[[nn.Module, float], object] = lambda _module, _width: None,
) -> tuple[tuple[WidthGroup, ...], tuple[Inelastic, ...]]:
    """Find the groups of channels that can be narrowed, and the layers that cannot.

    Every candidate is tried: a copy at each width must run and return outputs of the same shape.

    Args:
        module: The user's module, in inference mode.
        example: Inputs (n, *size).
        widths: Fractions of the channels; a half is always tried.
        heads: Layers that lose heads.
        finish: Removes what else a narrow copy lacks, such as heads, before it is tried.
    """
    trials = sorted({TRIAL_WIDTH, *(width for width in widths if width < 1)})
    outputs = _run(module, example)
    try:
        graph = build_graph(module, example, heads)
    except UNFOLLOWED:
        return (), (*list_recurrent_layers(module), Inelastic("", UNTRACED))
    importance = _import_torch_pruning().pruner.importance.GroupMagnitudeImportance(p=2)
    names, tied = {layer: path for path, layer in module.named_modules()}, find_tied_layers(module)
    candidates, inelastic = list[WidthGroup](), list_recurrent_layers(module)
    untraced = list[nn.Module]()
    own = {layer for layer, path in names.items() if path in heads.reads}
    for group in _iterate_groups(graph, untraced, own):
        root = names[group[0].dep.target.module]
        outputs_of = {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
        is_mixed = any(names.get(layer) in heads.unfollowed for layer in outputs_of)
        # feed-forward layers beside attention turn nothing, and heads are turned
        reason = MIXED_HEADS if is_mixed and _is_turned(group) else _find_obstacle(group, names, (module, heads), tied)
        found = WidthGroup(root, ())
        if not reason:
            found = _rank_channels(importance, graph, group, root)
            norms = [names[layer] for layer in _list_norms(group)]
            # by chance, as many channels remain of each head; of the first channels, none of the last heads
            tried = (replace(found, order=tuple(sorted(found.order))), found)
            is_doubtful = is_mixed or _is_permuted(group)
            is_kept = found.order and (
                not is_doubtful or all(_equals_ignored(module, example, each, heads, norms) for each in tried)
            )
            reason = "" if is_kept else MIXED_HEADS if is_mixed else UNTRACED
        if reason:
            inelastic.append(Inelastic(root, reason))
        else:
            candidates.append(found)
    inelastic += [Inelastic(names[layer], UNTRACED) for layer in untraced]
    # the classes are channels too: those groups are tried alone, and the others together, which is much faster
    ends = [group for group in candidates if group.channels in outputs.shape[1:]]

    def runs(groups: Sequence[WidthGroup]) -> bool:
        return _runs_narrow(module, example, (groups, heads, finish), trials, outputs.shape)

    ends = [group for group in ends if not runs([group])]
    inelastic += [Inelastic(group.root, "its channels are the outputs, or a narrower copy fails") for group in ends]
    candidates = [group for group in candidates if group not in ends]
    accepted = _accept(candidates, [], runs)
    reason = "a narrower copy fails or returns another shape"
    inelastic += [Inelastic(group.root, reason) for group in candidates if group not in accepted]
    return tuple(accepted), tuple(inelastic)


def _accept(
    groups: Sequence[WidthGroup], accepted: list[WidthGroup], runs: Callable[[list[WidthGroup]], bool]
) -> list[WidthGroup]:
    """Add those groups to the accepted ones that run narrow together; halves are tried where all of them fail.

    Together, because a group may run alone and fail beside another.
    """
    if not groups or runs([*accepted, *groups]):
        return [*accepted, *groups]
    if len(groups) == 1:
        return accepted
    middle = len(groups) // 2
    return _accept(groups[middle:], _accept(groups[:middle], accepted, runs), runs)


def find_tied_layers(module: nn.Module) -> dict[str, str]:
    """Find the layers that share a parameter with another layer, by path; the value names the other one."""
    first, tied = dict[int, str](), dict[str, str]()
    # a layer that is called twice is a single one, and no tie
    for path, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            other = first.setdefault(id(parameter), path)
            if other != path:
                tied |= {path: other, other: path}
    return tied


def fold_weight_norms(module: nn.Module) -> nn.Module:
    """Replace length and direction of weights under weight norm by the weights, in place; outputs stay the same.

    The length of a row is over all inputs, so that a member with fewer inputs would compute other weights.
    """
    for layer in module.modules():
        if not parametrize.is_parametrized(layer):
            continue
        chains: Any = layer.parametrizations
        if not all(isinstance(part, parametrizations._WeightNorm) for chain in chains.values() for part in chain):  # noqa: SLF001
            continue
        values = {name: getattr(layer, name).detach().clone() for name in chains}
        # torch's own way deletes from a class that copies share with the user's module
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    return module


def copy_unnormed(module: nn.Module) -> nn.Module:
    """Copy a module; weights that ``torch.nn.utils`` computes in hooks are replaced.

    Those of ``weight_norm`` become plain weights; those of ``spectral_norm`` are parametrised, as torch does it now.
    """
    computed = {
        id(weight): weight.detach().clone()
        for layer in module.modules()
        for weight in (getattr(layer, hook.name) for hook in _list_norm_hooks(layer))
    }
    copied = copy.deepcopy(module, computed)
    for layer in copied.modules():
        for hook in _list_norm_hooks(layer):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(layer, hook.name)
            else:
                _parametrise_spectral_norm(layer, hook)
    return copied


def _parametrise_spectral_norm(layer: nn.Module, hook: Any) -> None:
    """Replace the hook of ``torch.nn.utils.spectral_norm`` by a parametrisation with the same vectors, in place."""
    name = hook.name
    weight, *vectors = (getattr(layer, f"{name}_{part}").detach().clone() for part in ("orig", "u", "v"))
    nn.utils.remove_spectral_norm(layer, name)
    getattr(layer, name).data = weight
    parametrizations.spectral_norm(layer, name, hook.n_power_iterations, hook.eps, hook.dim)
    chains: Any = layer.parametrizations
    chains[name][0]._u, chains[name][0]._v = vectors  # noqa: SLF001 - it has no public name


def replace_linear_code(module: nn.Module) -> nn.Module:
    """Replace layers that compute what ``nn.Linear`` does, such as GPT-2's ``Conv1D``, by it, in place.

    Channels are followed through torch's own layers only.
    """
    tied, made = find_tied_layers(module), dict[nn.Module, nn.Linear | None]()
    for path, layer in [*module.named_modules(remove_duplicate=False)]:
        if not path or path in tied:
            continue
        if layer not in made:
            made[layer] = _find_linear(layer)
        linear, (parent, _, name) = made[layer], path.rpartition(".")
        if linear is not None:
            setattr(module.get_submodule(parent), name, linear)
    return module


def _find_linear(layer: nn.Module) -> nn.Linear | None:
    """Find the linear layer that computes what a layer of the user's does with its only weight, turned or not."""
    own = dict(layer.named_parameters())
    weight, bias = own.get("weight"), own.get("bias")
    parts = (*layer.children(), *layer.buffers(), *layer._forward_hooks, *layer._forward_pre_hooks)  # noqa: SLF001
    if weight is None or weight.ndim != 2 or {*own} - {"weight", "bias"} or parts or _is_of_torch(layer):
        return None
    for matrix in (weight.T, weight):
        if not weight.is_floating_point() or (bias is not None and bias.shape != matrix.shape[:1]):
            continue
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, dtype=weight.dtype)
        linear.weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format), weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        if all(_computes_equally(layer, linear, rows) for rows in ((3,), (2, 3))):
            # the code around it may read attributes of the user's
            for name, value in vars(layer).items():
                vars(linear).setdefault(name, value)
            return linear
    return None


def _is_of_torch(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.")


def _computes_equally(layer: nn.Module, linear: nn.Linear, rows: tuple[int, ...]) -> bool:
    """Check that a layer returns what a linear one does, with its gradients, in training and at inference."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        x = torch.randn(*rows, linear.in_features, dtype=linear.weight.dtype, requires_grad=True)
        expected = linear(x)
        (slope,) = torch.autograd.grad(expected.square().sum(), x)
        for mode in (True, False):
            try:
                outputs = layer.train(mode)(x)
                (found,) = torch.autograd.grad(outputs.square().sum(), x)
            # the user's code may raise anything
            except Exception:  # noqa: BLE001
                return False
            if outputs.shape != expected.shape or not torch.allclose(outputs, expected, TOLERANCE, TOLERANCE):
                return False
            if not torch.allclose(found, slope, TOLERANCE, TOLERANCE):
                return False
    return True


def _list_norm_hooks(layer: nn.Module) -> list[Any]:
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def list_recurrent_layers(module: nn.Module) -> list[Inelastic]:
    """List the recurrent layers of a module: their gates are packed, and no member narrows them."""
    return [
        Inelastic(path, f"recurrent layers ({type(layer).__name__}) keep their width")
        for path, layer in module.named_modules()
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase)
    ]


def build_graph(module: nn.Module, example: Inputs, heads: HeadLayers = NO_HEADS) -> Any:
    """Trace the dependencies between the layers of a module.

    Args:
        module: The module.
        example: Inputs (n, *size).
        heads: Layers between which nothing is traced.
    """
    graph = _import_torch_pruning().DependencyGraph()
    with warnings.catch_warnings():
        # parameters outside layers, such as position embeddings, are found without a hint
        warnings.simplefilter("ignore")
        pruners = {nn.RMSNorm: _make_rms_pruner()}
        try:
            graph.build_dependency(module, example_inputs=list_tensors(example), customized_pruners=pruners)
        except UNFOLLOWED:
            # the last step maps indices through reshapes, by channels that it may have counted as 0
            if not getattr(graph, "module2node", None):
                raise
            _map_indices(graph)
    _count_constants(graph)
    _follow_splits(graph)
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
    mapping, nodes = _import_torch_pruning().dependency.index_mapping, graph.module2node
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


def _count_constants(graph: Any) -> None:
    """Count the channels of concatenated parts without gradients, such as the module's inputs.

    Torch-pruning leaves them out, and would remove channels of the others at wrong places.
    """
    torch_pruning = _import_torch_pruning()
    infer_channels, uncounted = torch_pruning.dependency.shape_infer.infer_channels_between, set()
    for node in [each for each in graph.module2node.values() if each.type == torch_pruning.ops.OPTYPE.CONCAT]:
        axis, (shape,), results = node.grad_fn._saved_dim, _list_shapes(node.grad_fn), node.grad_fn.next_functions  # noqa: SLF001
        axis = axis if axis < len(shape) else axis - 2**64
        missing = [place for place, (made, _) in enumerate(results) if not _is_followed(graph, made)]
        if not missing or len(missing) + len(node.inputs) != len(results):
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
    """Map the indices of channels that are split along the last axis.

    Behind a position embedding torch-pruning maps none, lest it takes tokens for channels; tokens are never last.
    """
    torch_pruning = _import_torch_pruning()
    for node in graph.module2node.values():
        is_split = node.type == torch_pruning.ops.OPTYPE.SPLIT and not node.enable_index_mapping
        if is_split and _is_last_axis(getattr(node.grad_fn, "_saved_dim", None)):
            node.enable_index_mapping = True
            torch_pruning.dependency.index_mapping.update_split_index_mapping(graph, node)


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
        make = _import_torch_pruning()._helpers._HybridIndex  # noqa: SLF001 - it has no public name
        shifts = (0, self.half) if self.is_back else (0,)
        mapped = {each.idx % self.half + shift: each.root_idx for each in indices for shift in shifts}
        return [make(idx=index, root_idx=root) for index, root in mapped.items()]


def _follow_gates(graph: Any) -> None:
    """Map the indices of channels through gated linear units, which torch-pruning takes for element-wise."""
    infer_channels = _import_torch_pruning().dependency.shape_infer.infer_out_channels_recursively
    for node in [each for each in graph.module2node.values() if _is_gate(each)]:
        axis, (shape,) = node.grad_fn._saved_dim, _list_shapes(node.grad_fn)  # noqa: SLF001
        half = shape[-1 if _is_last_axis(axis) else axis]
        for source in node.inputs:
            if infer_channels(graph, source, [0]) != 2 * half:
                continue
            for start, end in ((source, node), (node, source)):
                for dependency in start.dependencies:
                    if dependency.target is end:
                        dependency.index_mapping[0] = _GateMapping(half, start is node)


def _is_gate(node: Any) -> bool:
    return node.grad_fn is not None and node.grad_fn.name().startswith("Glu")


def _follow_flattened(graph: Any) -> None:
    """Map the indices of channels of maps that are flattened, each into several values, and then concatenated.

    Torch-pruning takes the channels before they are flattened for the parts that are concatenated.
    """
    torch_pruning = _import_torch_pruning()
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
    function = _import_torch_pruning().pruner.function

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
        if isinstance(layer, ROOTS) and min(*_count_channels(layer)) <= MAX_REDUCED
    }

    def is_cut(layer: nn.Module, is_output: bool) -> bool:
        if layer not in nodes:
            return False
        outputs, inputs = _count_channels(layer)
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
    most = max((edge for layer in layers for edge in _count_channels(layer)), default=0)
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
    mapping = _import_torch_pruning().dependency.index_mapping._GQAIndexMapping  # noqa: SLF001 - it has no public name
    for node in graph.module2node.values():
        node.dependencies = [
            dependency
            for dependency in node.dependencies
            if not any(isinstance(step, mapping) for step in dependency.index_mapping)
        ]


def _count_channels(layer: Any) -> tuple[int, int]:
    """Count the outputs and inputs of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels


def _iterate_groups(graph: Any, untraced: list[nn.Module], skipped: Collection[nn.Module] = ()) -> Iterator[Any]:
    """Yield the groups of channels of every layer that produces some and is not skipped, once each.

    Unlike torch-pruning's own loop, it goes on after a layer that it cannot follow; ``untraced`` receives this layer.
    """
    visited = {*graph.IGNORED_LAYERS_IN_TRACING, *skipped}
    for layer in list(graph.module2node):
        if not isinstance(layer, ROOTS) or layer in visited or _count_channels(layer)[0] == 1:
            continue
        pruner = graph.get_pruner_of_module(layer)
        channels = None if pruner is None else pruner.get_out_channels(layer)
        if channels is None:
            continue
        try:
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(channels)))
        # indices that it maps through transposes and reshapes may lie beyond a layer
        except UNFOLLOWED:
            untraced.append(layer)
            continue
        visited |= {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
        yield group


def narrow(
    module: nn.Module, example: Inputs, groups: Sequence[WidthGroup], width: float, heads: HeadLayers = NO_HEADS
) -> nn.Module:
    """Copy a module and remove the least important channels of every group."""
    narrowed = copy_module(module)
    _remove_channels(narrowed, build_graph(narrowed, example, heads), groups, width)
    return narrowed


def trace_indices(
    module: nn.Module, example: Inputs, groups: Sequence[WidthGroup], width: float, heads: HeadLayers = NO_HEADS
) -> tuple[nn.Module, dict[str, Indices]]:
    """Narrow a copy of a module, and find which elements of each parameter and buffer remain.

    The copy's tensors hold their own flat positions while channels are removed; what remains shows where it was.

    Args:
        module: The module.
        example: Inputs (n, *size).
        groups: What to narrow.
        width: Fraction of the channels that remain.
        heads: Layers that lose heads.

    Returns:
        The narrow copy with undefined values, and the kept indices by name of the tensor.
    """
    narrowed = copy_module(module)
    graph = build_graph(narrowed, example, heads) if any(group.drop(width) for group in groups) else None
    shapes = {name: tensor.shape for name, tensor in _iterate_tensors(narrowed)}
    for _, tensor in _iterate_tensors(narrowed):
        # float64 holds every position exactly
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    _remove_channels(narrowed, graph, groups, width)
    indices = {name: _find_indices(tensor.data.long(), shapes[name]) for name, tensor in _iterate_tensors(narrowed)}
    for name, tensor in _iterate_tensors(narrowed):
        tensor.data = torch.zeros(tensor.shape, dtype=_find_tensor(module, name).dtype)
    return narrowed, indices


def select(tensor: Tensor, indices: Indices) -> Tensor:
    """Select the kept elements of a tensor; gradients flow back to it."""
    for axis, kept in enumerate(indices):
        if kept is not None:
            tensor = tensor.index_select(axis, kept)
    return tensor


def _remove_channels(module: nn.Module, graph: Any, groups: Sequence[WidthGroup], width: float) -> None:
    layers = dict(module.named_modules())
    for group in groups:
        dropped = group.drop(width)
        if dropped:
            layer = layers[group.root]
            present = _count_channels(layer)[0]
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=dropped).prune()
            if _count_channels(layer)[0] != present - len(dropped):
                raise ValueError(f"more channels of {group.root} depend on each other than were removed")


def _find_indices(positions: Tensor, shape: torch.Size) -> Indices:
    """Find, for each axis, which indices of a tensor of ``shape`` remain; ``positions`` holds flat positions.

    Raises:
        ValueError: What remains is no grid.
    """
    if positions.shape == shape:
        return (None,) * len(shape)
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    kept, grid = list[Tensor | None](), torch.zeros_like(positions)
    for axis, (stride, size) in enumerate(zip(strides, shape, strict=True)):
        line = positions[tuple(slice(None) if other == axis else 0 for other in range(len(shape)))]
        index = torch.div(line, stride, rounding_mode="floor") % size
        kept.append(None if len(index) == size else index)
        grid = grid + (index * stride).reshape([-1 if other == axis else 1 for other in range(len(shape))])
    if not torch.equal(grid, positions):
        raise ValueError("the remaining elements are no grid")
    return tuple(kept)


def _find_parts(graph: Any, group: Any) -> tuple[int, bool]:
    """Find the equal parts into which a layer's channels are split, where channels at one place depend on each other.

    A gated linear unit multiplies the first half of its channels by the second: they are removed in pairs. So are
    neighbours where a slice takes every other channel.

    Returns:
        Number of parts, and whether they are interleaved.
    """
    steps = _list_steps(group)
    if steps:
        return math.lcm(*steps), True
    split = _import_torch_pruning().ops._SplitOp  # noqa: SLF001 - it has no public name
    if not any(isinstance(item.dep.target.module, split) or _is_gate(item.dep.target) for item in group):
        return 1, False
    layer, channels = group[0].dep.target.module, len(group[0].idxs)
    try:
        first, last = (_list_dependent(graph, layer, channel) for channel in (0, channels - 1))
    except UNFOLLOWED:
        return 1, False
    parts = len(first)
    size = channels // parts
    is_regular = first == {part * size for part in range(parts)} and last == {
        (part + 1) * size - 1 for part in range(parts)
    }
    return (parts if is_regular else 1), False


def _list_steps(group: Any) -> list[int]:
    """List the steps of the slices that take every so many channels."""
    kind = _import_torch_pruning().ops._SliceOp  # noqa: SLF001 - it has no public name
    slices = {
        item.dep.target.module: item.dep.target.grad_fn
        for item in group
        if isinstance(item.dep.target.module, kind) and item.dep.target.module.step > 1
    }
    # as torch-pruning maps them: the last axis of tokens, the second one of all else
    return [
        layer.step
        for layer, function in slices.items()
        if layer.dim == (2 if len(function._saved_self_sym_sizes) == 3 else 1)  # noqa: SLF001
    ]


def _iterate_channel_groups(group: Any) -> Iterator[tuple[Any, int]]:
    """Iterate over the items of a group in layers that treat equal groups of channels apart, with their number.

    As many channels are removed of each of them.
    """
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
            yield item, layer.num_groups
        elif isinstance(layer, CONVOLUTIONS) and 1 < layer.groups < max(layer.in_channels, layer.out_channels):
            yield item, layer.groups


def _list_dependent(graph: Any, layer: nn.Module, channel: int) -> set[int]:
    """List the channels of a layer that are removed with one of them."""
    prune = graph.get_pruner_of_module(layer).prune_out_channels
    items = graph.get_pruning_group(layer, prune, [channel])
    return {
        index
        for item in items
        if item.dep.target.module is layer and graph.is_out_channel_pruning_fn(item.dep.handler)
        for index in item.idxs
    }


def _rank_channels(importance: Any, graph: Any, group: Any, root: str) -> WidthGroup:
    """Rank the channels of each part of a group, the most important first; none if torch-pruning lost track."""
    parts, is_interleaved = _find_parts(graph, group)
    parts = math.lcm(parts, *(count for _, count in _iterate_channel_groups(group)))
    try:
        scores = importance(group)
        scores = scores.reshape(-1, parts).sum(1) if is_interleaved else scores.reshape(parts, -1).sum(0)
    # indices that it maps through splits and reshapes may lie beyond a layer
    except (IndexError, RuntimeError):
        return WidthGroup(root, ())
    # stable, so that members do not depend on the order in which equal channels happen to be sorted
    order = tuple(torch.argsort(scores, descending=True, stable=True).tolist())
    return WidthGroup(root, order, parts, is_interleaved)


def _find_obstacle(
    group: Any, names: Mapping[nn.Module, str], whole: tuple[nn.Module, HeadLayers], tied: Mapping[str, str]
) -> str:
    """Find why a group cannot be narrowed, before it is tried; empty if nothing is known."""
    module, heads = whole
    for item, count in _iterate_channel_groups(group):
        layer = item.dep.target.module
        # of channels that are a part of what is grouped, it is not known how many lie in each of its groups
        if len(item.idxs) != len(group[0].idxs) or len(item.idxs) % count or len(item.idxs) == count:
            kind = "normalises groups of channels" if isinstance(layer, nn.GroupNorm) else "is a grouped convolution"
            return f"{names[layer]} {kind}"
    for item in group:
        layer = item.dep.target.module
        path = names.get(layer, "")
        if parametrize.is_parametrized(layer):
            return f"the weight of {path} is parametrised"
        if path in tied:
            return f"{path} shares its weights with {tied[path]}"
        is_free = path in heads.reads or path in heads.written
        if isinstance(layer, nn.MultiheadAttention) or (_has_heads(module, path) and not is_free):
            return "it is the embedding of attention, which all members share"
    return ""


def _has_heads(module: nn.Module, path: str) -> bool:
    parent = module.get_submodule(path.rpartition(".")[0]) if path else module
    return hasattr(parent, "num_heads")


def _runs_narrow(
    module: nn.Module,
    example: Inputs,
    parts: tuple[Sequence[WidthGroup], HeadLayers, Callable[[nn.Module, float], object]],
    widths: Sequence[float],
    shape: torch.Size,
) -> bool:
    groups, heads, finish = parts
    try:
        for width in widths:
            narrowed = narrow(module, example, groups, width, heads)
            finish(narrowed, width)
            # layers of no channels run, but nothing is kept of them
            if _run(narrowed, example).shape != shape or _count_empty(narrowed) > _count_empty(module):
                return False
    # a failing copy may raise anything: the reason is that it cannot be narrowed
    except Exception:  # noqa: BLE001
        return False
    return True


def _count_empty(module: nn.Module) -> int:
    return sum(not parameter.numel() for parameter in module.parameters())


def _is_permuted(group: Any) -> bool:
    """Return whether the channels of a group may change places: flipped, sliced, or reshaped and permuted, as shuffled.

    Tokens are reshaped and permuted around attention; groups in which norms of many channels stand are taken for them.
    """
    nodes = {item.dep.target: len(item.idxs) for item in group}
    operations = {node.module: node.grad_fn.name() for node in nodes if node.grad_fn is not None}
    if any(name.startswith(MOVING) or name.endswith(CUSTOM) for name in operations.values()) or _list_steps(group):
        return True
    if any(_selects(node.grad_fn, channels) for node, channels in nodes.items()):
        return True
    is_turned = _is_turned(group)
    kinds = _import_torch_pruning().ops
    # parts of which unequal numbers remain would be split elsewhere
    is_split = any(isinstance(node.module, kinds._SplitOp) for node in nodes)  # noqa: SLF001
    # channels may stand last where a map is flattened
    if is_split or (is_turned and any(channels > len(group[0].idxs) for channels in nodes.values())):
        return True
    if _list_norms(group):
        return False
    # flattened before a concatenation
    if any(isinstance(node.module, kinds._ReshapeOp) and node.type != kinds.OPTYPE.RESHAPE for node in nodes):  # noqa: SLF001
        return True
    reshapes = sum("View" in name or "Reshape" in name for name in operations.values())
    return reshapes > 1 and is_turned


def _is_turned(group: Any) -> bool:
    """Return whether axes of the map of a group are exchanged."""
    names = (item.dep.target.grad_fn.name() for item in group if item.dep.target.grad_fn is not None)
    return any("Transpose" in name or "Permute" in name for name in names)


def _selects(function: Any, channels: int) -> bool:
    """Return whether an operation takes some of so many channels."""
    if function is None or not function.name().startswith(SELECTING):
        return False
    axis, sizes = function._saved_dim, function._saved_self_sym_sizes  # noqa: SLF001
    return int(sizes[axis if axis < len(sizes) else axis - 2**64]) >= channels


def _list_norms(group: Any) -> list[nn.Module]:
    """List the norms in a group that depend on how many channels there are."""
    layers = dict.fromkeys(item.dep.target.module for item in group)
    return [layer for layer in layers if isinstance(layer, NORMS_OF_CHANNELS)]


def _equals_ignored(
    module: nn.Module, example: Inputs, group: WidthGroup, heads: HeadLayers, norms: Sequence[str]
) -> bool:
    """Check that a narrow copy returns what the module does if all that the copy lacks is 0.

    A copy with channels that are shuffled otherwise than those of the module runs as well, but with other channels.
    Norms of the group would differ by the number of channels: they only scale and shift here.
    """
    ignoring = copy_module(module)
    try:
        narrowed, indices = trace_indices(module, example, [group], TRIAL_WIDTH, heads)
        remaining = dict(_iterate_tensors(narrowed))
        for name, tensor in _iterate_tensors(ignoring):
            kept = torch.ones(tensor.shape, dtype=torch.bool)
            for axis, index in enumerate(indices[name]):
                if index is not None:
                    is_kept = torch.zeros(tensor.shape[axis], dtype=torch.bool)
                    is_kept[index] = True
                    kept &= is_kept.reshape([-1 if other == axis else 1 for other in range(tensor.ndim)])
            remaining[name].data = select(tensor.data, indices[name])
            tensor.data = tensor.data * kept
        for changed in (narrowed, ignoring):
            for path in norms:
                layer: Any = changed.get_submodule(path)
                layer.forward = partial(_scale, layer)
        # fresh weights may give outputs that hardly depend on the inputs
        precise = tuple(each.double() if each.is_floating_point() else each for each in list_tensors(example))
        outputs, expected = (_run(each.double(), precise) for each in (narrowed, ignoring))
    # a failing copy may raise anything: the reason is that it cannot be narrowed
    except Exception:  # noqa: BLE001
        return False
    scale = (expected - expected.roll(1, 0)).abs().max() if len(expected) > 1 else expected.abs().max()
    return outputs.shape == expected.shape and bool((outputs - expected).abs().max() <= TOLERANCE * scale)


def _scale(norm: Any, x: Tensor) -> Tensor:
    """Scale and shift as a norm does, without dividing by what depends on all channels."""
    shape = [1, -1, *[1] * (x.ndim - 2)] if isinstance(norm, nn.GroupNorm) else [*norm.weight.shape]
    shift = getattr(norm, "bias", None)
    scaled = x * norm.weight.reshape(shape)
    return scaled if shift is None else scaled + shift.reshape(shape)


def _run(module: nn.Module, example: Inputs) -> Tensor:
    with torch.no_grad():
        result: Tensor = run_module(module, example)
    return result


def _iterate_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.ndim)


def _find_tensor(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), attribute)
    return tensor


def _import_torch_pruning() -> Any:
    import torch_pruning

    return torch_pruning
