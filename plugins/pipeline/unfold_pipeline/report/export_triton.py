"""A plan as a model repository of NVIDIA Triton."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unfold_pipeline.problem.build import build_exported_plan
from unfold_pipeline.problem.exported_plan import ExportedStage
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models.model_loader import load_booster, read_width
from unfoldkit.api import Report, format_count, user_error
from unfoldkit.safe_io.files import read_bytes
from unfoldkit.safe_io.onnx_files import require_data_within

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    **{f"tensor({sign}int{bits})": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
PROBABILITIES = ("binary:logistic", "multi:softprob")
FOREST_FILES = {".ubj": "xgboost.ubj", ".json": "xgboost.json"}
"""Names of the files that Triton's forest library loads."""
BACKENDS = {".onnx": "onnxruntime", ".ubj": "fil", ".json": "fil"}


def export_triton(report: Report) -> bytes:
    """Return a zip with ``STAGE/config.pbtxt`` for each stage, to be completed with the models.

    Raises:
        UnfoldError: Triton has no backend for a model of the plan, or carries no flow as the plan has it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for stage in build_exported_plan(report).stages:
            _check_stage(stage)
            # the current date would make the same plan another file
            info = zipfile.ZipInfo(f"{find_folder_name(stage)}/config.pbtxt", FIXED_DATE)
            archive.writestr(info, format_config(stage))
    return buffer.getvalue()


def _check_stage(stage: ExportedStage) -> None:
    key = f"stages.{stage.name}"
    if stage.model_suffix == ".skops":
        raise user_error("Triton has no backend for .skops", key=f"{key}.model.file", hint="export the model to ONNX")
    if stage.model_estimator:
        message = "an estimator that unfold profile fits is in no file"
        raise user_error(message, key=f"{key}.model.estimator", hint="model: {file: model.onnx}")
    if stage.conditions:
        message = "Triton serves models one by one and tests no value between them"
        raise user_error(message, key=f"{key}.when", hint="leave when out; the client decides, or --format ray-serve")


def find_folder_name(stage: ExportedStage) -> str:
    """Return the name of a stage in the repository: its own if a folder can have it, otherwise its label."""
    return stage.name if re.fullmatch(r"\w[\w.-]{0,199}", stage.name, re.ASCII) else stage.label


def format_config(stage: ExportedStage) -> str:
    """Return Triton's ``ModelConfig`` of one stage in protobuf text format.

    On GPUs Triton starts the instances of a group on each GPU, so a group counts those of one GPU, and a comment counts
    the servers. Tensors are those of the model's file, or the rows of numbers that the backend takes. Triton completes
    those of an ONNX file that is not here to be read.
    """
    backend = BACKENDS.get(stage.model_suffix, "python")
    nodes = _read_onnx_nodes(stage) if backend == "onnxruntime" else []
    has_batches = not any(_has_one_row(stage, node) for _, node in nodes)
    delay = f"dynamic_batching {{ max_queue_delay_microseconds: {round(stage.max_wait_s * 1e6)} }}\n"
    tensors = (_format_onnx_tensor(stage, kind, node, int(has_batches)) for kind, node in nodes)
    return (
        f"{_format_servers(stage)}name: {_quote(find_folder_name(stage))}\nbackend: {_quote(backend)}\n"
        f"max_batch_size: {stage.batch if has_batches else 0}\n{delay if has_batches else ''}"
        f"instance_group [ {{ {_format_instances(stage)} }} ]\n"
        f'parameters {{ key: "hardware" value {{ string_value: {_quote(stage.hardware)} }} }}\n'
        f"{''.join(tensors) or _format_tensors(backend, stage)}"
    )


def _format_instances(stage: ExportedStage) -> str:
    if not stage.gpus:
        return f"count: {stage.replicas} kind: KIND_CPU"
    return f"count: {stage.replicas_per_gpu} kind: KIND_GPU"


def _format_servers(stage: ExportedStage) -> str:
    """Return how many servers the plan needs, as a comment; empty where one server has all instances."""
    if not stage.gpus:
        return ""
    servers = format_count(-(-stage.replicas // stage.per_instance), "server")
    hardware = " ".join(stage.hardware.split())
    return f"# {servers} on {hardware}, for {format_count(stage.replicas, 'replica')}, {stage.per_instance} on each\n"


def _read_onnx_nodes(stage: ExportedStage) -> list[tuple[str, Any]]:
    """Return inputs and outputs of an ONNX file; empty if it is not here."""
    path = Path(str(stage.model_file))
    if not path.is_file():
        return []
    from onnxruntime import InferenceSession

    require_data_within(read_bytes(str(path)), str(path), path.parent)
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    groups = (("input", session.get_inputs()), ("output", session.get_outputs()))
    return [(kind, node) for kind, nodes in groups for node in nodes]


def _has_one_row(stage: ExportedStage, node: Any) -> bool:
    """Return whether a tensor is of one row only, which Triton serves without batches.

    Raises:
        UnfoldError: It is of another number of rows, or the plan has batches.
    """
    rows = next(iter(node.shape or []), None)
    if not isinstance(rows, int) or rows <= 0:
        return False
    if rows > 1 or stage.batch > 1:
        message = f"Triton cannot batch a model with the fixed batch {rows} of {node.name}, planned for {stage.batch}"
        hint = "export the model with a dynamic first axis" + ("" if rows > 1 else ", or max_batch: 1")
        raise user_error(message, key=f"stages.{stage.name}.model.file", hint=hint)
    return True


def _format_onnx_tensor(stage: ExportedStage, kind: str, node: Any, first_axis: int) -> str:
    data_type = DATA_TYPES.get(node.type)
    if data_type is None:
        message = f"Triton has no tensor for {node.name}, {node.type}"
        hint = "export a classifier without ZipMap: options={'zipmap': False}"
        raise user_error(message, key=f"stages.{stage.name}.model.file", hint=hint)
    sizes = [size if isinstance(size, int) and size > 0 else -1 for size in (node.shape or [])[first_axis:]]
    dims = f"dims: {sizes}" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
    return f"{kind} [ {{ name: {_quote(node.name)} data_type: {data_type} {dims} }} ]\n"


def _format_tensors(backend: str, stage: ExportedStage) -> str:
    """Return inputs, outputs and parameters that the forest library and the Python backend need."""
    if backend == "onnxruntime":
        return "# input and output: Triton completes them from the model\n"
    if backend == "fil":
        return _format_forest(stage)
    return _format_code(stage)


def _format_code(stage: ExportedStage) -> str:
    """Return the tensors of code, as far as the spec states them: it has no file to read them from."""
    size = stage.features or -1
    return (
        f"# data types of code are not in the spec: change those that are not FP32\n"
        f"{_format_rows('input', dict.fromkeys(stage.inputs, -1) or {'input__0': size})}"
        f"{_format_rows('output', stage.outputs or {'output__0': -1})}"
    )


def _format_rows(kind: str, sizes: Mapping[str, int]) -> str:
    return "".join(
        f"{kind} [ {{ name: {_quote(name)} data_type: TYPE_FP32 dims: [ {size} ] }} ]\n" for name, size in sizes.items()
    )


def _format_forest(stage: ExportedStage) -> str:
    """Return the tensors of an XGBoost model, with outputs as XGBoost itself predicts them.

    Raises:
        UnfoldError: The file is not here, or the forest library does not predict as XGBoost does.
    """
    key, path = f"stages.{stage.name}.model.file", str(stage.model_file)
    if not Path(path).is_file():
        message = f"{path} is not here, and Triton's forest library needs the number of its features"
        raise user_error(message, key=key, hint="run this in the folder of the spec, or export the model to ONNX")
    features = read_width(stage.name, ModelSource(path=path)) or -1
    learner = json.loads(load_booster(path).save_config())["learner"]
    objective, sizes = learner["objective"]["name"], learner["learner_model_param"]
    classes = max(1, int(sizes["num_class"]))
    if int(sizes.get("num_target", 1)) > 1 or objective == "binary:hinge":
        message = f"Triton's forest library does not predict as XGBoost does with {objective}"
        raise user_error(message, key=key, hint="export the model to ONNX")
    gives_labels, gives_probabilities = objective == "multi:softmax", objective in PROBABILITIES
    parameters = {
        "model_type": f"xgboost_{stage.model_suffix.removeprefix('.')}",
        "output_class": str(gives_labels or gives_probabilities).lower(),
        "predict_proba": str(gives_probabilities).lower(),
    }
    lines = (
        f'parameters {{ key: "{name}" value {{ string_value: "{text}" }} }}\n' for name, text in parameters.items()
    )
    return (
        f"# the model is {FOREST_FILES[stage.model_suffix]} in a folder with the number of its version\n"
        f"{_format_rows('input', {'input__0': features})}"
        f"{_format_rows('output', {'output__0': classes if gives_probabilities else 1})}{''.join(lines)}"
    )


def _quote(text: str) -> str:
    """Return a string of protobuf text format: bytes beyond ASCII and control characters in octal."""
    parts = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(parts)}"'
