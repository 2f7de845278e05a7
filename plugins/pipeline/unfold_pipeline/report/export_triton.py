"""A plan as a model repository of NVIDIA Triton."""

from __future__ import annotations

import io
import re
import zipfile

from unfold_pipeline.report.export_stages import ExportedStage, parse_exported_plan
from unfoldkit.api import Report, user_error

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
BACKENDS = {".onnx": "onnxruntime", ".ubj": "fil", ".json": "fil"}


def export_triton(report: Report) -> bytes:
    """Return a zip with ``STAGE/config.pbtxt`` for each stage, to be completed with the models.

    Raises:
        UnfoldError: Triton has no backend for a model of the plan.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for stage in parse_exported_plan(report).stages:
            if stage.model_suffix == ".skops":
                message = "Triton has no backend for .skops"
                raise user_error(message, key=f"stages.{stage.name}.model.file", hint="export the model to ONNX")
            # the current date would make the same plan another file
            info = zipfile.ZipInfo(f"{find_folder_name(stage)}/config.pbtxt", FIXED_DATE)
            archive.writestr(info, format_config(stage))
    return buffer.getvalue()


def find_folder_name(stage: ExportedStage) -> str:
    """Return the name of a stage in the repository: its own if a folder can have it, otherwise its label."""
    return stage.name if re.fullmatch(r"\w[\w.-]*", stage.name, re.ASCII) else stage.label


def format_config(stage: ExportedStage) -> str:
    """Return Triton's configuration of one stage.

    Tensors are left to Triton where a backend reads them from the model (``onnxruntime``); the others state them, as
    the ``ModelConfig`` of Triton requires: rows of numbers in, an output of any width out.
    """
    backend = BACKENDS.get(stage.model_suffix, "python")
    delay_us = round(stage.max_wait_s * 1e6)
    kind = "KIND_GPU" if stage.gpus >= 1 else "KIND_CPU"
    text = (
        f'name: "{find_folder_name(stage)}"\nbackend: "{backend}"\nmax_batch_size: {stage.batch}\n'
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
        f"instance_group [ {{ count: {stage.replicas} kind: {kind} }} ]\n"
    )
    return text if backend == "onnxruntime" else text + _format_tensors(backend)


def _format_tensors(backend: str) -> str:
    """Return inputs, outputs and parameters that the forest library and the Python backend need."""
    tensors = (
        'input [ { name: "input__0" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        'output [ { name: "output__0" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    )
    if backend != "fil":
        return tensors
    return tensors + 'parameters { key: "model_type" value { string_value: "xgboost_json" } }\n'
