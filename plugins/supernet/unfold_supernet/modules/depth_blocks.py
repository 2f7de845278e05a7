"""Depth of a user's module: residual blocks that a member may skip.

A block can be skipped if it stands in a list of blocks, keeps the shape of its input, and adds its input to its output:
without it, the network passes on what the previous block returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PASSING = (
    *("Add", "Relu", "Hardtanh", "Hardswish", "Silu", "Gelu", "LayerNorm"),
    *("View", "Clone", "Alias", "Permute", "Transpose"),
)
"""Operations that pass a residual input on: sums, activations and norms behind them, and changes of layout."""


class Skip(nn.Module):  # type: ignore[misc,unused-ignore]
    """Stands for a skipped block: returns its first argument."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return the input."""
        return x


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive residual blocks of one list.

    Attributes:
        paths: Their paths, in execution order.
        before: 1 if a block of another shape starts the stage and always remains, else 0.
    """

    paths: tuple[str, ...]
    before: int

    def list_skipped(self, depth: float) -> tuple[str, ...]:
        """List the blocks that a member skips at this fraction of the stage's blocks; the first always remains."""
        kept = max(1, math.ceil((self.before + len(self.paths)) * depth - 1e-9))
        return self.paths[max(0, kept - self.before) :]


def find_block_runs(module: nn.Module, example: Tensor) -> tuple[BlockRun, ...]:
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
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    residual = [path for path, block in candidates.items() if path in calls and _adds_its_input(block, *calls[path])]
    runs, previous = list[BlockRun](), ("", -2)
    for path in residual:
        # a stage of residual blocks is residual too; its blocks are what a member skips
        if any(other.startswith(f"{path}.") for other in residual):
            continue
        parent, _, name = path.rpartition(".")
        position = int(name) if name.isdigit() else -2
        if parent == previous[0] and position == previous[1] + 1:
            runs[-1] = BlockRun((*runs[-1].paths, path), runs[-1].before)
        else:
            runs.append(BlockRun((path,), int(position > 0)))
        previous = parent, position
    return tuple(runs)


def replace_blocks(module: nn.Module, paths: tuple[str, ...]) -> None:
    """Replace blocks of a module by :class:`Skip`, in place."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, Skip())


def _iterate_candidates(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the members of lists that are built from layers with parameters."""
    for path, container in module.named_modules():
        if isinstance(container, nn.Sequential | nn.ModuleList) and len(container) > 1:
            for name, block in container.named_children():
                if any(True for _ in block.parameters()) and any(True for _ in block.children()):
                    yield f"{path}.{name}" if path else name, block


def _adds_its_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Check whether a block returns its input plus something, by its autograd graph."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return False
    x = args[0].detach().requires_grad_()
    with torch.enable_grad():
        y = block(x, *args[1:], **kwargs)
    if not isinstance(y, Tensor) or y.shape != x.shape or y.grad_fn is None:
        return False
    nodes, seen = [y.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if getattr(node, "variable", None) is x:
            return y is not x
        if node in seen or not any(word in node.name() for word in PASSING):
            continue
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return False
