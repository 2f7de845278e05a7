"""Depth of a user's module: residual blocks that a member may skip.

A block can be skipped if it stands in a list of blocks, keeps the shape of its input, and adds its input to its output:
without it, the network passes on what the previous block returned. Blocks that return a tuple, as those of T5 and BERT
do, can be skipped if its other values are ``None`` or arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unfold_supernet.elasticity.inputs import Inputs, run_module

SUM = "AddBackward"
"""Sums; products of matrices that a bias is added to are named alike, but for the end."""
PASSING = (
    *(SUM, "Relu", "Hardtanh", "Hardswish", "Silu", "Gelu", "LayerNorm"),
    *("View", "Clone", "Alias", "Permute", "Transpose"),
)
"""Operations that pass a residual input on: sums, activations and norms behind them, and changes of layout."""


Source = int | str | None
"""Where a skipped block takes a value from: the place or the name of an argument; ``None`` stands for itself."""


class Skip(nn.Module):  # type: ignore[misc,unused-ignore]
    """Stands for a skipped block: returns its first argument.

    Attributes:
        others: Sources of the values behind it in a tuple; ``None`` returns a single tensor.
    """

    def __init__(self, others: tuple[Source, ...] | None = None) -> None:
        super().__init__()
        self.others = others

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first input, and where the block returns more values, the arguments that they stand for."""
        if self.others is None:
            return args[0]
        sources: dict[Any, Any] = {**dict(enumerate(args)), **kwargs, None: None}
        return (args[0], *(sources[source] for source in self.others))


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive residual blocks of one list.

    Attributes:
        paths: Their paths, in execution order.
        before: 1 if a block of another shape starts the stage and always remains, else 0.
        skips: What replaces each of them.
    """

    paths: tuple[str, ...]
    before: int
    skips: tuple[Skip, ...]

    def list_skipped(self, depth: float) -> dict[str, Skip]:
        """List the blocks that a member skips at this fraction of the stage's blocks; the first always remains."""
        kept = max(1, math.ceil((self.before + len(self.paths)) * depth - 1e-9))
        first = max(0, kept - self.before)
        return dict(zip(self.paths[first:], self.skips[first:], strict=True))


def find_block_runs(module: nn.Module, example: Inputs) -> tuple[BlockRun, ...]:
    """Find the runs of residual blocks that may be skipped.

    Args:
        module: The user's module, in inference mode.
        example: Inputs (n, *size).
    """
    candidates = dict(_iterate_candidates(module))
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hooks = []
    for path, block in candidates.items():

        def record(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            calls[path] = args, kwargs

        hooks.append(block.register_forward_pre_hook(record, with_kwargs=True))
    try:
        with torch.no_grad():
            run_module(module, example)
    finally:
        for hook in hooks:
            hook.remove()
    found = {path: _find_skip(block, *calls[path]) for path, block in candidates.items() if path in calls}
    residual = {path: skip for path, skip in found.items() if skip is not None}
    runs, previous = list[BlockRun](), ("", -2)
    for path, skip in residual.items():
        # a stage of residual blocks is residual too; its blocks are what a member skips
        if any(other.startswith(f"{path}.") for other in residual):
            continue
        parent, _, name = path.rpartition(".")
        position = int(name) if name.isdigit() else -2
        if parent == previous[0] and position == previous[1] + 1:
            runs[-1] = BlockRun((*runs[-1].paths, path), runs[-1].before, (*runs[-1].skips, skip))
        else:
            runs.append(BlockRun((path,), int(position > 0), (skip,)))
        previous = parent, position
    return tuple(runs)


def replace_blocks(module: nn.Module, skips: Mapping[str, Skip]) -> None:
    """Replace blocks of a module by what stands for them, in place.

    The code around a block may read its plain attributes, such as the kind of its attention: they remain.
    """
    for path, skip in skips.items():
        parent, _, name = path.rpartition(".")
        stand_in = Skip(skip.others)
        for key, value in vars(module.get_submodule(path)).items():
            if isinstance(value, int | float | str) and key not in vars(stand_in):
                setattr(stand_in, key, value)
        setattr(module.get_submodule(parent), name, stand_in)


def _iterate_candidates(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the members of lists that are built from layers with parameters."""
    for path, container in module.named_modules():
        if isinstance(container, nn.Sequential | nn.ModuleList) and len(container) > 1:
            for name, block in container.named_children():
                if any(True for _ in block.parameters()) and any(True for _ in block.children()):
                    yield f"{path}.{name}" if path else name, block


def _find_skip(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Skip | None:
    """Find what may stand for a block that returns its input plus something, by its autograd graph."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    x = args[0].detach().requires_grad_()
    with torch.enable_grad():
        outputs = block(x, *args[1:], **kwargs)
    if isinstance(outputs, Tensor):
        return Skip() if _adds(outputs, x) else None
    if type(outputs) is not tuple or not outputs or not isinstance(outputs[0], Tensor) or not _adds(outputs[0], x):
        return None
    arguments: list[tuple[Source, Any]] = [*enumerate(args[1:], 1), *kwargs.items()]
    others = list[Source]()
    for value in outputs[1:]:
        sources = [source for source, argument in arguments if argument is value]
        if value is not None and not sources:
            return None
        others.append(None if value is None else sources[0])
    return Skip(tuple(others))


def _adds(y: Tensor, x: Tensor) -> bool:
    """Check whether a tensor is another one plus something."""
    if y.shape != x.shape or y.grad_fn is None:
        return False
    # operations, each with whether a sum lies between them and the end
    nodes, seen = [(y.grad_fn, False)], set[Any]()
    while nodes:
        node, is_added = nodes.pop()
        if getattr(node, "variable", None) is x and is_added:
            return True
        if (node, is_added) in seen or not any(word in node.name() for word in PASSING):
            continue
        seen.add((node, is_added))
        is_added = is_added or SUM in node.name()
        nodes += [(parent, is_added) for parent, _ in node.next_functions if parent is not None]
    return False
