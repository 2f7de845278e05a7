"""Heads of attention with queries, keys and values from linear layers of their own, or from packed ones.

So BERT, DistilBERT, ViT and Llama are written. A member keeps the user's code: its linear layers lose the channels of
heads, and the numbers that count heads or their channels become smaller. A key and value that several queries share
are kept or left out together with these queries. A layer is elastic only if it returns, without some heads, what it
returns with them while the next layer ignores them.

Where the code derives the size of a head from its inputs, all heads remain, and each loses the same channels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from unfold_supernet.elasticity.dependency_graph import HeadLayers
from unfold_supernet.elasticity.inputs import Inputs, run_module
from unfold_supernet.elasticity.layer_replacement import find_tied_layers
from unfold_supernet.elasticity.width_groups import Indices, select

HEAD_NAMES = re.compile(r"head|^n?_?h$|^d_?[kqv]$")
"""Attributes from which the number of heads follows: their count, or the channels of one."""
SIZE_NAMES = re.compile(r"dim|size|width|group|layer|^d_")
"""Attributes that are no count of heads, even if they are equal to it."""
MIN_SIZE = 2
"""Channels of a head from which on some of them are left out."""
TOLERANCE = 1e-4
"""Largest difference at which outputs count as equal, relative to the largest of them."""

Change = tuple[Any, str, Any]
"""An object, the name of its attribute, and a value for it."""


@dataclass(frozen=True, slots=True)
class ReplacedHeads:
    """An attention layer of a known form that works without some of its heads.

    Attributes:
        path: Path of the layer.
        order: Its heads, the most important first.
    """

    path: str
    order: tuple[int, ...]

    def keep(self, width: float) -> tuple[int, ...]:
        """List the heads that remain at a fraction of the width; at least one does."""
        return keep_most_important(self.order, width)


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer that puts out or takes in the channels of heads.

    Attributes:
        path: Its path.
        parts: 3 if it computes queries, keys and values, one after another; 2 for keys and values, else 1. Multiplied
            by the number of heads where channels of each head are left out.
        size: Channels of a head in each part; 1 where channels of each head are left out.
    """

    path: str
    parts: int
    size: int

    def list_channels(self, heads: Sequence[int], count: int) -> Tensor:
        """List the channels of some of ``count`` heads."""
        starts = torch.arange(self.parts)[:, None] * count + torch.tensor(heads)
        return (starts[:, :, None] * self.size + torch.arange(self.size)).flatten()


@dataclass(frozen=True, slots=True)
class PlainForm:
    """Scaled dot-product attention of one tensor, without a mask.

    Attributes:
        is_causal: Whether later tokens are hidden.
        values: Number of values in the tuple that is returned, ``None`` behind the first; 0 for a tensor.
        is_residual: Whether the tensor is added.
    """

    is_causal: bool
    values: int
    is_residual: bool


@dataclass(frozen=True, slots=True)
class ProjectedHeads:
    """Heads that are read by linear layers and written by another one.

    Attributes:
        path: Path of the attention layer.
        order: Its heads, the most important first; heads that share a key and a value count as one. Channels of each
            head where these are left out.
        reads: The layers that compute queries, keys and values.
        written: The layer that reads all heads.
        all_reads: Paths of ``reads``, and of layers for a single key and value, which remain.
        counts: Attributes of the attention layer that are proportional to the number of heads.
        tables: Parameters of the attention layer with an axis for heads, and this axis.
        plain: What stands for the user's code where it takes a size from its inputs; ``None`` keeps the code.
    """

    path: str
    order: tuple[int, ...]
    reads: tuple[Projection, ...]
    written: Projection
    all_reads: tuple[str, ...]
    counts: tuple[str, ...]
    tables: tuple[tuple[str, int], ...]
    plain: PlainForm | None = None

    def keep(self, width: float) -> tuple[int, ...]:
        """List the heads that remain at a fraction of the width; at least one does."""
        return keep_most_important(self.order, width)


HeadGroup = ReplacedHeads | ProjectedHeads
"""An attention layer that works without some of its heads."""


def keep_most_important(order: Sequence[int], width: float) -> tuple[int, ...]:
    """List the heads of ``order``, the most important first, that remain at a fraction of the width."""
    return tuple(sorted(order[: max(1, round(len(order) * width))]))


class PlainAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention with the linear layers of another one, and any number of heads."""

    def __init__(self, layer: nn.Module, group: ProjectedHeads, form: PlainForm) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.sources = tuple((_get_name(read.path), read.parts) for read in _sort_reads(group.reads))
        self.size, self.form = group.written.size, form
        # the layer behind may lie in a sequence, or outside of this layer
        inside = group.written.path.startswith(f"{group.path}.") or not group.path
        self.end = group.written.path.removeprefix(f"{group.path}.").partition(".")[0] if inside else ""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute attention over tokens (n, tokens, embedding), the only tensor among the arguments."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        query, key, value = (
            part.unflatten(-1, (-1, self.size)).transpose(1, 2)
            for name, parts in self.sources
            for part in getattr(self, name)(x).chunk(parts, -1)
        )
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=self.form.is_causal)
        merged = heads.transpose(1, 2).flatten(2)
        result = getattr(self, self.end)(merged) if self.end else merged
        result = x + result if self.form.is_residual else result
        return (result, *[None] * (self.form.values - 1)) if self.form.values else result


def list_head_layers(groups: Sequence[HeadGroup], unfollowed: frozenset[str] = frozenset()) -> HeadLayers:
    """List the linear layers between which channels are those of heads; ``unfollowed`` are those that keep theirs."""
    projected = [group for group in groups if isinstance(group, ProjectedHeads)]
    reads = frozenset(path for group in projected for path in group.all_reads)
    return HeadLayers(reads, frozenset(group.written.path for group in projected), unfollowed)


def find_projected_heads(
    module: nn.Module, example: Inputs, known: Sequence[str]
) -> tuple[tuple[ProjectedHeads, ...], frozenset[str]]:
    """Find the attention layers with linear layers for their heads; each is tried on the example.

    Args:
        module: The user's module, in inference mode.
        example: Inputs (n, *size).
        known: Paths of attention layers that need no search.

    Returns:
        The layers, and the paths of linear layers that seem to compute heads which cannot be left out.
    """
    calls, forms = _list_linear_calls(module, example)
    tied, groups, tried = find_tied_layers(module), list[ProjectedHeads](), set[str]()
    for path, layer in module.named_modules():
        if path in known or not any(HEAD_NAMES.search(name) for name, _ in _iterate_numbers(layer)):
            continue
        failed = list[tuple[str, ...]]()
        candidates = [*_iterate_candidates(module, path, calls, forms.get(path))]
        for candidate in (*candidates, *_iterate_shortened(module, candidates)):
            names = (*candidate.all_reads, candidate.written.path)
            failed.append(candidate.all_reads)
            if any(name in tied or parametrize.is_parametrized(module.get_submodule(name)) for name in names):
                continue
            if _is_sound(module, example, candidate):
                groups.append(replace(candidate, order=_rank_heads(module, candidate)))
                break
        else:
            tried.update(name for reads in failed if reads[0] == failed[0][0] for name in reads)
    return tuple(groups), frozenset(tried.difference(*(group.all_reads for group in groups)))


def keep_projected_heads(module: nn.Module, group: ProjectedHeads, heads: Sequence[int]) -> dict[str, Indices]:
    """Remove the other heads of an attention layer, in place.

    Returns:
        The kept indices of each parameter that became smaller.
    """
    indices = _list_indices(module, group, heads)
    _set_attributes(_list_changes(module, group, heads, indices))
    return indices


def _list_linear_calls(module: nn.Module, example: Inputs) -> tuple[list[str], dict[str, int]]:
    """Run a module, and list the paths of linear layers in the order of their calls.

    Returns:
        The paths; and for each layer that takes one tensor, the number of values in the tuple that it returns, or 0.
    """
    calls, forms, hooks = list[str](), dict[str, int](), list[Any]()

    def record(_layer: nn.Module, args: Any, kwargs: Any, outputs: Any, path: str) -> None:
        if sum(isinstance(value, Tensor) for value in (*args, *kwargs.values())) == 1:
            forms[path] = len(outputs) if isinstance(outputs, tuple) else 0

    for path, layer in module.named_modules():
        hooks.append(layer.register_forward_hook(partial(record, path=path), with_kwargs=True))
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(lambda *_args, path=path: calls.append(path)))
    try:
        with torch.no_grad():
            run_module(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, forms


def _iterate_numbers(layer: nn.Module) -> Iterator[tuple[str, int]]:
    for name, value in vars(layer).items():
        if type(value) is int and value > 1 and not name.startswith("_"):
            yield name, value


def _iterate_candidates(
    module: nn.Module, path: str, calls: Sequence[str], form: int | None
) -> Iterator[ProjectedHeads]:
    """Iterate over what the heads of an attention layer may be: queries, keys and values in three, two or one layer."""
    layer = module.get_submodule(path)
    own = {f"{path}.{name}".lstrip(".") for name, child in layer.named_children() if isinstance(child, nn.Linear)}
    # other layers, such as an embedding, may stand before them
    starts = [index for index, call in enumerate(calls) if call in own]
    for number, start in itertools.product((3, 2, 1), starts):
        names = calls[start : start + number + 1]
        if len(set(names)) != number + 1 or not own.issuperset(names[:number]):
            continue
        width = int(module.get_submodule(names[-1]).in_features)
        widths = {name: int(module.get_submodule(name).out_features) for name in names[:number]}
        for count in _list_counts(layer, width):
            for reads, heads in _list_reads(widths, width, count):
                candidate = ProjectedHeads(
                    path=path,
                    order=tuple(range(heads)),
                    reads=reads,
                    written=Projection(names[-1], 1, width // heads),
                    all_reads=tuple(widths),
                    counts=tuple(_iterate_counted(layer, heads, count, width)),
                    tables=tuple(_iterate_tables(layer, count)),
                )
                yield candidate
                if path and form is not None and heads == count and not candidate.tables and _is_plain(reads):
                    for is_causal, is_residual in itertools.product((False, True), repeat=2):
                        yield replace(candidate, plain=PlainForm(is_causal, form, is_residual))


def _iterate_shortened(module: nn.Module, candidates: Sequence[ProjectedHeads]) -> Iterator[ProjectedHeads]:
    """Iterate over attention layers that keep all heads, each without the same channels."""
    for candidate in candidates:
        count, size = len(candidate.order), candidate.written.size
        is_whole = {read.path for read in candidate.reads} == {*candidate.all_reads}
        if candidate.plain or candidate.tables or not is_whole or size < MIN_SIZE:
            continue
        reads = tuple(Projection(read.path, read.parts * count * read.size // size, 1) for read in candidate.reads)
        sizes = [(name, value) for name, value in _iterate_numbers(module.get_submodule(candidate.path))]
        head = tuple(name for name, value in sizes if value == size)
        both = tuple(name for name, value in sizes if value in (size, size * count))
        for counts in dict.fromkeys([(), head, both]):
            yield replace(
                candidate,
                order=tuple(range(size)),
                reads=reads,
                written=Projection(candidate.written.path, count, 1),
                counts=counts,
            )


def _list_counts(layer: nn.Module, width: int) -> list[int]:
    """List what the number of heads may be, by the attributes of a layer."""
    counts = list[int]()
    for name, value in _iterate_numbers(layer):
        if HEAD_NAMES.search(name) and width % value == 0:
            counts += [width // value, value] if SIZE_NAMES.search(name) else [value, width // value]
    return [count for count in dict.fromkeys(counts) if 1 < count < width]


def _list_reads(widths: dict[str, int], width: int, count: int) -> list[tuple[tuple[Projection, ...], int]]:
    """List what layers may compute for ``count`` heads of ``width`` channels, and how many heads are independent.

    Packed outputs are queries, keys and values one after another, or those of one head after another.
    """
    size = width // count
    if len(widths) == 1:
        ((name, each),) = widths.items()
        packed = [(Projection(name, 3, size),)] if each == 3 * width else []
        # head after head, with queries and keys of any size beside the values
        packed += [(Projection(name, 1, each // count),)] if each > width and each % count == 0 else []
        return [(reads, count) for reads in packed]
    query = next((name for name, each in widths.items() if each == width), None)
    if query is None:
        return []
    others = {name: each for name, each in widths.items() if name != query}
    # keys and values in one layer
    parts = 2 if len(others) == 1 else 1
    keys, rest = divmod(next(iter(others.values())), parts * size)
    if rest or not keys or count % keys or len({*others.values()}) > 1:
        return []
    if keys == 1 < count:
        # a single key and value, which all queries share, remains
        return [((Projection(query, 1, size),), count)]
    first = Projection(query, 1, width // keys)
    orders = [(2, size), (1, 2 * size)] if parts == 2 else [(1, size)]
    return [((first, *(Projection(name, *order) for name in others)), keys) for order in orders]


def _iterate_counted(layer: nn.Module, heads: int, count: int, width: int) -> Iterator[str]:
    """Iterate over the attributes of a layer that count heads, keys or their channels."""
    for name, value in _iterate_numbers(layer):
        is_count = value in (count, heads) and not SIZE_NAMES.search(name)
        # each query that shares a single key and value
        is_group = "group" in name and value == count == heads
        if is_count or is_group or value in (width, width // count * heads):
            yield name


def _iterate_tables(layer: nn.Module, count: int) -> Iterator[tuple[str, int]]:
    """Iterate over parameters with one axis of as many entries as there are heads."""
    for name, parameter in layer.named_parameters(recurse=False):
        axes = [axis for axis, size in enumerate(parameter.shape) if size == count]
        if len(axes) == 1:
            yield name, axes[0]


def _iterate_caches(layer: nn.Module) -> Iterator[str]:
    """Iterate over the attributes in which a layer keeps tensors that it computed, such as biases by device."""
    for name, value in vars(layer).items():
        is_cache = type(value) is dict and value and not name.startswith("_")
        if is_cache and all(isinstance(item, Tensor) for item in value.values()):
            yield name


def _get_name(path: str) -> str:
    return path.rpartition(".")[2]


def _sort_reads(reads: Sequence[Projection]) -> list[Projection]:
    """Sort layers into queries, keys and values by their names."""
    return sorted(reads, key=lambda read: "qkv".find(_find_letter(read)))


def _find_letter(read: Projection) -> str:
    name = _get_name(read.path)
    return next((letter for letter in "qvk" if letter in name), "")


def _is_plain(reads: Sequence[Projection]) -> bool:
    """Check that it is clear which layers compute queries, keys and values, one after another."""
    if sum(read.parts for read in reads) != 3:
        return False
    return len(reads) < 3 or {_find_letter(read) for read in reads} == {*"qkv"}


def _list_indices(module: nn.Module, group: ProjectedHeads, heads: Sequence[int]) -> dict[str, Indices]:
    """List the indices that remain of each parameter with channels of heads."""
    count, indices = len(group.order), dict[str, Indices]()
    for read in group.reads:
        channels = read.list_channels(heads, count)
        indices[f"{read.path}.weight"] = (channels, None)
        if module.get_submodule(read.path).bias is not None:
            indices[f"{read.path}.bias"] = (channels,)
    indices[f"{group.written.path}.weight"] = (None, group.written.list_channels(heads, count))
    layer = module.get_submodule(group.path)
    for name, axis in group.tables:
        shape = getattr(layer, name).shape
        rows = Projection(name, 1, shape[axis] // count).list_channels(heads, count)
        indices[f"{group.path}.{name}".lstrip(".")] = tuple(rows if at == axis else None for at in range(len(shape)))
    return indices


def _list_changes(
    module: nn.Module, group: ProjectedHeads, heads: Sequence[int], indices: Mapping[str, Indices]
) -> list[Change]:
    changes = list[Change]()
    for key, kept in indices.items():
        path, _, name = key.rpartition(".")
        owner = module.get_submodule(path)
        parameter = getattr(owner, name)
        changes.append((owner, name, nn.Parameter(select(parameter.detach(), kept), parameter.requires_grad)))
    layer = module.get_submodule(group.path)
    count = len(group.order)
    changes += [(layer, name, getattr(layer, name) * len(heads) // count) for name in group.counts]
    changes += [(layer, name, {}) for name in _iterate_caches(layer)]
    for read in group.reads:
        changes.append((module.get_submodule(read.path), "out_features", read.parts * read.size * len(heads)))
    written = group.written
    changes.append((module.get_submodule(written.path), "in_features", written.parts * written.size * len(heads)))
    if group.plain is not None:
        parent, name = module.get_submodule(group.path.rpartition(".")[0]), _get_name(group.path)
        changes.append((parent, name, PlainAttention(layer, group, group.plain).train(layer.training)))
    return changes


def _set_attributes(changes: Sequence[Change]) -> list[Change]:
    """Set attributes; return what they were, last first."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    return before[::-1]


def _rank_heads(module: nn.Module, group: ProjectedHeads) -> tuple[int, ...]:
    """Rank heads, or channels of each, by the squares of the weights that they read and write with."""
    count = len(group.order)
    written = module.get_submodule(group.written.path).weight.detach().T
    scores = written.reshape(group.written.parts, count, -1).square().sum((0, 2))
    for read in group.reads:
        weight = module.get_submodule(read.path).weight.detach()
        scores = scores + weight.reshape(read.parts, count, -1).square().sum((0, 2))
    return tuple(torch.argsort(scores, descending=True, stable=True).tolist())


def _is_sound(module: nn.Module, example: Inputs, group: ProjectedHeads) -> bool:
    """Check that a copy without some heads computes the others and its outputs as if these heads were ignored."""
    count = len(group.order)
    for heads in dict.fromkeys([tuple(range(count))[1::2], (0,)]):
        channels = group.written.list_channels(heads, count)
        indices = _list_indices(module, group, heads)
        # queries and keys are multiplied channel by channel; whole heads are ignored by the next layer
        end = f"{group.written.path}.weight"
        zeroed = indices if group.written.parts > 1 else {end: indices[end]}
        try:
            changes = _list_changes(module, group, heads, indices)
            expected = _run(module, example, group, [_zero_all_but(module, key, kept) for key, kept in zeroed.items()])
            found = _run(module, example, group, changes)
        # a layer of another kind may raise anything: its heads stay
        except Exception:  # noqa: BLE001
            return False
        pairs = [
            (found[0], expected[0]),
            *((one, all_[..., channels]) for one, all_ in zip(found[1], expected[1], strict=False)),
        ]
        if len(found[1]) != len(expected[1]) or not all(_is_close(*pair) for pair in pairs):
            return False
    return True


def _zero_all_but(module: nn.Module, key: str, kept: Indices) -> Change:
    """Set all values of a parameter to 0 but for those at the kept indices."""
    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    parameter = getattr(owner, name)
    zeroed = torch.zeros_like(parameter.detach())
    axes = [torch.arange(size) if index is None else index for size, index in zip(parameter.shape, kept, strict=True)]
    grid = torch.meshgrid(*axes, indexing="ij")
    zeroed[grid] = parameter.detach()[grid]
    return owner, name, nn.Parameter(zeroed, parameter.requires_grad)


def _run(
    module: nn.Module, example: Inputs, group: ProjectedHeads, changes: Sequence[Change]
) -> tuple[Tensor, list[Tensor]]:
    """Run a module with changes; return its outputs, and what the layer behind the heads received."""
    inputs, before = list[Tensor](), _set_attributes(changes)
    layer = module.get_submodule(group.written.path)
    hook = layer.register_forward_pre_hook(lambda _layer, args: inputs.append(args[0]))
    try:
        with torch.no_grad():
            return run_module(module, example), inputs
    finally:
        hook.remove()
        _set_attributes(before)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))
