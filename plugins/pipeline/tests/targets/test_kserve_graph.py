"""An exported InferenceGraph answers queries, with as many visits of each stage as the plan assumes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from plugins.pipeline.tests.helpers import plan_report
from plugins.pipeline.tests.targets.graph_run import Answer, RouterMissingError, build_router, run_graph
from unfold_pipeline.report.export_kserve import export_kserve
from unfoldkit.api import UnfoldError

QUERIES = 1000
HEAD = """
version: 1
kind: pipeline
name: graph
slo: {p99: 900 ms}
arrivals: {process: poisson, rate: 10/s, duration: 10 s}
hardware: {core: {price: $0.05/h}}
stages:
"""
CHAIN = """
  detect: {latency: {core: {1: 10 ms, 4: 20 ms}}}
  Person: {after: {detect: 40%}, when: label == "person", latency: {core: {1: 10 ms, 4: 20 ms}}}
  'the "face"': {after: {Person: 50%}, latency: {core: {1: 10 ms}}}
  big: {after: {'the "face"': 30%}, when: "box[1] > 0.7", latency: {core: {1: 10 ms}}}
"""
MODELS = """
  first: {max_batch: 1, latency: {core: {1: 10 ms}}, model: {file: a.onnx}}
  second:
    after: {first: 60%}
    when: scores[2] >= 0.4
    inputs: {x: request}
    latency: {core: {1: 10 ms}}
    model: {file: b.ubj}
  third: {after: {second: 25%}, when: 0.25 > output, latency: {core: {1: 10 ms}}}
  left: {after: {third: 100%}, latency: {core: {1: 10 ms}}}
  right: {after: {third: 100%}, latency: {core: {1: 10 ms}}}
"""


def draw(**tensors: Any) -> Answer:
    """A predictor with tensors drawn anew by query, where they are functions."""
    return lambda rng: {name: value(rng) if callable(value) else value for name, value in tensors.items()}


CASES: dict[str, tuple[str, Mapping[str, Answer], Mapping[str, float]]] = {
    "values and probabilities": (
        CHAIN,
        {
            "detect": draw(label=lambda rng: "person" if rng.random() < 0.4 else "car"),
            "person": draw(next=lambda rng: 'the "face"' if rng.random() < 0.5 else None),
            "the-face": draw(box=lambda rng: [0.0, rng.random()]),
            "big": draw(output=1.0),
        },
        {"detect": 1.0, "person": 0.4, "the-face": 0.2, "big": 0.06},
    ),
    "model servers and branches": (
        MODELS,
        {
            "first": draw(label=1, scores=lambda rng: [0.0, 0.0, rng.random()]),
            "second": draw(output=random.Random.random),
            "third": draw(output=1.0),
            "left": draw(output=1.0),
            "right": draw(output=2.0),
        },
        {"first": 1.0, "second": 0.6, "third": 0.15, "left": 0.15, "right": 0.15},
    ),
}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled router."""
    try:
        return build_router(tmp_path_factory.mktemp("router"))
    except RouterMissingError as error:
        pytest.skip(str(error))


@pytest.mark.targets
@pytest.mark.parametrize("case", CASES)
def test_visits_follow_the_plan(tmp_path: Path, router: Path, case: str) -> None:
    """1,000 queries visit each stage as often as the plan assumes, within 3 sigma."""
    stages, answers, shares = CASES[case]
    text = export_kserve(plan_report(tmp_path, HEAD + stages))
    run = run_graph(router, text, answers, QUERIES)
    assert run.statuses == {200: QUERIES}
    assert set(run.visits) == set(shares)
    for name, share in shares.items():
        sigma = math.sqrt(QUERIES * share * (1 - share))
        assert abs(run.visits[name] - QUERIES * share) <= 3 * sigma, (name, run.visits)


@pytest.mark.targets
@pytest.mark.parametrize("failing", ["first", "left"])
def test_an_error_ends_the_query_with_its_status(tmp_path: Path, router: Path, failing: str) -> None:
    """What a stage answers with an error reaches the client as that error, and no later stage."""
    stages = """
  first: {latency: {core: {1: 10 ms}}}
  second: {after: {first: 50%}, when: output > 0.5, latency: {core: {1: 10 ms}}}
  left: {after: {second: 100%}, latency: {core: {1: 10 ms}}}
  right: {after: {second: 100%}, latency: {core: {1: 10 ms}}}
"""
    answers: dict[str, Answer] = dict.fromkeys(("first", "second", "left", "right"), draw(output=1.0))
    answers[failing] = lambda _rng: None
    run = run_graph(router, export_kserve(plan_report(tmp_path, HEAD + stages)), answers, 3)
    assert run.statuses == {503: 3}
    assert run.answers == [{"error": "busy"}] * 3
    assert run.visits == ({"first": 3} if failing == "first" else dict.fromkeys(answers, 3))


REFUSED = {
    "a join": ("  c: {after: {a: 100%, b: 100%}, latency: L}", "stages.c.after", "supports no joins"),
    "a branch by value": (
        '  c: {after: {a: 50%}, when: k == "x", latency: L}',
        "stages.c.after",
        "branches",
    ),
    "a fan-out": ("  c: {after: {b: 100%}, fan_out: 2, latency: L}", "stages.c.fan_out", "one request"),
    "a share at the entry": ("  c: {share: 50%, latency: L}", "stages.c.share", "sends every query"),
    "and": ("  c: {after: {b: 50%}, when: k > 1 and k < 3, latency: L}", "stages.c.when", "compares one value"),
    "a function": ("  c: {after: {b: 50%}, when: max(k) > 1, latency: L}", "stages.c.when", "compares one value"),
    "from the end": ("  c: {after: {b: 50%}, when: 'k[-1] > 1', latency: L}", "stages.c.when", "compares one value"),
    "a tensor": ("  c: {after: {b: 50%}, inputs: {x: b.k}, latency: L}", "stages.c.inputs", "not single tensors"),
    "a lost request": (
        "  c: {after: {b: 100%}, inputs: {x: request}, latency: L}",
        "stages.c.inputs",
        "no request left",
    ),
    "a server that reads a response": (
        "  c: {after: {b: 100%}, latency: L, model: {file: c.ubj}}",
        "stages.c.model.file",
        "reads requests",
    ),
    "batches of v2": (
        "  c: {latency: {core: {1: 10 ms, 64: 11 ms}}, wait: 20 ms, model: {file: c.onnx}}",
        "stages.c",
        "v1 protocol only",
    ),
    "a probability of a server": (
        "  c: {latency: L, model: {file: c.ubj}}\n  d: {after: {c: 50%}, latency: L}",
        "stages.d.after.c",
        "names the next stage",
    ),
    "skops": ("  c: {latency: L, model: {file: c.skops}}", "stages.c.model.file", "loads no .skops"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_graph_cannot_carry_is_refused(tmp_path: Path, case: str) -> None:
    """The error names the key and the reason, with exit code 2."""
    stages, key, reason = REFUSED[case]
    base = "  a: {latency: L}\n  b: {after: {a: 100%}, latency: L}\n"
    text = HEAD.replace("10/s", "150/s") + (base + stages).replace("L}", "{core: {1: 10 ms}}}").replace(
        "latency: L,", "latency: {core: {1: 10 ms}},"
    )
    with pytest.raises(UnfoldError, match=reason) as caught:
        export_kserve(plan_report(tmp_path, text))
    assert caught.value.code == 2
    assert caught.value.diagnostics[0].key == key
