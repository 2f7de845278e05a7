"""A family from one torch module: members of several widths, depths and resolutions that share its weights."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from unfold_supernet.elasticity.attention_heads import find_head_groups, keep_heads
from unfold_supernet.elasticity.depth_blocks import BlockRun, find_block_runs, replace_blocks
from unfold_supernet.elasticity.inputs import (
    INPUT_NAMES,
    Inputs,
    check_repeatability,
    copy_module,
    count_named,
    drop_computed,
    list_positional,
    list_required,
    list_required_keywords,
    list_tensors,
    run_module,
    take_two_rows,
    takes_extra,
)
from unfold_supernet.elasticity.layer_replacement import (
    copy_unnormed,
    fold_weight_norms,
    replace_layer,
    replace_linear_code,
)
from unfold_supernet.elasticity.projected_heads import HeadGroup, ProjectedHeads, list_head_layers
from unfold_supernet.elasticity.width_groups import (
    Indices,
    Inelastic,
    WidthGroup,
    find_width_groups,
    select,
    trace_indices,
)
from unfold_supernet.modules.onnx_export import call_alone, check_export, export_onnx, get_lock
from unfoldkit.api import user_error

NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - torch has no public name for all batch norms

TABLES = (nn.Embedding, nn.EmbeddingBag)
MAX_COLOURS = 4
"""Length up to which the last axis of an image is taken for its channels in a hint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a family.

    Attributes:
        name: ``0.5x1``: width and depth; ``0.5x1r0.5`` at half the resolution.
        width: Fraction of the channels of every elastic group, and of the heads of every attention layer.
        depth: Fraction of the blocks of every list of residual blocks.
        shrink: Neighbours of the input that are averaged into one, along each axis.
        skeleton: The member's layers; its buffers are the member's own, its parameters are undefined.
        indices: Kept indices of each shared parameter.
        sources: Name of the shared parameter by name of each parameter of the layers; a layer is named once.
        macs: Multiply-accumulates for one input.
    """

    name: str
    width: float
    depth: float
    shrink: int
    skeleton: nn.Module
    indices: Mapping[str, Indices]
    sources: Mapping[str, str]
    macs: float

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticFamily:
    """Members of several sizes in one set of weights.

    Attributes:
        weights: The shared parameters by name: those of the user's module; frozen ones stay as they are.
        by_name: The members, smallest first.
        groups: Groups of channels that are narrowed.
        heads: Attention layers that lose heads.
        runs: Runs of blocks that may be skipped.
        inelastic: Parts that all members share in full, with the reason.
        example: The example input (n, *size).
        extra: The second one (n, *other) of a module with two inputs.
    """

    weights: dict[str, nn.Parameter]
    by_name: dict[str, Member]
    groups: tuple[WidthGroup, ...]
    heads: tuple[HeadGroup, ...]
    runs: tuple[BlockRun, ...]
    inelastic: tuple[Inelastic, ...]
    example: Tensor
    extra: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All example inputs."""
        return (self.example,) if self.extra is None else (self.example, self.extra)

    def members(self) -> tuple[Member, ...]:
        """List the members, smallest first."""
        return tuple(self.by_name.values())

    def __call__(self, member: Member | str, x: Tensor, *extra: Tensor) -> Tensor:
        """Compute the outputs of a member for inputs (n, *size), and ``extra`` (n, *other) of a module with two.

        Gradients flow to the shared weights. Threads take turns: a member's layers hold its weights during a call.
        """
        member = self._find(member)
        tensors = {key: select(self.weights[key], indices) for key, indices in member.indices.items()}
        inputs = (make_shrink(x.ndim - 2, member.shrink)(x), *extra)
        with get_lock():
            # under both names of a layer, torch would leave the tensors of this call in it
            filled = {name: tensors[key] for name, key in member.sources.items()}
            result: Tensor = functional_call(member.skeleton, filled, inputs, tie_weights=False)
        return result

    def keep(self, member: Member | str) -> ElasticFamily:
        """Keep a single member; the weights are still shared with this family."""
        found = self._find(member)
        return replace(self, by_name={found.name: found})

    def _find(self, member: Member | str) -> Member:
        name = member.name if isinstance(member, Member) else member
        if name not in self.by_name:
            raise user_error(f"no member {name!r}", hint=", ".join(self.by_name))
        return self.by_name[name]

    def extract(self, member: Member | str) -> nn.Module:
        """Copy a member into a module of its own, in inference mode."""
        member = self._find(member)
        with get_lock():
            module = copy_module(member.skeleton)
        with torch.no_grad():
            for name, key in member.sources.items():
                module.get_parameter(name).copy_(select(self.weights[key], member.indices[key]))
        if member.shrink > 1:
            shrink = make_shrink(self.example.ndim - 2, member.shrink)
            module = nn.Sequential(shrink, module) if self.extra is None else _Shrunk(shrink, module)
        return module.eval()

    def export(self, form: str, member: Member | str, path: Path | str | None = None) -> bytes:
        """Export a member.

        Args:
            form: ``onnx``: input ``x`` and a second one ``extra``, output ``y``, any number of rows.
            member: The member, or its name.
            path: Where to write it too.

        Raises:
            UnfoldError: The form or the member is unknown.
        """
        if form != "onnx":
            raise user_error(f"unknown form {form!r}", hint="onnx")
        content = export_onnx(self.extract(member), self.inputs)
        if path is not None:
            Path(path).write_bytes(content)
        return content

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shared weights, each member's own buffers, and what it keeps of each weight, in one dictionary."""
        state = {f"weights/{key}": parameter.detach() for key, parameter in self.weights.items()}
        for name, member in self.by_name.items():
            state |= {f"members/{name}/{key}": buffer for key, buffer in member.skeleton.named_buffers()}
        # parameters of a layer may share their indices, which safetensors does not store
        return state | {key: kept.clone() for key, kept in self._list_indices().items()}

    def _list_indices(self) -> dict[str, Tensor]:
        """List the kept indices of all members by member, parameter and axis."""
        return {
            f"indices/{name}/{key}/{axis}": kept
            for name, member in self.by_name.items()
            for key, indices in member.indices.items()
            for axis, kept in enumerate(indices)
            if kept is not None
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned, also that of a module with other weights.

        Raises:
            UnfoldError: Names, shapes or kinds of numbers differ, or kept indices are not those of the weights.
        """
        current = self.state_dict()
        differing = sorted(
            {*current} ^ {*state} | {key for key in {*current} & {*state} if not _is_alike(current[key], state[key])}
        )
        if differing:
            raise user_error(f"the state is of another family: {differing[0]}", hint="same module, widths and depths")
        for path in self._list_indices():
            kept, (key, _, axis) = state[path], path.split("/", 2)[2].rpartition("/")
            if kept.min() < 0 or kept.max() >= self.weights[key].shape[int(axis)] or len(kept.unique()) < len(kept):
                raise user_error(f"the state is damaged: {path} lists parts that {key} does not have")
        with torch.no_grad():
            for key, tensor in (current | self._list_indices()).items():
                tensor.copy_(state[key])

    def calibrate(self, x: Tensor, rows: Tensor | None = None, batch: int = 256, extra: Tensor | None = None) -> None:
        """Compute each member's own batch-norm statistics; all else stays as it is.

        Args:
            x: Inputs (n, *size).
            rows: Which of them to take; all by default.
            batch: Rows that are computed together.
            extra: The second inputs (n, *other) of a module with two.
        """
        parts = _split_rows(torch.arange(len(x)) if rows is None else rows, batch)
        for member in self.members():
            norms = [layer for layer in member.skeleton.modules() if isinstance(layer, NORMS)]
            momenta = [norm.momentum for norm in norms]
            member.skeleton.eval()
            for norm in norms:
                norm.reset_running_stats()
                # the mean over all batches
                norm.momentum = None
                norm.train()
            with torch.no_grad():
                for part in parts if norms else ():
                    self(member.name, *(inputs[part] for inputs in (x, extra) if inputs is not None))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()


def _is_alike(tensor: Tensor, other: Tensor) -> bool:
    """Return whether tensors have one shape, and hold numbers of one kind."""
    kinds = [(each.is_floating_point(), each.is_complex()) for each in (tensor, other)]
    return tensor.shape == other.shape and kinds[0] == kinds[1]


class _Shrunk(nn.Module):  # type: ignore[misc,unused-ignore]
    """A member with two inputs; the first is averaged before."""

    def __init__(self, shrink: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.shrink, self.module = shrink, module

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute outputs for inputs (n, *size) and (n, *other)."""
        result: Tensor = self.module(self.shrink(x), extra)
        return result


def make_shrink(dims: int, shrink: int) -> nn.Module:
    """Make the layer that averages every ``shrink`` neighbours along each of one or two spatial axes."""
    if shrink == 1:
        return nn.Identity()
    return nn.AvgPool1d(shrink) if dims == 1 else nn.AvgPool2d(shrink)


@call_alone
def elastic(
    module: nn.Module,
    example: Inputs,
    *,
    widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    depths: Sequence[float] = (1.0,),
    resolutions: Sequence[float] = (1.0,),
) -> ElasticFamily:
    """Turn a torch module into a family of members that share its weights.

    The lists are combined entry by entry, as in CompOFA; a list of one entry applies to every member.

    Args:
        module: Any module that maps inputs to outputs; it is copied, and its weights are the start of the family's.
        example: Inputs (n, *size) on which its layers are traced; a pair of a module with two inputs.
        widths: Fractions of the channels.
        depths: Fractions of the residual blocks.
        resolutions: Fractions 1/n of the input's edges.

    Raises:
        UnfoldError: Nothing of the module is elastic in a requested dimension, the module fails on the
            example or cannot be exported, or the lists differ in length.
    """
    sizes = _combine(widths, depths, resolutions)
    tensors = _check_arguments(module, example)
    example = tuple(tensor.detach() for tensor in tensors) if len(tensors) > 1 else tensors[0].detach()
    tensors = list_tensors(example)
    _initialize_lazy(unwrap_module(module), example)
    copied = _unwrap_parts(copy_unnormed(unwrap_module(module)))
    whole = replace_linear_code(fold_weight_norms(copied)).eval()
    for layer in whole.modules():
        if isinstance(layer, TABLES):
            # optimizers and gradients of members are dense
            layer.sparse = False
    _check_signature(whole, len(tensors))
    _check_module(whole, example)
    _turn_off_nesting(whole, example)
    check_repeatability(whole, example)
    trained = {key for key, parameter in whole.named_parameters() if parameter.requires_grad}
    for parameter in whole.parameters():
        # dependencies are traced by gradients, through frozen layers too
        parameter.requires_grad_(parameter.is_floating_point())
    _check_training(whole, example)
    check_export(whole, example)
    with warnings.catch_warnings():
        # of layers that torch-pruning does not follow, which are reported as shared
        warnings.simplefilter("ignore")
        heads, unfollowed = find_head_groups(whole, example)
        groups, inelastic = find_width_groups(
            whole,
            example,
            [width for width, _, _ in sizes],
            list_head_layers(heads, unfollowed),
            lambda narrowed, width: keep_heads(narrowed, heads, width),
        )
    inside = tuple(f"{group.path}." for group in heads if not isinstance(group, ProjectedHeads))
    inelastic = tuple(part for part in inelastic if not part.path.startswith(inside))
    runs = find_block_runs(whole, example)
    _check_elastic(sizes, (*groups, *heads), runs, inelastic)
    weights = {
        key: nn.Parameter(parameter.detach().clone(), key in trained) for key, parameter in whole.named_parameters()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = [_build_member(whole, example, (groups, heads, runs), size) for size in sizes]
    inelastic += tuple(_list_shared_tables(whole, members))
    return ElasticFamily(
        weights=weights,
        by_name={
            member.name: member
            for member in sorted(members, key=lambda member: (member.macs, member.width, member.depth))
        },
        groups=groups,
        heads=heads,
        runs=runs,
        inelastic=inelastic,
        example=tensors[0],
        extra=tensors[1] if len(tensors) > 1 else None,
    )


def _list_shared_tables(module: nn.Module, members: Sequence[Member]) -> Iterator[Inelastic]:
    """List the embeddings that no member narrows: channels are followed from layers that compute them."""
    for path, layer in module.named_modules():
        kept = [member.indices.get(f"{path}.weight", ()) for member in members]
        if isinstance(layer, TABLES) and all(index is None for indices in kept for index in indices):
            yield Inelastic(path, f"tables of embeddings ({type(layer).__name__}) keep their width")


def _check_arguments(module: object, example: object) -> tuple[Tensor, ...]:
    """Check that there is a module, and one or two tensors with as many rows."""
    tensors = example if isinstance(example, tuple) else (example,)
    hint = "elastic(module, example): a torch.nn.Module and a tensor; arrays: torch.from_numpy(x[:2])"
    if not isinstance(module, nn.Module):
        raise user_error(f"a {type(module).__name__} is not a module", hint=hint)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise user_error(f"a {type(tensor).__name__} is not a tensor", hint=hint)
        if not tensor.ndim or not len(tensor):
            raise user_error(f"the example has shape {tuple(tensor.shape)}", key="example", hint="pass x[:2]")
        if tensor.is_meta or any(parameter.is_meta for parameter in module.parameters()):
            raise user_error("tensors on the device meta hold no values", hint="module.to_empty(device='cpu')")
        if tensor.layout != torch.strided:
            raise user_error(f"the example is {tensor.layout}", key="example", hint="pass x[:2].to_dense()")
        if not _is_finite(tensor):
            raise user_error("the example input is not finite", key="example")
    if not 1 <= len(tensors) <= len(INPUT_NAMES):
        raise user_error(f"the example holds {len(tensors)} tensors", key="example", hint="one, or two: x and extra")
    if len({len(tensor) for tensor in tensors}) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise user_error(f"the examples have shapes {shapes}", key="example", hint="as many rows in both")
    return tensors


def _check_signature(module: nn.Module, count: int) -> None:
    """Check that a module needs no more inputs than there are, and takes them by position."""
    if keywords := list_required_keywords(module):
        message = f"the module needs {keywords[0]} by keyword"
        raise user_error(message, key="model.from", hint="take the inputs by position: forward(self, x, extra)")
    names, positional = list_required(module), list_positional(module)
    if len(positional) < count and count_named(module) is None and not _is_scripted(module):
        message = f"the module takes {len(positional)} inputs by position ({', '.join(positional) or 'none'})"
        message += f", and there {'is' if count == 1 else 'are'} {count}"
        raise user_error(message, key="model.from", hint="take each input by position: forward(self, x, extra)")
    if len(names) <= count:
        return
    message = (
        f"the module needs {len(names)} inputs ({', '.join(names)}), and there {'is' if count == 1 else 'are'} {count}"
    )
    if len(names) > len(INPUT_NAMES):
        hint = "join them to two in a module around it: x, and numbers beside it in extra"
    else:
        hint = f"store {names[-1]} as the array extra (rows, numbers); from Python, pass a pair of examples"
    raise user_error(message, key="model.from", hint=hint)


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the network inside wrappers that only compile it or spread it over devices."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        # torch.compile returns a class that is private to torch
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module.get_submodule("_orig_mod")
        else:
            return module


def _unwrap_parts(module: nn.Module) -> nn.Module:
    """Replace wrappers inside a module by what they wrap, in place."""
    for layer in [*module.modules()]:
        if layer is not module and unwrap_module(layer) is not layer:
            replace_layer(module, layer, unwrap_module(layer))
    return module


def _initialize_lazy(module: nn.Module, example: Inputs) -> None:
    """Give lazy layers of a module their weights, which they lack before the first call; its modes stay as they are."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    if not any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        return
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        # statistics of batch norms are left alone
        module.eval()
        with torch.no_grad():
            run_module(module, example)
    except Exception as error:
        message = f"the module fails on the example: {' '.join(str(error).split()[:40])}"
        raise user_error(message, key="model.from", hint=_describe_input(list_tensors(example)[0])) from error
    finally:
        for layer, mode in modes:
            layer.training = mode


def _combine(*lists: Sequence[float]) -> list[tuple[float, float, float]]:
    count = max(len(values) for values in lists)
    for key, values in zip(("widths", "depths", "resolutions"), lists, strict=True):
        if len(values) not in (1, count):
            raise user_error(
                f"{len(values)} entries beside {count}", key=f"model.{key}", hint="write one entry a member, or one"
            )
        if not all(0 < value <= 1 for value in values):
            raise user_error("fractions must be above 0 and at most 1", key=f"model.{key}")
    wide, deep, sharp = ([*values] * count if len(values) == 1 else values for values in lists)
    if any(abs(1 / value - round(1 / value)) > 1e-6 for value in sharp):
        raise user_error("must be 1/n for an integer n, because n neighbours are averaged", key="model.resolutions")
    return list(dict.fromkeys(zip(wide, deep, sharp, strict=True)))


def _check_module(module: nn.Module, example: Inputs) -> None:
    """Check that the module runs on the example and returns one finite tensor with a row for each input."""
    packed = [path for path, layer in module.named_modules() if _is_quantized(layer)]
    if packed:
        message = f"{_name_layer(packed[0])} is quantized: its weights are packed, and cannot be trained"
        raise user_error(message, key="model.from", hint="return the network before it is quantized; see max_int8_loss")
    scripted = [path for path, layer in module.named_modules() if _is_scripted(layer)]
    if scripted:
        message = f"{_name_layer(scripted[0])} is compiled by torch.jit"
        raise user_error(message, key="model.from", hint="return the network before torch.jit.script or trace")
    try:
        # lazy layers have no weights before
        with torch.no_grad(), warnings.catch_warnings():
            # torch warns of its own nested tensors, which are turned off afterwards
            warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
            outputs = run_module(module, example)
    except Exception as error:
        message = f"the module fails on the example: {' '.join(str(error).split()[:40])}"
        raise user_error(message, key="model.from", hint=_advise_on_inputs(module, example)) from error
    for path, layer in module.named_modules():
        if isinstance(layer, NORMS) and not layer.track_running_stats:
            message = f"{path or 'the module'} normalizes by the other rows of a batch, at inference too"
            raise user_error(message, key="model.from", hint="track_running_stats=True")
    short = [key for key, tensor in module.state_dict().items() if tensor.dtype in (torch.float16, torch.bfloat16)]
    if short:
        message = f"{short[0]} has 16 bits: it loses small updates, and ONNX Runtime does not multiply bfloat16"
        raise user_error(message, key="model.from", hint="return module.float()")
    masks = {key for key, _ in module.named_buffers()}
    broken = [
        key
        for key, tensor in module.state_dict().items()
        if not _is_finite(tensor[tensor != -torch.inf] if key in masks else tensor)
    ]
    if broken:
        raise user_error(f"{broken[0]} is not finite", key="model.weights", hint="load weights without NaN")
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) != len(list_tensors(example)[0]):
        message = f"the module must return one tensor (rows, outputs), and returns {_describe_outputs(outputs)}"
        raise user_error(message, key="model.from", hint="wrap it in a module that returns its logits")
    if not _is_finite(outputs):
        raise user_error("the outputs for the example are not finite", key="model.from", hint="scale the inputs")


def _advise_on_inputs(module: nn.Module, inputs: Inputs) -> str:
    """Advise on a module that fails on its example: a second input, another precision, tokens, or order of axes."""
    example, *others = list_tensors(inputs)
    if not others and takes_extra(module):
        return f"{_describe_input(example)}; store extra as an array (rows, numbers); from Python, pass two examples"
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if example.is_floating_point() and kinds and example.dtype not in kinds:
        return f"its weights are {str(kinds.pop()).removeprefix('torch.')}; return module.float()"
    if example.is_floating_point() and any(isinstance(layer, nn.Embedding) for layer in module.modules()):
        return f"its inputs are {tuple(example.shape[1:])} of {example.dtype} for each row; tokens: x.long() in forward"
    if example.ndim > 3 and example.shape[-1] <= MAX_COLOURS < example.shape[1]:
        return f"its inputs are {tuple(example.shape[1:])} for each row; data.channels: last moves the channels first"
    return _describe_input(example)


def _describe_input(example: Tensor) -> str:
    return f"its inputs are {tuple(example.shape[1:])} for each row"


def _describe_outputs(outputs: Any) -> str:
    return f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"


def _turn_off_nesting(module: nn.Module, example: Inputs) -> None:
    """Let torch's encoders compute padded tokens too, as they do in training and in ONNX; outputs must be the same.

    Raises:
        UnfoldError: Outputs depend on whether padded tokens are computed.
    """
    nested = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.TransformerEncoder)]
    nested = [(path, layer) for path, layer in nested if layer.use_nested_tensor]
    if not nested:
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        expected = run_module(module, example)
        for _, layer in nested:
            layer.use_nested_tensor = False
        outputs = run_module(module, example)
    if outputs.shape != expected.shape or not torch.allclose(outputs, expected, rtol=1e-4, atol=1e-5):
        message = f"outputs of {nested[0][0] or 'the module'} for padded tokens differ between training and inference"
        hint = "leave padded tokens out behind the encoder, and pass enable_nested_tensor=False"
        raise user_error(message, key="model.from", hint=hint)


def _check_training(module: nn.Module, example: Inputs) -> None:
    """Check that a module returns logits in training mode too, and that a loss of them has gradients.

    A tensor that is changed in place may have none. Some networks return auxiliary outputs while they are trained.
    """
    trained = copy_module(module).train()
    rows = take_two_rows(example)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            outputs = run_module(trained, rows)
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                outputs.sum().backward()
    except Exception as error:
        message = f"the module cannot be trained: {' '.join(str(error).split()[:30])}"
        raise user_error(message, key="model.from", hint="replace operations in place, such as x += y") from error
    # its code may have made what has no copy
    copy_module(trained)
    if not isinstance(outputs, Tensor):
        message = f"in training, the module returns {_describe_outputs(outputs)} instead of its logits"
        raise user_error(message, key="model.from", hint="turn auxiliary outputs off, as by aux_logits: false")
    if not outputs.requires_grad and any(parameter.requires_grad for parameter in trained.parameters()):
        hint = "remove torch.no_grad, torch.inference_mode, detach() and numpy() from forward"
        raise user_error("the module's outputs have no gradients", key="model.from", hint=hint)
    if _reaches_others(outputs, trained):
        path = _find_user_of_others(trained, rows)
        message = f"{_name_layer(path)} computes with weights that are not parameters of the module"
        hint = "register them: nn.Parameter, nn.ModuleList; a hook takes them from the layer that it is called with"
        raise user_error(message, key="model.from", hint=hint)
    _check_gradients(module, trained, rows)


def _check_gradients(module: nn.Module, trained: nn.Module, rows: Inputs) -> None:
    """Check that gradients are those of the weights with which a module was called.

    A member's layers hold its weights during a call only. Code that runs layers again for the gradients, as
    ``torch.utils.checkpoint`` does, would run them with others.

    Args:
        module: The module.
        trained: Its copy in training mode, with gradients for two rows.
        rows: These rows.
    """
    expected = {key: tensor.grad for key, tensor in trained.named_parameters() if tensor.grad is not None}
    emptied, weights = copy_module(module).train(), dict[str, Tensor]()
    for key, parameter in emptied.named_parameters():
        if key in expected:
            weights[key] = parameter.detach().clone().requires_grad_()
            parameter.data.fill_(torch.nan)
    if weights:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            functional_call(emptied, weights, list_tensors(rows)).sum().backward()
    for key in reversed(weights):
        gradient = weights[key].grad
        if _is_finite(expected[key]) and (gradient is None or not _is_finite(gradient)):
            message = f"{_name_layer(key.rpartition('.')[0])} is computed again for its gradients, with other weights"
            hint = "turn gradient checkpointing off, as by model.set_grad_checkpointing(False) in timm"
            raise user_error(message, key="model.from", hint=hint)


def _reaches_others(outputs: Tensor, module: nn.Module) -> bool:
    """Return whether gradients of outputs flow to weights beside the module's, which would not be trained or copied.

    A hook may hold the module that was copied, and a plain list layers that are not registered.
    """
    own = {*map(id, module.parameters())}
    visited, waiting = set[Any](), [outputs.grad_fn]
    while waiting:
        function: Any = waiting.pop()
        if function is None or function in visited:
            continue
        visited.add(function)
        if hasattr(function, "variable") and id(function.variable) not in own:
            return True
        waiting += [before for before, _ in function.next_functions]
    return False


def _find_user_of_others(module: nn.Module, rows: Inputs) -> str:
    """Find the layer that returns first what depends on weights beside the module's."""
    found = list[str]()

    def keep(path: str, outputs: object) -> None:
        if isinstance(outputs, Tensor) and _reaches_others(outputs, module):
            found.append(path)

    for path, layer in module.named_modules():
        layer.register_forward_hook(lambda _layer, _inputs, outputs, path=path: keep(path, outputs))
    with torch.enable_grad():
        run_module(module, rows)
    return found[0]


def _is_quantized(layer: nn.Module) -> bool:
    """Recognize layers of ``torch.ao.nn.quantized``, which keep packed weights instead of parameters."""
    return type(layer).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def _is_scripted(layer: nn.Module) -> bool:
    return isinstance(layer, torch.jit.ScriptModule)


def _name_layer(path: str) -> str:
    return f"layer {path}" if path else "the module"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _check_elastic(
    sizes: Sequence[tuple[float, float, float]],
    groups: Sequence[WidthGroup | HeadGroup],
    runs: Sequence[BlockRun],
    inelastic: Sequence[Inelastic],
) -> None:
    if min(width for width, _, _ in sizes) < 1 and not groups:
        reasons = "; ".join(f"{part.path or 'the module'}: {part.reason}" for part in inelastic[:3])
        reasons = reasons or "it has no layers with channels"
        raise user_error(
            f"no channels of this module can be narrowed ({reasons})", key="model.widths", hint="widths: [1]"
        )
    shallowest = min(depth for _, depth, _ in sizes)
    # of a single block, and of one that a list repeats, nothing is left out
    if shallowest < 1 and not any(run.list_skipped(shallowest) for run in runs):
        message = "this module has no list of residual blocks that could be skipped"
        raise user_error(message, key="model.depths", hint="depths: [1]")


def _build_member(
    whole: nn.Module,
    example: Inputs,
    parts: tuple[Sequence[WidthGroup], Sequence[HeadGroup], Sequence[BlockRun]],
    size: tuple[float, float, float],
) -> Member:
    (groups, heads, runs), (width, depth, resolution) = parts, size
    shrink = round(1 / resolution)
    name = f"{width:g}x{depth:g}" + ("" if shrink == 1 else f"r{resolution:g}")
    try:
        skeleton, indices = trace_indices(whole, example, groups, width, list_head_layers(heads))
    # a layer that splits its channels may not divide those that remain
    except Exception as error:
        message = f"member {name} cannot be narrowed: {error}"
        raise user_error(message, key="model.widths", hint="use widths that leave whole numbers of channels") from error
    with torch.no_grad():
        source = dict(whole.named_buffers())
        for key, buffer in skeleton.named_buffers():
            buffer.copy_(select(source[key], indices[key]) if key in indices else source[key])
    for key, remaining in keep_heads(skeleton, heads, width).items():
        # a layer with fewer heads may have a narrower embedding too
        pairs = zip(remaining, indices[key], strict=True)
        indices[key] = tuple(other if index is None else index for index, other in pairs)
    keys = {parameter: key for key, parameter in skeleton.named_parameters()}
    for run in runs:
        replace_blocks(skeleton, run.list_skipped(depth))
    sources = {name: keys[parameter] for name, parameter in _iterate_parameters(skeleton)}
    try:
        counter = FlopCounterMode(display=False)
        # with gradients: torch's fused encoder layers are not counted
        # and neither are LSTMs of oneDNN
        with torch.enable_grad(), torch.backends.mkldnn.flags(enabled=False), counter:
            x, *others = (tensor[:1] for tensor in list_tensors(example))
            skeleton(make_shrink(x.ndim - 2, shrink)(x), *others)
    except Exception as error:
        message = f"member {name} fails on the example: {error}"
        key = "widths" if shrink == 1 else "resolutions"
        raise user_error(message, key=f"model.{key}", hint=f"use other {key}, or {key}: [1]") from error
    drop_computed(skeleton)
    return Member(
        name=name,
        width=width,
        depth=depth,
        shrink=shrink,
        skeleton=skeleton.eval(),
        indices={key: index for key, index in indices.items() if key in sources.values()},
        sources=sources,
        # a multiply-accumulate counts as two operations
        macs=counter.get_total_flops() / 2,
    )


def _iterate_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the parameters of each layer, which several may share, under its first name."""
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{name}".lstrip("."), parameter


def _split_rows(rows: Tensor, batch: int) -> list[Tensor]:
    """Split rows into batches; a single leftover row has no spread and is left out."""
    parts: list[Any] = [part for part in rows.split(batch) if len(part) > 1]
    return parts or [rows]
