"""Width of a user's module: groups of channels that must be narrowed together, found by a dependency graph.

A member keeps the most important channels of every group, so that a narrow member is contained in each wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unfold_supernet.elasticity.dependency_graph import (
    CONVOLUTIONS,
    NO_HEADS,
    ROOTS,
    UNFOLLOWED,
    HeadLayers,
    build_graph,
    count_channels,
    import_torch_pruning,
    is_gate,
    takes_channels,
)
from unfold_supernet.elasticity.inputs import Inputs, copy_module, list_tensors, run_module, take_two_rows
from unfold_supernet.elasticity.layer_replacement import find_tied_layers

Indices = tuple[Tensor | None, ...]
"""For each axis of a tensor, the kept indices; ``None`` keeps all of them."""
NORMS_OF_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TRIAL_WIDTH = 0.5
BELOW_HALF = 0.5 - 1e-6
"""Width at which the smaller half of an odd number of channels remains."""
TOLERANCE = 1e-4
"""Largest difference at which outputs count as equal, relative to how much they differ from row to row."""
ROUNDED_TOLERANCE = 1e-2
"""The same for outputs in single precision, where sums depend on the order of channels."""
DOUBLE_ROUNDING, SINGLE_ROUNDING = 1e-9, 1e-4
"""Differences that the order of sums may cause, relative to the largest output."""
NOISE = 0.6
"""Noise in the order of channels that change places; of 2 to 256 channels, pairs cross nearly every border."""
MOVING = ("Flip", "Roll", "Sort", "Gather", "CopySlices", "Stack", "ChannelShuffle")
"""Operations that move pixels, or channels, to other places."""
SELECTING = ("Slice", "Select")
"""Operations that take some of the channels, or of the pixels."""
CUSTOM = "Backward"
"""End of the names of the user's own functions with gradients; those of torch end in a digit."""
MIXED_HEADS = "it computes heads of attention in a way that is not followed"
UNTRACED = "its channels are split or reshaped in a way that is not followed"
ORDERED = "outputs depend on the order of its channels"


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


def find_width_groups(
    module: nn.Module,
    example: Inputs,
    widths: Sequence[float] = (),
    heads: HeadLayers = NO_HEADS,
    finish: Callable[[nn.Module, float], object] = lambda _module, _width: None,
) -> tuple[tuple[WidthGroup, ...], tuple[Inelastic, ...]]:
    """Find the groups of channels that can be narrowed, and the layers that cannot.

    Every candidate is tried: a copy at each width must run, also in training, and return outputs of the same shape.

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
    importance = import_torch_pruning().pruner.importance.GroupMagnitudeImportance(p=2)
    names, tied = {layer: path for path, layer in module.named_modules()}, find_tied_layers(module)
    candidates, inelastic = list[WidthGroup](), list_recurrent_layers(module)
    untraced = list[nn.Module]()
    visited = {layer for layer, path in names.items() if path in heads.reads}
    for group in _iterate_groups(graph, untraced, visited):
        root = names[group[0].dep.target.module]
        outputs_of = _count_outputs(graph, group)
        is_mixed = any(names.get(layer) in heads.unfollowed for layer in outputs_of)
        # feed-forward layers beside attention turn nothing, and heads are turned
        reason = MIXED_HEADS if is_mixed and _is_turned(group) else _find_obstacle(group, names, (module, heads), tied)
        found: WidthGroup | None = None
        if not reason:
            norms = [names[layer] for layer in _list_norms(group)]
            is_doubtful = is_mixed or _is_permuted(group)
            ranked = (_rank_channels(importance, group, root, parts) for parts in _iterate_parts(graph, group))
            found = next(
                (
                    each
                    for each in ranked
                    if len(each.order) > 1 and (not is_doubtful or _is_sound(module, example, each, heads, norms))
                ),
                None,
            )
            reason = MIXED_HEADS if is_mixed else UNTRACED
        if found is None:
            inelastic.append(Inelastic(root, reason))
            # layers of which it holds a part of the channels only may be narrowed with all of them
            visited -= {layer for layer, count in outputs_of.items() if count < count_channels(layer)[0]}
        else:
            candidates.append(found)
            narrowed = {names[layer] for layer in outputs_of}
            inelastic = [part for part in inelastic if part.path not in narrowed]
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
    unordered = _accept(accepted, [], lambda groups: _is_unordered(module, example, groups, heads))
    inelastic += [Inelastic(group.root, ORDERED) for group in accepted if group not in unordered]
    return tuple(unordered), tuple(inelastic)


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


def list_recurrent_layers(module: nn.Module) -> list[Inelastic]:
    """List the recurrent layers of a module: their gates are packed, and no member narrows them."""
    return [
        Inelastic(path, f"recurrent layers ({type(layer).__name__}) keep their width")
        for path, layer in module.named_modules()
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase)
    ]


def _iterate_groups(graph: Any, untraced: list[nn.Module], visited: set[nn.Module]) -> Iterator[Any]:
    """Yield the groups of channels of every layer that produces some and was not visited.

    Unlike torch-pruning's own loop, it goes on after a layer that it cannot follow; ``untraced`` receives this layer.
    ``visited`` receives the layers of each group.
    """
    visited |= {*graph.IGNORED_LAYERS_IN_TRACING}
    # depthwise ones last: torch-pruning scores the channels of a group by its first layer that is no such layer
    for layer in sorted(graph.module2node, key=_is_depthwise):
        if not isinstance(layer, ROOTS) or layer in visited or count_channels(layer)[0] == 1:
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
        visited |= {*_count_outputs(graph, group)}
        yield group


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _count_outputs(graph: Any, group: Any) -> dict[nn.Module, int]:
    """Count the channels of a group that each layer with channels puts out."""
    return {
        item.dep.target.module: len(item.idxs)
        for item in group
        if isinstance(item.dep.target.module, ROOTS) and graph.is_out_channel_pruning_fn(item.dep.handler)
    }


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
            present = count_channels(layer)[0]
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=dropped).prune()
            if count_channels(layer)[0] != present - len(dropped):
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
    # torch-pruning keeps the channels of layer norms in the order of a set, and those of all else in their own order
    return tuple(None if index is None else index.sort().values for index in kept)


def _iterate_parts(graph: Any, group: Any) -> Iterator[tuple[int, bool]]:
    """Iterate over the numbers of equal parts into which a layer's channels may be split.

    A gated linear unit multiplies the first half of its channels by the second: they are removed in pairs. So are
    neighbours where a slice takes every other channel. Code that takes the first half of the channels needs two
    halves, even if they do not depend on each other.

    Yields:
        Number of parts, and whether they are interleaved.
    """
    counts = [count for _, count in _iterate_channel_groups(group)]
    steps = _list_steps(group)
    if steps:
        yield math.lcm(*steps, *counts), True
        return
    parts = [_count_dependent(graph, group)] if _is_divided(group) else [1]
    for count in dict.fromkeys([*parts, *_iterate_divisions(group)]):
        yield math.lcm(count, *counts), False


def _is_divided(group: Any) -> bool:
    """Return whether an operation of a group takes parts of the channels apart, or joins them."""
    kinds = import_torch_pruning().ops
    taken = (kinds._SplitOp, kinds._SliceOp, kinds._ConcatOp)  # noqa: SLF001 - they have no public names
    return any(isinstance(item.dep.target.module, taken) or is_gate(item.dep.target) for item in group)


def _count_dependent(graph: Any, group: Any) -> int:
    """Count the equal parts of a layer's channels of which those at one place depend on each other; 1 if none do."""
    layer, channels = group[0].dep.target.module, len(group[0].idxs)
    try:
        first, last = (_list_dependent(graph, layer, channel) for channel in (0, channels - 1))
    except UNFOLLOWED:
        return 1
    parts = len(first)
    size = channels // parts
    is_regular = first == {part * size for part in range(parts)} and last == {
        (part + 1) * size - 1 for part in range(parts)
    }
    return parts if is_regular else 1


def _iterate_divisions(group: Any) -> Iterator[int]:
    """Iterate over the numbers of equal parts that operations of a group take of all channels of its first layer."""
    channels, kinds = len(group[0].idxs), import_torch_pruning().ops
    for item in group:
        operation = item.dep.target.module
        if isinstance(operation, kinds._SplitOp) and operation.offsets:  # noqa: SLF001
            size = operation.offsets[1]
        elif isinstance(operation, kinds._SliceOp) and _selects(operation.grad_fn, channels):  # noqa: SLF001
            size = operation.end - operation.start
        else:
            continue
        if 0 < size < channels and channels % size == 0:
            yield channels // size


def _list_steps(group: Any) -> list[int]:
    """List the steps of the slices that take every so many channels."""
    kind = import_torch_pruning().ops._SliceOp  # noqa: SLF001 - it has no public name
    slices = dict.fromkeys(item.dep.target for item in group if isinstance(item.dep.target.module, kind))
    return [node.module.step for node in slices if node.module.step > 1 and takes_channels(node)]


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


def _rank_channels(importance: Any, group: Any, root: str, division: tuple[int, bool]) -> WidthGroup:
    """Rank the channels of each part of a group, the most important first; none if torch-pruning lost track."""
    parts, is_interleaved = division
    try:
        scores = importance(group)
        scores = scores.reshape(-1, parts).sum(1) if is_interleaved else scores.reshape(parts, -1).sum(0)
    # indices that it maps through splits and reshapes may lie beyond a layer
    except UNFOLLOWED:
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
            kind = "normalizes groups of channels" if isinstance(layer, nn.GroupNorm) else "is a grouped convolution"
            return f"{names[layer]} {kind}"
    for item in group:
        layer = item.dep.target.module
        path = names.get(layer, "")
        if parametrize.is_parametrized(layer):
            return f"the weight of {path} is parametrized"
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
            # code may take other layers in training, which were not followed
            with torch.random.fork_rng(devices=[]):
                _run(narrowed.train(), take_two_rows(example))
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
    kinds = import_torch_pruning().ops
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


def _is_sound(module: nn.Module, example: Inputs, group: WidthGroup, heads: HeadLayers, norms: Sequence[str]) -> bool:
    """Check that narrow copies return what the module does without the other channels.

    By chance, as many channels may remain of each head; of the first channels, none of the last heads.
    """
    tried = (replace(group, order=tuple(sorted(group.order))), group)
    return all(_equals_ignored(module, example, each, heads, norms) for each in tried)


def _is_unordered(module: nn.Module, example: Inputs, groups: Sequence[WidthGroup], heads: HeadLayers) -> bool:
    """Check that outputs stay the same where half of the channels of all groups change places with the other half.

    They differ where code computes with neighbouring channels, as a convolution over channels does, and where channels
    were followed to wrong places.
    """
    original = _randomize_constants(module, example)
    try:
        first, second = (
            trace_indices(module, example, [_choose_half(group, is_second) for group in groups], BELOW_HALF, heads)[1]
            for is_second in (False, True)
        )
        exchanged = copy_module(original)
        for name, tensor in _iterate_tensors(exchanged):
            for axis, (one, other) in enumerate(zip(first[name], second[name], strict=True)):
                if one is not None and other is not None:
                    places = torch.arange(tensor.shape[axis])
                    places[one], places[other] = other, one
                    tensor.data = tensor.data.index_select(axis, places)
        return _are_equal(exchanged, original, example)
    # a failing copy may raise anything: the reason is that it cannot be narrowed
    except Exception:  # noqa: BLE001
        return False


def _choose_half(group: WidthGroup, is_second: bool) -> WidthGroup:
    """Rank one half of the channels of a group first, without the last of an odd number.

    They are drawn at random, and the first half holds more of the first channels. Channels change places in their
    order, and would remain near their own if both halves were spread alike.
    """
    count = len(group.order)
    generator = torch.Generator().manual_seed(count)
    shuffled = torch.argsort(torch.arange(count) / count + NOISE * torch.rand(count, generator=generator)).tolist()
    half = count // 2
    kept = sorted(shuffled[half : 2 * half] if is_second else shuffled[:half])
    return replace(group, order=(*kept, *sorted({*range(count)} - {*kept})))


def _randomize_constants(module: nn.Module, example: Inputs) -> nn.Module:
    """Copy a module, with random values in place of constant ones.

    A residual branch that begins with a factor of 0 or nearly 0 would hide what it computes.
    """
    copied, generator = copy_module(module), torch.Generator().manual_seed(0)
    for parameter in copied.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.data = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) + 0.5
    return copied if bool(_run(copied, example).isfinite().all()) else copy_module(module)


def _are_equal(module: nn.Module, other: nn.Module, example: Inputs) -> bool:
    """Check that two modules return the same in the highest precision in which they run: the double one, if any."""
    # fresh weights may give outputs that hardly depend on the inputs
    try:
        outputs, expected = (_run_in(each, example, torch.float64) for each in (module, other))
        tolerance, rounding = TOLERANCE, DOUBLE_ROUNDING
    # code may make tensors of single precision, or convert them between its layers
    except RuntimeError:
        outputs, expected = (_run(each, example) for each in (module, other))
        tolerance, rounding = ROUNDED_TOLERANCE, SINGLE_ROUNDING
    largest = expected.abs().max()
    scale = (expected - expected.roll(1, 0)).abs().max() if len(expected) > 1 else largest
    # equal rows, such as zeros, give equal outputs but for rounding
    least = torch.maximum(tolerance * scale, rounding * largest)
    return outputs.shape == expected.shape and bool((outputs - expected).abs().max() <= least)


def _equals_ignored(
    module: nn.Module, example: Inputs, group: WidthGroup, heads: HeadLayers, norms: Sequence[str]
) -> bool:
    """Check that a narrow copy returns what the module does if all that the copy lacks is 0.

    A copy with channels that are shuffled otherwise than those of the module runs as well, but with other channels.
    Norms of the group would differ by the number of channels: they only scale and shift here.
    """
    ignoring = _randomize_constants(module, example)
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
        return _are_equal(narrowed, ignoring, example)
    # a failing copy may raise anything: the reason is that it cannot be narrowed
    except Exception:  # noqa: BLE001
        return False


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


def _run_in(module: nn.Module, example: Inputs, precision: torch.dtype) -> Tensor:
    """Run a copy of a module with weights and inputs converted to a precision."""
    tensors = list_tensors(example)
    converted = tuple(each.to(precision) if each.is_floating_point() else each for each in tensors)
    return _run(copy_module(module).to(precision), converted)


def _iterate_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.ndim)


def _find_tensor(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), attribute)
    return tensor
