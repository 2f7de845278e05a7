"""Plugin of kind ``supernet``: models of several sizes in one set of weights, and accelerators that cache them.

``elastic(module, example)`` turns a torch module into a family, without a command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfold_supernet.modules.elastic_family import ElasticFamily
    from unfold_supernet.modules.embeddings import RetrievalQuality

__all__ = ["elastic", "fit", "measure_retrieval"]


def elastic(
    module: Any,
    example: Any,
    *,
    widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    depths: Sequence[float] = (1.0,),
    resolutions: Sequence[float] = (1.0,),
) -> ElasticFamily:
    """Turn a torch module into a family of members that share its weights.

    The lists are combined entry by entry; a list of one entry applies to every member.

    Args:
        module: A ``torch.nn.Module`` that maps inputs to one tensor of outputs.
        example: Inputs (n, *size) on which its layers are traced; a pair of tensors for a module with two inputs.
        widths: Fractions of the channels.
        depths: Fractions of the residual blocks.
        resolutions: Fractions 1/n of the input's edges.

    Raises:
        UnfoldError: Nothing of the module is elastic in a requested dimension, or it fails on the example.
    """
    from unfold_supernet.modules import elastic_family

    return elastic_family.elastic(module, example, widths=widths, depths=depths, resolutions=resolutions)


def fit(family: ElasticFamily, x: Any, y: Any, extra: Any = None, **options: Any) -> None:
    """Train a family in place; ``options`` are the fields of :class:`unfold_supernet.modules.problem.FitOptions`.

    Args:
        family: The family.
        x: Inputs (n, *size), an array or a tensor; they are converted to the precision of the example.
        y: Classes (n), labels (n, labels) or values (n, values).
        extra: The second inputs (n, *other) of a module with two.
        options: How it is trained.

    Raises:
        UnfoldError: Training diverged, an input is not finite, or targets do not fit the inputs or the module.
    """
    import torch

    from unfold_supernet.modules import problem, training
    from unfoldkit.api import user_error

    inputs = torch.as_tensor(x, dtype=family.example.dtype)
    kind = None if family.extra is None else family.extra.dtype
    others = None if extra is None else torch.as_tensor(extra, dtype=kind)
    if not all(bool(torch.isfinite(each).all()) for each in (inputs, others) if each is not None):
        raise user_error("an input is not finite", key="x", hint="fill the gaps, or drop such rows")
    targets = torch.as_tensor(y)
    # losses take classes of 64 bits only
    targets = targets if targets.is_floating_point() or targets.is_complex() else targets.long()
    training.fit(family, inputs, targets, problem.FitOptions(**options), extra=others)


def measure_retrieval(
    embeddings: Any, classes: Any, dimensions: Sequence[int] = (), nearest: int = 1
) -> tuple[RetrievalQuality, ...]:
    """Measure how often one of the nearest rows of an embedding has the same class, by number of dimensions.

    Args:
        embeddings: An array of test rows (n, d).
        classes: An array with the class of each row (n).
        dimensions: Lengths of the prefixes; none stands for all dimensions.
        nearest: How many rows may be returned.

    Raises:
        UnfoldError: A prefix is longer than the embedding, or no class has two rows.
    """
    from unfold_supernet.modules import embeddings as module

    return module.measure_retrieval(embeddings, classes, dimensions, nearest)
