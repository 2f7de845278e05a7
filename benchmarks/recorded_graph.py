"""The plan of a cascade of recorded services as one ONNX graph, and what the plan itself answers: for serve-artifact.

Nothing is fitted for recorded answers, so ``unfold export`` has no model to write. Here each service is a node that
gives what was recorded; gates, routing and costs are those of an export.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unfold_cascade.models.onnx_runtime import OPSET, ConvertedModel
from unfold_cascade.serving.model import Cascade, Link, PathTable, ServedModel
from unfold_cascade.serving.onnx_graph import build_graph, run_graph
from unfoldkit.serving.model import Field


@dataclass(frozen=True, slots=True)
class Recorded:
    """A plan and the cases it was made for.

    Attributes:
        labels: (C,) labels.
        names: (M,) services of the cascade, in order.
        answers: (n, M) recorded answers, as indices of labels.
        confidences: (n, M) recorded confidences.
        prices: (M,) cost of a call.
        cuts: (M - 1,) confidence from which an answer is given.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    answers: Any
    confidences: Any
    prices: Any
    cuts: tuple[float, ...]


def read_recorded(plan: Path, table: Path) -> Recorded:
    """Read the plan of a run and the recorded table, for a cascade of one stage."""
    facts = yaml.safe_load(plan.read_text("utf-8"))
    (stage,), (chosen,) = facts["spec"]["stages"], facts["decision"]["cascade"]
    models = {model["name"]: model for model in stage["models"]}
    names = tuple(chosen["models"])
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = tuple(sorted({row[stage["target"]["column"]] for row in rows}))

    def column(key: str) -> list[list[str]]:
        return [[row[models[name]["recorded"][key]] for name in names] for row in rows]

    return Recorded(
        labels=labels,
        names=names,
        answers=np.array([[labels.index(value) for value in row] for row in column("prediction")]),
        confidences=np.array(column("confidence"), dtype=np.float64),
        prices=np.array([models[name]["price"] for name in names]),
        cuts=tuple(chosen["cuts"]),
    )


def replay(recorded: Recorded) -> list[tuple[str, float]]:
    """Return label and cost of every case, case by case from the plan alone."""
    return [
        _follow(recorded, answers, confidences)
        for answers, confidences in zip(recorded.answers, recorded.confidences, strict=True)
    ]


def _follow(recorded: Recorded, answers: Sequence[int], confidences: Sequence[float]) -> tuple[str, float]:
    last = len(recorded.names) - 1
    exit_ = next((i for i, cut in enumerate(recorded.cuts) if confidences[i] >= cut), last)
    return recorded.labels[answers[exit_]], round(float(sum(recorded.prices[: exit_ + 1])), 6)


def answer_by_graph(recorded: Recorded) -> list[tuple[str, float]]:
    """Return label and cost of every case from the graph."""
    pairs = np.stack([recorded.answers, recorded.confidences], axis=2)
    result = run_graph(_build_graph(recorded), pairs.reshape(len(pairs), -1))
    return [(label, round(cost, 6)) for label, cost in zip(result.label, result.cost, strict=True)]


def _build_graph(recorded: Recorded) -> bytes:
    classes, count = len(recorded.labels), len(recorded.names)
    links = tuple(
        Link(ServedModel(_NoEngine(), np.array([2 * m, 2 * m + 1]), np.arange(classes)), cut)  # type: ignore[arg-type]
        for m, cut in enumerate([*recorded.cuts, -np.inf])
    )
    columns = tuple(f"{name}_{part}" for name in recorded.names for part in ("answer", "confidence"))
    paths = PathTable(
        labels=recorded.labels, groups=1, second_exits=1, cost=np.cumsum(recorded.prices),
        length=tuple(range(1, count + 1)), stages=(), models=(), cuts=(), call_costs=(),
    )  # fmt: skip
    facts: Mapping[str, Any] = {}
    cascade = Cascade(
        name="recorded", version="1", inputs=(Field("x", "FP64", (len(columns),), columns=columns),), outputs=(),
        facts=facts, first_stage=links, second_stage={}, single_labels={}, confidence=lambda p: p.max(axis=1),
        paths=paths, encoded={}, dtypes=(np.float64,), count=lambda _paths: None,
    )  # fmt: skip
    service = ConvertedModel(_build_service(classes), np.float64, classes, has_raw_scores=False)
    return build_graph(cascade, lambda _link: service, "max-probability")


@dataclass(frozen=True, slots=True)
class _NoEngine:
    """Stands for the engine of a service that is never called."""

    dtype: type[Any] = np.float64


def _build_service(classes: int) -> Any:
    """Build the node of a service: (n, 2) answers and confidences become scores, the confidence at the answer."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"zero": np.array([0]), "one": np.array([1]), "labels": np.arange(classes), "less": np.array(-1.0)}
    nodes = [
        helper.make_node("Gather", ["pairs", "zero"], ["answer"], axis=1),
        helper.make_node("Cast", ["answer"], ["number"], to=TensorProto.INT64),
        helper.make_node("Equal", ["number", "labels"], ["is_answer"]),
        helper.make_node("Gather", ["pairs", "one"], ["confidence"], axis=1),
        helper.make_node("Where", ["is_answer", "confidence", "less"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "service",
        [helper.make_tensor_value_info("pairs", TensorProto.DOUBLE, ["rows", 2])],
        [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, ["rows", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
