"""A plan as a model repository of NVIDIA Triton."""

from __future__ import annotations

import io
import re
import zipfile

from unfold_pipeline.report.export_stages import ExportedStage, parse_exported_plan
from unfoldkit.api import Report

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
BACKENDS = {".onnx": "onnxruntime", ".ubj": "fil", ".json": "fil"}


def export_triton(report: Report) -> bytes:
    """Return a zip with ``STAGE/config.pbtxt`` for each stage, to be completed with the models."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for stage in parse_exported_plan(report).stages:
            # the current date would make the same plan another file
            info = zipfile.ZipInfo(f"{find_folder_name(stage)}/config.pbtxt", FIXED_DATE)
            archive.writestr(info, format_config(stage))
    return buffer.getvalue()


def find_folder_name(stage: ExportedStage) -> str:
    """Return the name of a stage in the repository: its own if a folder can have it, otherwise its label."""
    return stage.name if re.fullmatch(r"\w[\w.-]*", stage.name, re.ASCII) else stage.label


def format_config(stage: ExportedStage) -> str:
    """Return Triton's configuration of one stage."""
    backend = BACKENDS.get(stage.model_suffix, "python")
    delay_us = round(stage.max_wait_s * 1e6)
    return (
        f'name: "{find_folder_name(stage)}"\nbackend: "{backend}"\nmax_batch_size: {stage.batch}\n'
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
        f"instance_group [ {{ count: {stage.replicas} kind: KIND_AUTO }} ]\n"
    )
