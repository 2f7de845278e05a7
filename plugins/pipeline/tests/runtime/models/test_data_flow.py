"""Data between stages: tensors are passed by name, joins wait, conditions decide, and misfits are reported by key."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig, build_edges, build_inputs
from unfold_pipeline.problem.pipeline import Stage as PipelineStage
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.models.data_flow import (
    DataFlow,
    StageFeed,
    encode_answer,
    format_output,
    name_tensors,
    stack_inputs,
    take_row,
)
from unfold_pipeline.runtime.models.flow_resolution import list_certain_sources, request_tensors, resolve_data_flow
from unfold_pipeline.runtime.models.model_loader import load_model
from unfold_pipeline.runtime.ray_ingress import PipelineIngress
from unfold_pipeline.runtime.ray_replica import RowAnswer, _answer_rows
from unfold_pipeline.runtime.replica import BatchAnswer, answer_batch
from unfold_pipeline.runtime.stage import Query
from unfoldkit.api import UnfoldError
from unfoldkit.safe_io.skops import dump_skops

CODE = """import time

import numpy as np

def double(rows):
    return rows * 2

def crop(rows):
    return {"box": rows[:, :2], "score": rows[:, 2], "name": np.where(rows[:, 2] > 0, "person", "car")}

def add(left, right):
    return np.asarray(left).reshape(len(left), -1).sum(1) * 100 + np.asarray(right).reshape(len(right), -1).sum(1)

def total(rows):
    return np.nansum(rows.reshape(len(rows), -1), axis=1)

def total_slowly(rows):
    time.sleep(0.05)
    return total(rows)

def grow(rows):
    return [list(range(int(rows[0, 0])))] * len(rows)

def size_text(rows):
    return [len(row) for row in np.ravel(rows)]

def wrong(rows):
    return {"box": rows[:, :1]}
"""


def stage(
    name: str,
    after: Mapping[str, float] = {},
    when: Mapping[str, str] = {},
    inputs: Mapping[str, list[str]] = {},
    names: tuple[str, ...] = ("a", "b", "c", "d", "e"),
    missing: float = float("nan"),
) -> PipelineStage:
    """A stage of a graph in which stages have the names a to e."""
    positions = {known: index for index, known in enumerate(names)}
    return PipelineStage(
        name, build_edges(after, when, positions), (), inputs=build_inputs(inputs, positions), missing=missing
    )


def code(folder: Path, function: str, /, **outputs: int) -> ModelSource:
    """A function of the module of this test."""
    (folder / "flow_models.py").write_text(CODE)
    return ModelSource(code=f"flow_models:{function}", folder=str(folder), outputs=tuple(outputs.items()))


def onnx_sum(path: Path, kind: int = TensorProto.FLOAT, sizes: tuple[int, int] = (2, 1)) -> ModelSource:
    """A model with two inputs of different lengths, ``box`` and ``weight``, that answers their product."""
    inputs = [helper.make_tensor_value_info(n, kind, ["b", s]) for n, s in zip(("box", "weight"), sizes, strict=True)]
    out = helper.make_tensor_value_info("product", kind, ["b", sizes[0]])
    graph = helper.make_graph([helper.make_node("Mul", ["box", "weight"], ["product"])], "g", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, str(path))
    return ModelSource(path=str(path))


def sklearn(path: Path, estimator: Any) -> ModelSource:
    """A fitted estimator in a file."""
    path.write_bytes(dump_skops(estimator, path.stem))
    return ModelSource(path=str(path))


def classifier(path: Path) -> ModelSource:
    """A classifier of two numbers that answers ``big`` for positive sums and ``small`` for others."""
    rows = np.random.default_rng(0).normal(size=(200, 2))
    return sklearn(path, LogisticRegression().fit(rows, np.where(rows.sum(1) > 0, "big", "small")))


def resolve(graph: Pipeline, sources: list[ModelSource], features: int | None = None) -> tuple[DataFlow, Any]:
    """The flow and the sources as a deployment has them."""
    wanted = request_tensors(graph, sources)
    return resolve_data_flow(graph, wanted, features), wanted


def answer_locally(
    graph: Pipeline, sources: list[ModelSource], rows: list[list[float]], batch: int = 4
) -> list[dict[str, Any] | None]:
    """What replica processes on this machine answer to rows."""
    flow, wanted = resolve(graph, sources)
    plan: Plan = tuple(StageConfig(0, 4 if index else 1, 1) for index, _ in enumerate(sources))
    runtime = LocalRuntime(plan_stages([stage.name for stage in graph.stages], wanted, plan), flow=flow)

    async def scene() -> list[dict[str, Any] | None]:
        await runtime.start()
        try:
            drawer, loop = RouteDrawer(graph, np.random.default_rng(0)), asyncio.get_running_loop()
            futures: list[asyncio.Future[dict[str, Any] | None]] = []
            for row in rows:
                routes, number = drawer.draw_next()
                futures.append(loop.create_future())
                runtime.submit(Query(np.array(row, np.float32), routes, number, futures[-1].set_result))
            return list(await asyncio.wait_for(asyncio.gather(*futures), 60))
        finally:
            await runtime.stop()

    return asyncio.run(scene())


class DirectHandle:
    """Stands for the handle of a deployment on Ray Serve: the code of its replica, in this process."""

    def __init__(self, source: ModelSource) -> None:
        self.predict = load_model(source)

    async def remote(self, tensors: Any) -> RowAnswer:
        """Answer what one query sends."""
        answer = _answer_rows(self.predict, [tensors])[0]
        if not isinstance(answer, (np.ndarray, dict)):
            raise TypeError(answer.message)
        return RowAnswer(answer, 1, 0.001)


def answer_by_ingress(graph: Pipeline, sources: list[ModelSource], rows: list[list[float]]) -> list[dict[str, Any]]:
    """What the ingress of the export answers."""
    flow, wanted = resolve(graph, sources)
    stages = [{"name": item.name, "after": {}, "share": 1.0, "fan_out": 1.0} for item in graph.stages]
    ingress = PipelineIngress("p", stages, *(DirectHandle(source) for source in wanted), seed=0, flow=flow)
    ingress._pipeline = graph
    ingress._routes = RouteDrawer(graph, np.random.default_rng(0))

    async def scene() -> list[dict[str, Any]]:
        return [await ingress.answer_row(np.array(row, np.float32)) for row in rows]

    return asyncio.run(scene())


def build_mixed(folder: Path) -> tuple[Pipeline, list[ModelSource]]:
    """Code → scikit-learn and ONNX behind conditions → code that joins what has come."""
    graph = Pipeline(
        (
            stage("a"),
            stage("b", {"a": 0.5}, inputs={"x": ["a.box"]}, when={"a": 'name == "person"'}),
            stage("c", {"b": 0.3}, {"b": 'label == "big"'}, {"box": ["a.box"], "weight": ["a.score"]}),
            stage("d", {"a": 1.0, "c": 1.0}, inputs={"left": ["a.score"], "right": ["c.product"]}, missing=0.0),
        )
    )
    sources = [
        code(folder, "crop", box=2, score=1, name=1),
        classifier(folder / "b.skops"),
        onnx_sum(folder / "c.onnx"),
        code(folder, "add"),
    ]
    return graph, sources


ROWS = [[1.0, 2.0, 3.0], [-5.0, 1.0, 2.0], [4.0, 4.0, -1.0], [2.0, 2.0, 0.5]]


def expect_mixed(row: list[float]) -> dict[str, Any]:
    """What the mixed pipeline should answer, in plain Python."""
    box, score = row[:2], row[2]
    answer: dict[str, Any] = {"a": {"box": box, "score": score, "name": "person" if score > 0 else "car"}}
    product = [0.0, 0.0]
    if score > 0:
        answer["b"] = "big" if sum(box) > 0 else "small"
        if sum(box) > 0:
            product = answer["c"] = [value * score for value in box]
    answer["d"] = score * 100 + sum(product)
    return answer


def check_mixed(answers: Sequence[dict[str, Any] | None]) -> None:
    """Hold answers to ``ROWS`` against plain Python."""
    for row, answer in zip(ROWS, answers, strict=True):
        assert answer is not None
        label = answer.get("b")
        if label is not None:
            assert sum(label["probabilities"]) == pytest.approx(1)
            answer["b"] = label["label"]
        assert answer == expect_mixed(row)


def test_mixed_models_pass_tensors(tmp_path: Path) -> None:
    """ONNX, scikit-learn and code pass tensors by name through the ingress of the export."""
    graph, sources = build_mixed(tmp_path)
    check_mixed(answer_by_ingress(graph, sources, ROWS))


@pytest.mark.e2e
def test_mixed_models_pass_tensors_between_processes(tmp_path: Path) -> None:
    """The same tensors pass between replicas of this machine."""
    graph, sources = build_mixed(tmp_path)
    check_mixed(answer_locally(graph, sources, ROWS))


def test_whole_output_is_the_default(tmp_path: Path) -> None:
    """A transformer feeds a regression, and code of any shape feeds code, without a mapping."""
    rows = np.random.default_rng(0).normal(5, 3, (50, 3))
    scaler = StandardScaler().fit(rows)
    model = DecisionTreeRegressor().fit(scaler.transform(rows), rows.sum(1))
    sources = [sklearn(tmp_path / "a.skops", scaler), sklearn(tmp_path / "b.skops", model), code(tmp_path, "double")]
    graph = Pipeline((stage("a"), stage("b", {"a": 1.0}), stage("c", {"b": 1.0})))
    answers = answer_by_ingress(graph, sources, rows[:5].tolist())
    assert [answer["c"] for answer in answers] == pytest.approx((rows[:5].sum(1) * 2).tolist(), rel=1e-5)


@pytest.mark.parametrize("features", [1, None])
def test_code_of_one_feature_reads_rows(tmp_path: Path, features: int | None) -> None:
    """A single value is then a row of one number, as in a profile; without ``features`` it stays as it is returned."""
    source = code(tmp_path, "total")
    sources = [replace(source, features=2), replace(source, features=features)]
    flow, _ = resolve(Pipeline((stage("a"), stage("b", {"a": 1.0}))), sources)
    received = flow.build_input(1, np.zeros(2, np.float32), {0: {"output": np.array(3.0)}})
    assert np.shape(received) == ((1,) if features else ())


def test_joins_concatenate_in_the_order_of_after(tmp_path: Path) -> None:
    """A join reads the outputs of its parents one after the other; a skipped one counts as ``missing``."""
    graph = Pipeline(
        (
            stage("a"),
            stage("b", {"a": 1.0}, {"a": "output[0] > 0"}),
            stage("c", {"b": 1.0, "a": 1.0}, missing=-1.0),
        )
    )
    sources = [code(tmp_path, "double", output=2), code(tmp_path, "double", output=2), code(tmp_path, "double")]
    answers = answer_by_ingress(graph, sources, [[1.0, 2.0], [-1.0, 2.0]])
    assert [answer["c"] for answer in answers] == [[8.0, 16.0, 4.0, 8.0], [-2.0, -2.0, -4.0, 8.0]]


def onnx_echo(path: Path, kind: int = TensorProto.STRING) -> ModelSource:
    """A model that answers its two inputs, ``text`` and ``size`` of any length."""
    inputs = [
        helper.make_tensor_value_info("text", kind, ["b", 1]),
        helper.make_tensor_value_info("size", TensorProto.FLOAT, ["b", "n"]),
        helper.make_tensor_value_info("pair", TensorProto.FLOAT, ["b", 2]),
    ]
    outputs = [helper.make_tensor_value_info("echo", kind, ["b", 1])]
    graph = helper.make_graph([helper.make_node("Identity", ["text"], ["echo"])], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, str(path))
    return ModelSource(path=str(path))


def test_text_reaches_an_onnx_model(tmp_path: Path) -> None:
    """Inputs of text get the text of a stage upstream, next to inputs of other and of open lengths."""
    inputs = {"text": ["a.name"], "size": ["a.box"], "pair": ["a.box"]}
    graph = Pipeline(
        (stage("a"), stage("b", {"a": 1.0}, inputs=inputs), stage("c", {"b": 1.0}, {"b": 'echo == "car"'}))
    )
    sources = [code(tmp_path, "crop"), onnx_echo(tmp_path / "b.onnx"), code(tmp_path, "size_text")]
    answers = answer_by_ingress(graph, sources, [[1.0, 2.0, 3.0], [1.0, 2.0, -3.0]])
    assert [answer["b"] for answer in answers] == [["person"], ["car"]]
    assert [answer.get("c") for answer in answers] == [None, 3]


@pytest.mark.parametrize("is_named", [True, False])
def test_bytes_keep_their_zeros(is_named: bool) -> None:
    """Images and other bytes reach the next stage and the client unchanged; JSON has them as base64."""
    images = [b"PNG\0\0", b"\0GIF\0"]
    answer = answer_batch(lambda _: {"image": images} if is_named else images, np.zeros((2, 1), np.float32))
    assert isinstance(answer, BatchAnswer)
    rows = [take_row(answer.outputs, index) for index in range(2)]
    feed = StageFeed(inputs=build_inputs({"x": ("a",)}, {"a": 0}), is_named=False, is_flat=False, missing=0.0)
    flow = DataFlow((None, feed), (None, None))
    inputs = [flow.build_input(1, np.zeros(1, np.float32), {0: name_tensors(row)}) for row in rows]
    stacked = stack_inputs(inputs)
    assert isinstance(stacked, np.ndarray)
    assert stacked.tolist() == images
    encoded = json.loads(encode_answer(format_output(rows[0])))
    assert base64.b64decode(encoded["image"] if is_named else encoded) == images[0]


def test_skipped_and_served_tensors_form_a_batch(tmp_path: Path) -> None:
    """What stands for a skipped stage has the shape of its output, or a batch would be served one by one."""
    graph = Pipeline(
        (
            stage("a"),
            stage("b", {"a": 1.0}, {"a": "output[0] > 0"}),
            stage("c", {"b": 1.0, "a": 1.0}, inputs={"left": ["a"], "right": ["b"]}, missing=0.0),
        )
    )
    sources = [code(tmp_path, "double", output=2), code(tmp_path, "total", output=1), code(tmp_path, "add")]
    flow, _ = resolve(graph, sources)
    row, first = np.zeros(2, np.float32), {"output": np.ones(2)}
    inputs = [flow.build_input(2, row, {0: first, 1: {"output": np.float64(3)}}), flow.build_input(2, row, {0: first})]
    stacked = stack_inputs(inputs)
    assert isinstance(stacked, dict)
    assert stacked["right"].tolist() == [[3.0], [0.0]]


@pytest.mark.e2e
def test_tensors_of_other_shapes_form_no_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Queries with tensors of different shapes are answered one by one, and the log has the reason."""
    graph = Pipeline((stage("a"), stage("b", {"a": 1.0})))
    rows = [[3.0], [4.0], [2.0], [3.0]]
    # others arrive while the second stage answers the first
    answers = answer_locally(graph, [code(tmp_path, "grow"), code(tmp_path, "total_slowly")], rows)
    assert [answer["b"] if answer else None for answer in answers] == [3.0, 6.0, 1.0, 3.0]
    assert "stages.b.model: its queries are served one by one" in caplog.text


@pytest.mark.e2e
def test_output_that_cannot_be_passed_on_fails_its_query(tmp_path: Path) -> None:
    """Code that returns something else than it states fails the row, and no replica dies."""
    graph = Pipeline((stage("a"), stage("b", {"a": 1.0}, inputs={"x": ["a.box"]})))
    sources = [code(tmp_path, "wrong", box=2), code(tmp_path, "total")]
    assert answer_locally(graph, sources, [[1.0, 2.0]]) == [None]
    untestable = Pipeline((stage("a"), stage("b", {"a": 1.0}, {"a": "nothing > 1"})))
    assert answer_locally(untestable, [code(tmp_path, "wrong"), code(tmp_path, "total")], [[1.0, 2.0]]) == [None]


def test_classifier_exported_to_onnx_tests_its_label(tmp_path: Path) -> None:
    """The maps of a ``ZipMap`` become a matrix, and the label decides on the next stage."""
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    rows = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    fitted = LogisticRegression().fit(rows, np.where(rows.sum(1) > 0, "big", "small"))
    (tmp_path / "a.onnx").write_bytes(skl2onnx.to_onnx(fitted, rows[:1]).SerializeToString())
    source = ModelSource(path=str(tmp_path / "a.onnx"))
    names = [node.name for node in load_model(source).session.get_outputs()]  # type: ignore[attr-defined]
    graph = Pipeline((stage("a"), stage("b", {"a": 0.5}, {"a": f'{names[0]} == "big"'}, {"x": [f"a.{names[1]}"]})))
    answers = answer_by_ingress(graph, [source, code(tmp_path, "total")], [[1.0, 1.0], [-1.0, -1.0]])
    assert [set(answer) for answer in answers] == [{"a", "b"}, {"a"}]
    assert answers[0]["b"] == pytest.approx(1)
    json.dumps(answers)


def test_certain_sources() -> None:
    """A stage has certainly run if every way to its reader leads through it, or implies it."""
    graph = Pipeline(
        (
            stage("a"),
            stage("b", {"a": 0.5}),
            stage("c", {"a": 1.0}),
            stage("d", {"b": 1.0, "c": 1.0}),
            stage("e", {"b": 1.0, "c": 0.5}),
        )
    )
    assert list_certain_sources(graph) == [set(), {0}, {0}, {0, 2}, {0}]


def misfits(folder: Path) -> list[tuple[Pipeline, list[ModelSource], str, str]]:
    """Graphs with data that does not fit, with the key and the message of the error."""
    crop, total = code(folder, "crop", box=2, score=1, name=1), code(folder, "total")
    product, two = onnx_sum(folder / "p.onnx"), classifier(folder / "two.skops")
    integers = onnx_sum(folder / "i.onnx", TensorProto.INT64, (2, 2))
    echo, names = onnx_echo(folder / "e.onnx"), onnx_echo(folder / "n.onnx", TensorProto.FLOAT)
    text_or_nothing = {"text": ["b.name"], "size": ["a.box"], "pair": ["a.box"]}
    others = {"size": ["a.box"], "pair": ["a.box"]}
    regression = sklearn(folder / "r.skops", DecisionTreeRegressor().fit(np.eye(3), [1, 2, 3]))
    first = stage("a")

    def after_a(inputs: Mapping[str, list[str]] = {}, when: str = "") -> Pipeline:
        return Pipeline((first, stage("b", {"a": 1.0}, {"a": when} if when else {}, inputs)))

    return [
        (after_a({"x": ["a.boxes"]}), [crop, two], "stages.b.inputs.x", "a returns no tensor boxes .*did you mean"),
        (
            after_a({"x": ["a.area"]}),
            [crop, two],
            "stages.b.inputs.x",
            r"one of: .*; stages\.a\.model\.outputs states all",
        ),
        (
            after_a(when="area > 1"),
            [crop, total],
            "stages.b.when",
            r"no tensor area .*stages\.a\.model\.outputs states all",
        ),
        (after_a({"y": ["a.box"]}), [crop, two], "stages.b.inputs.y", "no input y"),
        (after_a(), [two, two], "", ""),
        (after_a({"x": ["request"]}), [two, two], "", ""),
        (after_a({"y": ["request"]}), [two, two], "stages.b.inputs.y", "no input y"),
        (after_a(), [regression, two], "stages.b.after", "reads 2 numbers per row, and gets 1"),
        (after_a(), [crop, two], "stages.b.after", "name holds text|reads 2"),
        (after_a({"x": ["a.box"]}), [crop, replace(total, features=1)], "stages.b.inputs.x", "reads 1 .* gets 2"),
        (after_a({"x": ["request"], "y": ["a.box"]}), [crop, replace(total, features=1)], "", ""),
        (after_a({"box": ["a.box"]}), [crop, product], "stages.b.inputs", "weight of the model has no source"),
        (
            after_a({"box": ["a.box"], "weight": ["a.box"]}),
            [crop, product],
            "stages.b.inputs.weight",
            "takes 1 .*gets 2",
        ),
        (after_a(), [two, product], "stages.b", "2 inputs, and no upstream tensor is named box"),
        (
            after_a({"box": ["a.probabilities"], "weight": ["a.probabilities"]}),
            [two, integers],
            "stages.b.inputs.box",
            "probabilities holds real numbers, and the input takes int64",
        ),
        (
            after_a({"text": ["a.probabilities"], "size": ["a.label"], "pair": ["a.probabilities"]}),
            [two, names],
            "stages.b.inputs.text",
            "takes 1 .*gets 2",
        ),
        (
            after_a({"text": ["a.probabilities"], "size": ["request"], "pair": ["a.probabilities"]}),
            [two, echo],
            "stages.b.inputs.text",
            "probabilities holds numbers, and the model reads text",
        ),
        (after_a({"text": ["a.name", "a.name"], **others}), [crop, echo], "stages.b.inputs.text", "a joined row"),
        (
            Pipeline((first, stage("b", {"a": 0.5}), stage("c", {"a": 1.0, "b": 1.0}, inputs=text_or_nothing))),
            [crop, crop, echo],
            "stages.c.inputs.text",
            "b may be skipped, and no number can stand for text",
        ),
        (after_a({"one": ["a"], "2": ["a"]}), [two, total], "stages.b.inputs.2", "not the name of an argument"),
        (after_a(when="labels == 'big'"), [two, total], "stages.b.when", "no tensor labels"),
        (after_a(when="probabilities > 0.5"), [two, total], "stages.b.when", "name a value, or max"),
        (after_a(when="probabilities[2] > 0.5"), [two, total], "stages.b.when", r"index .*\(it returns probabilities"),
        # code states a number of values, which may have any shape
        (after_a(when="box[0,1] > 0"), [crop, total], "", ""),
        (after_a(when="box[2] > 0"), [crop, total], "stages.b.when", r"index .*\(it returns box"),
        (after_a(when="label == 3"), [two, total], "stages.b.when", "holds text, and is compared to 3"),
        (after_a(when="max(label) == 'big'"), [two, total], "stages.b.when", "max needs numbers"),
        (
            Pipeline((first, stage("b", {"a": 0.5}), stage("c", {"a": 1.0, "b": 1.0}))),
            [crop, total, two],
            "stages.c.after",
            "text|may be skipped, and the size of its output is not known",
        ),
        (
            Pipeline((first, stage("b", {"a": 0.5}), stage("c", {"a": 1.0, "b": 1.0}, inputs={"x": ["b"]}))),
            [two, total, regression],
            "stages.c.inputs.x",
            "b may be skipped, and the size of its output is not known",
        ),
    ]


def test_misfits_are_reported_by_key(tmp_path: Path) -> None:
    """An unknown tensor, a wrong size or type, and an untestable condition name the key and what would do."""
    for graph, sources, key, message in misfits(tmp_path):
        if not key:
            resolve(graph, sources)
            continue
        with pytest.raises(UnfoldError, match=message) as caught:
            resolve(graph, sources)
        (diagnostic,) = caught.value.diagnostics
        assert diagnostic.key == key, diagnostic
        assert diagnostic.hint, diagnostic
        assert caught.value.code == 2


def test_what_stands_for_a_skipped_text_does_not_depend_on_the_batch() -> None:
    """A number that is batched with texts stays a number, as in a batch of its own."""
    text, number = {"plate": np.array(["P00"])}, {"plate": np.full(1, -1.0)}
    batches = [stack_inputs(rows) for rows in ([number], [text, number], [number, number])]
    assert all(batch["plate"][-1] == -1.0 for batch in batches if isinstance(batch, dict))
    mixed = stack_inputs([np.array("P00"), np.array(-1.0)])
    assert list(mixed) == ["P00", -1.0]
    assert np.asarray(stack_inputs([np.array("P00"), np.array("Q")])).dtype.kind == "U"
