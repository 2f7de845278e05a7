"""ONNX files that are alternatives for one task: what is checked before ONNX Runtime opens them.

A file is data: nothing of it runs as code, and it can only name external data in its own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.api import Diagnostic, UnfoldError, user_error
from unfoldkit.safe_io.files import follow_links, read_bytes, require_regular
from unfoldkit.safe_io.onnx_files import HINT, lies_within, list_external_files

MAX_MODEL_BYTES = 2 << 30
"""The largest protobuf message, and so the largest ONNX file without external data."""
MAX_FIXED_ROWS = 1024
"""Largest number of rows to which a smaller batch is padded."""
NUMBER_TYPES = {"FLOAT16": "float16", "FLOAT": "float32", "DOUBLE": "float64"}
SOFTMAX = frozenset(("Softmax", "QLinearSoftmax"))
SIGMOID = frozenset(("Sigmoid", "QLinearSigmoid"))
PASSING = frozenset(("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze"))
"""Operators that keep values, or round them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFile:
    """A model that the user names.

    Attributes:
        name: Name of the member.
        path: Its ONNX file.
        accuracy: In percent, as the user measured it.
        key: Its place in the spec, for errors.
    """

    name: str
    path: Path
    accuracy: float
    key: str


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as the system describes it: its size, when it was written, and its number."""

    path: Path
    bytes: int
    written_ns: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """What an ONNX file declares.

    Attributes:
        member: The file.
        input_name: Its only input.
        dtype: ``float16``, ``float32`` or ``float64``.
        size: Shape of one row of the input.
        fixed_rows: The only number of rows that it accepts; 0 for any.
        softmaxes: Outputs that are a softmax.
        sigmoids: Outputs that are a sigmoid of each class.
        labels: Names of the classes that the file states; empty if it states none.
        digest: SHA-256 of the file and its external data.
        bytes: Size of the file and its external data.
        stamps: What the system says of each of these files; another stamp may be another content.
    """

    member: MemberFile
    input_name: str
    dtype: str
    size: tuple[int, ...]
    fixed_rows: int
    softmaxes: frozenset[str]
    sigmoids: frozenset[str]
    labels: tuple[str, ...]
    digest: str
    bytes: int
    stamps: tuple[FileStamp, ...]


def check_files(members: Sequence[MemberFile], classes: tuple[str, ...] = ()) -> tuple[CheckedFile, ...]:
    """Check what every file declares, and that all of them take the same inputs and have their classes in one order.

    Args:
        members: The files.
        classes: Names of the classes in the spec; they may be others than those of the files.

    Raises:
        UnfoldError: One diagnostic for each file that cannot be served.
    """
    checked: list[CheckedFile] = []
    problems: list[Diagnostic] = []
    for member in members:
        try:
            checked.append(check_file(member))
        except UnfoldError as error:
            problems += error.diagnostics
    for other in checked[1:]:
        if other.size != checked[0].size:
            expected, first = format_size(checked[0].size), checked[0].member.path.name
            message = f"input {other.input_name} has rows of {format_size(other.size)}, {first} has {expected}"
            problems += reject(other.member, message, "list models of one task, with equal inputs").diagnostics
    for index, file in enumerate(checked):
        for names in (classes, *(other.labels for other in checked[:index])):
            if file.labels != names and sorted(file.labels) == sorted(names):
                problems += reject_classes(file, names).diagnostics
                break
    if problems:
        raise UnfoldError(*problems)
    return tuple(checked)


def reject_classes(file: CheckedFile, names: Sequence[str]) -> UnfoldError:
    """Build the error for a file that states other classes than ``names``, or another order."""
    message = f"its classes are {', '.join(file.labels)}, not {', '.join(names)}"
    return reject(file.member, message, "list models with equal classes in one order, that of the scores")


def check_file(member: MemberFile) -> CheckedFile:
    """Check what one file declares: an ONNX graph with one input of numbers, and external data in its folder.

    Raises:
        UnfoldError: The file is missing, is no ONNX model, or cannot be served (exit code 2).
    """
    import onnx
    from google.protobuf.message import DecodeError

    # before the content: what is written meanwhile has another stamp
    stamps = [_stamp_file(member.path)]
    content = read_bytes(member.path, max_bytes=MAX_MODEL_BYTES)
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise reject(member, "not an ONNX model", "export it with torch.onnx.export or skl2onnx") from error
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise reject(member, "not an ONNX model: it has no graph", "export it with torch.onnx.export or skl2onnx")
    digest, size_bytes = hashlib.sha256(content), len(content)
    for location in list_external_files(model):
        path = _locate_external(member, location)
        stamps.append(_stamp_file(path))
        data = read_bytes(path)
        digest.update(data)
        size_bytes += len(data)
    name, dtype, size, fixed_rows = _read_input(member, model.graph)
    return CheckedFile(
        member=member,
        input_name=name,
        dtype=dtype,
        size=size,
        fixed_rows=fixed_rows,
        softmaxes=_find_outputs(model.graph, SOFTMAX),
        sigmoids=_find_outputs(model.graph, SIGMOID),
        labels=_read_labels(model.graph),
        digest=digest.hexdigest(),
        bytes=size_bytes,
        stamps=tuple(stamps),
    )


def is_unchanged(file: CheckedFile) -> bool:
    """Check that files still hold what was checked; they are read again only if their stamps differ.

    Raises:
        UnfoldError: A file is missing, or cannot be served any more.
    """
    return all(stamp == _stamp_file(stamp.path) for stamp in file.stamps) or (
        check_file(file.member).digest == file.digest
    )


def _stamp_file(path: Path) -> FileStamp:
    try:
        stat = path.stat()
    # reading it names the reason
    except OSError:
        return FileStamp(path, -1, -1, -1)
    return FileStamp(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def reject(member: MemberFile, message: str, hint: str) -> UnfoldError:
    """Build the error for a member that cannot be served; it names file and key."""
    return user_error(message, file=str(member.path), key=f"{member.key}.path", hint=hint)


def format_size(size: Sequence[int]) -> str:
    """Format the shape of a row, such as 3x32x32."""
    return "x".join(map(str, size))


def _locate_external(member: MemberFile, location: str) -> Path:
    """Locate external data; links count by where they lead."""
    path = follow_links(member.path.parent / location)
    if not lies_within(member.path.parent, location):
        raise reject(member, f"its external data {location!r} lies outside its folder", HINT)
    if not path.is_file():
        raise reject(member, f"its external data {location!r} is missing", HINT)
    require_regular(path)
    return path


def _find_outputs(graph: Any, kinds: frozenset[str]) -> frozenset[str]:
    """Find the outputs that are computed by an operator of some kinds; a softmax in 8 bits may not sum to 1."""
    sources = {name: node for node in graph.node for name in node.output}
    names = {output.name: output.name for output in graph.output}
    # as many steps as a path can have
    for _ in graph.node:
        for output, name in names.items():
            if name in sources and sources[name].op_type in PASSING and sources[name].input:
                names[output] = sources[name].input[0]
    return frozenset(output for output, name in names.items() if name in sources and sources[name].op_type in kinds)


def _read_labels(graph: Any) -> tuple[str, ...]:
    """Read the names of the classes that converters of classical models store; of an ensemble, its last ones."""
    from onnx import TensorProto, numpy_helper

    kinds = (TensorProto.INT32, TensorProto.INT64, TensorProto.STRING)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in kinds}
    found: tuple[str, ...] = ()
    for node in graph.node:
        lists = [
            [*attribute.ints, *(text.decode(errors="replace") for text in attribute.strings)]
            for attribute in node.attribute
            if attribute.name.startswith("classlabels_")
        ]
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
            lists.append(numpy_helper.to_array(constants[node.input[0]]).ravel().tolist())
        for labels in lists:
            if len(set(labels)) == len(labels) > 1:
                found = tuple(map(str, labels))
    return found


def _read_input(member: MemberFile, graph: Any) -> tuple[str, str, tuple[int, ...], int]:
    from onnx import TensorProto

    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise reject(member, f"it has {len(inputs)} inputs ({names})", "export the model with a single input")
    name, tensor = inputs[0].name, inputs[0].type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type)
    if kind not in NUMBER_TYPES:
        hint = f"begin the model with a Cast from float32 to {kind.lower()}; weights inside may be smaller"
        hint = "encode text as numbers before the model" if kind == "STRING" else hint
        raise reject(member, f"input {name} is {kind.lower()}, not float16, float32 or float64", hint)
    axes = list(tensor.shape.dim)
    if len(axes) < 2:
        found = ("has no axes", "has 1 axis")[len(axes)] if tensor.HasField("shape") else "states no shape"
        raise reject(member, f"input {name} {found}", "the first axis counts rows, the others hold a row")
    free = [index for index, axis in enumerate(axes[1:], 1) if axis.dim_value <= 0]
    if free:
        label = axes[free[0]].dim_param or "no size"
        hint = "export it with a dynamic first axis only"
        raise reject(member, f"axis {free[0]} of input {name} is dynamic ({label})", hint)
    rows = max(0, axes[0].dim_value)
    if rows > MAX_FIXED_ROWS:
        raise reject(member, f"input {name} takes exactly {rows} rows", "export it with a dynamic first axis")
    return name, NUMBER_TYPES[kind], tuple(axis.dim_value for axis in axes[1:]), rows
