"""Code that reads other stages is profiled on what they return for sample queries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from unfold_pipeline.problem.build import build_flows
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.runtime.sample_inputs import list_upstream_readers, record_inputs
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import UnfoldError
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

CODE = """
import numpy as np

def crop(rows):
    if rows[:, 2].max() > 0.9:
        raise ValueError("too bright")
    return {"box": rows[:, :2].astype(np.float64), "name": np.where(rows[:, 0] > 0.5, "cat", "dog")}

def size(box):
    return box.sum(axis=1)

def caption(name, area):
    return [f"{each} {value}" for each, value in zip(name, area.ravel())]

def fail(rows):
    raise ValueError("no row will do")
"""
SPEC = """
version: 1
kind: pipeline
name: captions
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 20/s, duration: 10 s}
hardware: {core: {price: $0.05/h}}
stages:
  crop: {model: {code: "shots:crop", features: 3}}
  size:
    after: {crop: 50%}
    when: name == "cat"
    inputs: {box: crop.box}
    model: {code: "shots:size", outputs: {area: 1}}
  caption:
    after: {crop: 100%, size: 100%}
    inputs: {name: crop.name, area: size.area}
    missing: -1
    model: {code: "shots:caption"}
"""


def build_sources(folder: Path, changes: Mapping[str, ModelSource] = {}) -> tuple[Pipeline, dict[str, ModelSource]]:
    """Return the stages of the spec and their code."""
    (folder / "shots.py").write_text(CODE)
    spec = validate(PipelineSpec, parse(SPEC, "captions.yaml"))
    sources = {
        "crop": ModelSource(code="shots:crop", folder=str(folder), features=3),
        "size": ModelSource(code="shots:size", folder=str(folder), outputs=(("area", 1),)),
        "caption": ModelSource(code="shots:caption", folder=str(folder)),
    }
    return Pipeline(build_flows(spec)), sources | dict(changes)


@pytest.mark.e2e
def test_code_reads_what_the_stages_before_it_return(tmp_path: Path) -> None:
    """Each argument has the type and size of its source; conditions and skipped stages count; failed rows do not."""
    pipeline, sources = build_sources(tmp_path)
    assert list_upstream_readers(pipeline, sources) == {"size": ["crop"], "caption": ["crop", "size"]}
    inputs = record_inputs(pipeline, sources, ["size", "caption"])
    boxes = np.array(inputs["size"])
    assert boxes.dtype == np.float64
    assert boxes.shape[1:] == (2,)
    assert (boxes[:, 0] > 0.5).all()
    captions = [each for each in inputs["caption"] if isinstance(each, dict)]
    assert len(boxes) < len(captions) == len(inputs["caption"])
    assert {each["area"].shape for each in captions} == {(1,)}
    assert {str(each["name"]) for each in captions if each["area"] == -1} == {"dog"}
    assert {str(each["name"]) for each in captions if each["area"] != -1} == {"cat"}


def test_stated_rows_come_first(tmp_path: Path) -> None:
    """Code with features or rows in the spec gets these; several arguments are no single number of features."""
    stated = ModelSource(code="shots:size", folder=str(tmp_path), features=2)
    pipeline, sources = build_sources(tmp_path, {"size": stated})
    assert list(list_upstream_readers(pipeline, sources)) == ["caption"]


@pytest.mark.e2e
def test_models_of_open_size_read_what_the_stages_before_them_return(tmp_path: Path) -> None:
    """An input of any length gets the length that it is served with, and a model of fixed sizes a row of its own."""
    sizes: dict[str, str | int] = {"open": "n", "fixed": 2}
    for name, size in sizes.items():
        shapes: dict[str, list[str | int]] = {"box": ["b", size], "area": ["b", 2]}
        tensors = [helper.make_tensor_value_info(key, TensorProto.INT64, shape) for key, shape in shapes.items()]
        graph = helper.make_graph([helper.make_node("Identity", ["box"], ["area"])], "g", tensors[:1], tensors[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, str(tmp_path / f"{name}.onnx"))
    pipeline, sources = build_sources(tmp_path, {"size": ModelSource(path=str(tmp_path / "open.onnx"))})
    assert list_upstream_readers(pipeline, sources) == {"size": ["crop"], "caption": ["crop", "size"]}
    assert np.array(record_inputs(pipeline, sources, ["size"])["size"]).shape[1:] == (2,)
    sources["size"] = ModelSource(path=str(tmp_path / "fixed.onnx"))
    assert list(list_upstream_readers(pipeline, sources)) == ["caption"]
    sources["size"] = ModelSource(path=str(tmp_path / "open.onnx"), features=2)
    assert list(list_upstream_readers(pipeline, sources)) == ["caption"]


def test_a_stage_without_a_model_is_named(tmp_path: Path) -> None:
    """What a stage returns is unknown if it has no model."""
    pipeline, sources = build_sources(tmp_path)
    del sources["crop"]
    with pytest.raises(UnfoldError, match=r"stages\.crop: size reads what other stages return"):
        record_inputs(pipeline, sources, ["size"])


@pytest.mark.e2e
def test_a_model_that_answers_no_query_is_named(tmp_path: Path) -> None:
    """The fault lies with the stage upstream, not with the one that reads it."""
    broken = ModelSource(code="shots:fail", folder=str(tmp_path), features=3)
    pipeline, sources = build_sources(tmp_path, {"crop": broken})
    with pytest.raises(UnfoldError, match=r"stages\.crop\.model: the model fails on each of 32 queries"):
        record_inputs(pipeline, sources, ["size"])
