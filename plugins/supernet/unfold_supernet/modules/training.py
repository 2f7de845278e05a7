"""Train a family in place: the sandwich rule, with the full network as teacher of its members.

Each step sums the gradients of all members of a short list; of a long one, of the largest, the smallest and random ones
(BigNAS, ECCV 2020). The largest learns from the targets; the others learn from the targets and from its outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from unfold_supernet.modules.elastic_family import TABLES, ElasticFamily
from unfold_supernet.modules.embeddings import compute_nested_loss
from unfold_supernet.modules.problem import FitOptions
from unfoldkit.api import user_error
from unfoldkit.safe_io.arrays import load_tensors
from unfoldkit.safe_io.files import decoding

TASKS = ("classes", "labels", "values", "embeddings")
CHECKED_ROWS = 256
"""Rows of a batch when the ids of all rows are checked."""
MAX_TOGETHER = 5
"""Members that are trained in every step; of longer lists, the largest, the smallest and random ones are."""

RANGES = {
    "rate": (0.0, math.inf),
    "decay": (0.0, 1.0),
    "distill": (0.0, 1.0),
    "samples": (0, 64),
    "warmup": (0.0, 1.0),
    "clip": (1e-300, math.inf),
    "temperature": (1e-3, 100.0),
    "calibrate": (2, math.inf),
    "seed": (0, math.inf),
}
"""Smallest and largest values of options."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Where the state of a training is kept after each epoch.

    Attributes:
        read: Returns the stored state; ``None`` if there is none for this training.
        write: Stores a state.
        file: Where it is stored, for errors.
    """

    read: Callable[[], bytes | None]
    write: Callable[[bytes], None]
    file: str = ""


def fit(
    family: ElasticFamily,
    x: Tensor,
    y: Tensor,
    options: FitOptions | None = None,
    progress: Callable[[int, int], None] = lambda _epoch, _epochs: None,
    store: CheckpointStore | None = None,
    rows: Tensor | None = None,
    extra: Tensor | None = None,
) -> float:
    """Train a family's shared weights in place, then compute each member's norm statistics.

    The batches, the random members and the random numbers of the layers of an epoch depend on the seed and the epoch
    only, so that a training that continues from a checkpoint ends with the same weights.

    Args:
        family: The family.
        x: Inputs (n, *size).
        y: Classes (n) of integers, also for embeddings; labels (n, labels) of zeros and ones, or values (n, values).
        options: How it is trained.
        progress: Receives completed epochs and their number.
        store: Keeps the state after each epoch; a training that was killed continues from it.
        extra: The second inputs (n, *other) of a module with two.
        rows: Which rows to train on; all by default. Inputs that are mapped from a file are read batch by batch.

    Returns:
        Seconds of training, with those before it was killed.

    Raises:
        UnfoldError: The weights are no longer finite, inputs and targets differ in length, the network fails for a row,
            or the stored state is that of another training.
    """
    options = options or FitOptions()
    if len(x) != len(y) or not len(x):
        raise user_error(f"{len(x):,} inputs and {len(y):,} targets")
    _check_options(family, options)
    _check_targets(family, y, options)
    inputs = _list_inputs(family, x, extra)
    optimizer = _make_optimizer(family, options)
    start = time.perf_counter()
    completed, earlier_s = (0, 0.0) if store is None else _restore(family, optimizer, store)
    if not completed:
        _check_ids(family, inputs)
    train = torch.arange(len(x)) if rows is None else rows
    batches = max(1, len(train) // options.batch)
    names = [member.name for member in family.members()]
    for member in family.members():
        member.skeleton.train()
    for epoch in range(completed, options.epochs):
        rng = np.random.default_rng([options.seed, epoch])
        order = train[torch.from_numpy(rng.permutation(len(train)))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            for index, chosen in enumerate(order.split(options.batch)[:batches]):
                _set_rate(optimizer, options, epoch * batches + index, options.epochs * batches)
                sample = _draw_members(names, options.samples, rng)
                try:
                    with torch.enable_grad():
                        _take_step(family, sample, optimizer, options, [each[chosen] for each in inputs], y[chosen])
                # of batch norm, which needs a spread
                except ValueError as error:
                    raise user_error(
                        f"a step fails: {error}", key="batch", hint="use batches of several rows"
                    ) from error
        if not all(bool(weight.isfinite().all()) for weight in family.weights.values()):
            message = f"training diverged: the weights are not finite after epoch {epoch + 1}"
            raise user_error(message, key="training.rate", hint="lower rate or clip, or scale the inputs")
        if store is not None:
            store.write(_pack_state(family, optimizer, epoch + 1, earlier_s + time.perf_counter() - start))
        progress(epoch + 1, options.epochs)
    order = torch.from_numpy(np.random.default_rng([options.seed, 0xCA1]).permutation(len(train)))
    family.calibrate(x, train[order[: options.calibrate]], extra=extra)
    return earlier_s + time.perf_counter() - start


def _list_inputs(family: ElasticFamily, x: Tensor, extra: Tensor | None) -> tuple[Tensor, ...]:
    """List the inputs; there are as many as those of the example."""
    inputs = (x,) if extra is None else (x, extra)
    if len(inputs) != len(family.inputs):
        raise user_error(f"the module takes {len(family.inputs)} inputs, not {len(inputs)}", key="extra")
    if len(inputs[-1]) != len(x):
        raise user_error(f"{len(x):,} rows of x and {len(inputs[-1]):,} of extra", key="extra")
    return inputs


def _check_ids(family: ElasticFamily, inputs: tuple[Tensor, ...]) -> None:
    """Check a network with embeddings on all rows: an id that they lack would end the training, or what follows it."""
    member = family.members()[-1]
    if not any(isinstance(layer, TABLES) for layer in member.skeleton.modules()):
        return
    for rows in torch.arange(len(inputs[0])).split(CHECKED_ROWS):
        if _run_rows(family, inputs, rows) is None:
            continue
        for row in rows:
            error = _run_rows(family, inputs, torch.stack([row, row]))
            if error is not None:
                hint = "an embedding has the ids from 0 to num_embeddings - 1"
                raise user_error(f"the module fails for row {int(row)}: {error}", key="data.path", hint=hint) from error


def _run_rows(family: ElasticFamily, inputs: tuple[Tensor, ...], rows: Tensor) -> Exception | None:
    """Run the largest member on rows; return its error."""
    try:
        with torch.no_grad():
            family(family.members()[-1], *(each[rows] for each in inputs))
    # the user's code may raise anything
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _check_options(family: ElasticFamily, options: FitOptions) -> None:
    """Check that some weight is trained, and that the options lie within their ranges."""
    if not any(weight.requires_grad for weight in family.weights.values()):
        raise user_error("every weight of the module is frozen", hint="module.requires_grad_(True)")
    if options.batch < 1 or options.epochs < 1:
        raise user_error(f"{options.epochs} epochs with {options.batch} rows a batch", hint="at least one of each")
    for name, (least, most) in RANGES.items():
        if not least <= getattr(options, name) <= most:
            raise user_error(f"{getattr(options, name)} is not from {least:g} to {most:g}", key=name)
    if options.task not in TASKS:
        raise user_error(f"unknown task {options.task!r}", key="task", hint="classes, labels, values or embeddings")
    if options.optimizer not in ("adamw", "sgd"):
        raise user_error(f"unknown optimizer {options.optimizer!r}", key="optimizer", hint="adamw or sgd")


def _check_targets(family: ElasticFamily, y: Tensor, options: FitOptions) -> None:
    """Check that the targets are those of the task and the outputs."""
    with torch.no_grad():
        example_outputs = family(family.members()[-1].name, *family.inputs)
    outputs = example_outputs.shape[1]
    if example_outputs.ndim != 2:
        message = f"the module returns {tuple(example_outputs.shape[1:])} values for each row, not one list of numbers"
        raise user_error(message, hint="pool the positions, or train the family in a loop of your own")
    if options.class_weights is not None and len(options.class_weights) != outputs:
        message = f"{len(options.class_weights)} class weights for a module of {outputs} outputs"
        raise user_error(message, key="class_weights", hint="one weight for each output")
    if options.task in ("labels", "values"):
        _check_columns(y, outputs, options.task)
        return
    if y.dtype != torch.int64 or y.ndim != 1:
        raise user_error(f"classes are {tuple(y.shape)} {y.dtype} values, not (n,) whole numbers", hint="y.long()")
    if options.task == "classes" and (y.min() < 0 or y.max() >= outputs):
        message = f"classes from {int(y.min())} to {int(y.max())} for a module of {outputs} outputs"
        raise user_error(message, hint="count the classes from 0")


def _check_columns(y: Tensor, outputs: int, task: str) -> None:
    """Check that there is a label of 0 or 1, or a finite value, for each output."""
    if y.numel() != len(y) * outputs:
        message = f"targets of shape {tuple(y.shape)} for a module of {outputs} outputs"
        raise user_error(message, hint="store one column for each output")
    if task == "labels" and not bool(((y == 0) | (y == 1)).all()):
        raise user_error("labels are not all 0 or 1", hint="real values: task='values'")
    if not bool(torch.isfinite(y).all()):
        raise user_error("a target is not finite", hint="drop rows without a target")


def _pack_state(family: ElasticFamily, optimizer: torch.optim.Optimizer, epoch: int, seconds: float) -> bytes:
    """Serialize weights, buffers, the optimizer's moments, the number of completed epochs and their seconds."""
    tensors = {f"family/{key}": tensor.contiguous() for key, tensor in family.state_dict().items()}
    for name, weight in family.weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if value is not None:
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).contiguous()
    return bytes(save(tensors | {"epoch": torch.tensor(epoch), "seconds": torch.tensor(seconds)}))


def _restore(family: ElasticFamily, optimizer: torch.optim.Optimizer, store: CheckpointStore) -> tuple[int, float]:
    """Restore the stored state, if there is one; return the completed epochs and their seconds.

    Raises:
        UnfoldError: The file holds no state, or that of other weights.
    """
    stored = store.read()
    if stored is None:
        return 0, 0.0
    with decoding(store.file, "the state of this training"):
        tensors = load_tensors(stored)
        epoch, seconds = int(tensors.pop("epoch")), float(tensors.pop("seconds", 0.0))
        family.load_state_dict(
            {key.removeprefix("family/"): tensor for key, tensor in tensors.items() if key.startswith("family/")}
        )
        for path, tensor in tensors.items():
            part, _, rest = path.partition("/")
            if part == "optimizer":
                key, _, name = rest.partition("/")
                weight = family.weights[name]
                if tensor.shape not in (torch.Size(), weight.shape):
                    raise ValueError(f"{path} has another shape than {name}")
                optimizer.state[weight][key] = tensor
    return epoch, seconds


def _draw_members(names: list[str], samples: int, rng: np.random.Generator) -> list[str]:
    """Draw the members of a step, the largest first: all of a short list, else the largest, the smallest and others."""
    if len(names) <= MAX_TOGETHER:
        return names[::-1]
    return [names[-1], names[0], *map(str, rng.choice(names[1:-1], min(samples, len(names) - 2), replace=False))]


def _make_optimizer(family: ElasticFamily, options: FitOptions) -> torch.optim.Optimizer:
    # norms and biases are not decayed
    matrices = [weight for weight in family.weights.values() if weight.ndim > 1]
    vectors = [weight for weight in family.weights.values() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": options.decay}, {"params": vectors, "weight_decay": 0.0}]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=options.rate)


def _set_rate(optimizer: torch.optim.Optimizer, options: FitOptions, step: int, steps: int) -> None:
    """Set the rate of a step: linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / max(1.0, options.warmup * steps))
    for group in optimizer.param_groups:
        group["lr"] = options.rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def _take_step(
    family: ElasticFamily,
    sample: list[str],
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    inputs: Sequence[Tensor],
    y: Tensor,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    teacher: Tensor | None = None
    for name in sample:
        outputs = family(name, *inputs)
        loss = compute_loss(outputs, y, options)
        if teacher is not None and options.distill:
            loss = options.distill * _compute_soft_loss(outputs, teacher, options) + (1 - options.distill) * loss
        loss.backward()
        teacher = outputs.detach() if teacher is None else teacher
    nn.utils.clip_grad_norm_([weight for weight in family.weights.values() if weight.grad is not None], options.clip)
    optimizer.step()


def compute_loss(outputs: Tensor, y: Tensor, options: FitOptions) -> Tensor:
    """Compute the loss of outputs (n, outputs) against targets, by the task."""
    weights = None if options.class_weights is None else torch.tensor(options.class_weights, dtype=outputs.dtype)
    if options.task == "classes":
        return functional.cross_entropy(outputs, y, weight=weights)
    if options.task == "embeddings":
        return compute_nested_loss(outputs, y, options.dimensions, options.temperature)
    if options.task == "labels":
        return functional.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), weight=weights)
    return functional.mse_loss(outputs, y.to(outputs.dtype).reshape(outputs.shape))


def _compute_soft_loss(outputs: Tensor, teacher: Tensor, options: FitOptions) -> Tensor:
    if options.task == "classes":
        return -(functional.softmax(teacher, 1) * functional.log_softmax(outputs, 1)).sum(1).mean()
    if options.task == "labels":
        return functional.binary_cross_entropy_with_logits(outputs, torch.sigmoid(teacher))
    if options.task == "embeddings":
        # lengths do not matter where cosines are compared
        return 1 - functional.cosine_similarity(outputs, teacher, dim=1).mean()
    return functional.mse_loss(outputs, teacher)
