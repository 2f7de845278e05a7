"""A saved plan that was edited: each setting that its spec does not offer is a mistake, at its line."""

from __future__ import annotations

from typing import Any

import pytest

from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.saved_plan import find_plan_mistakes
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """version: 1
kind: pipeline
name: two
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 5/s, duration: 20 s}
hardware: {core: {price: $0.05/h}, gpu: {price: $1/h}}
stages:
  first: {latency: {core: {1: 10 ms}}, max_batch: 4}
  then: {after: {first: 100%}, latency: {core: {1: 10 ms, 8: 20 ms}}}
"""
ENGINE_SPEC = """version: 1
kind: pipeline
name: chat
slo: {ttft_p99: 300 ms, tpot_p99: 40 ms}
arrivals: {trace: trace.csv}
hardware: {h100: {price: $4/h}, core: {price: $0.05/h}}
stages:
  rank: {latency: {core: {1: 10 ms}}}
  chat:
    after: {rank: 100%}
    engine:
      model: {layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256}
      tensor_parallel: [1, 2]
      max_num_batched_tokens: [512, 2048]
      max_num_seqs: 64
      steps: {h100: {roofline: true}}
"""
STAGE = {"hardware": "core", "batch": 1, "replicas": 2}
ENGINE = {"hardware": "h100", "tensor_parallel": 2, "replicas": 1, "max_num_batched_tokens": 512, "max_num_seqs": 64}


def list_mistakes(text: str, decision: dict[str, Any]) -> list[str]:
    """Return the key and message of each mistake."""
    spec = validate(PipelineSpec, parse(text, "mine.yaml"))
    return [f"{item.key}: {item.message}" for item in find_plan_mistakes(spec, decision)]


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({}, ""),
        ({"replicas": 0}, "first.replicas: the plan does not fit the spec"),
        ({"replicas": 1.5}, "first.replicas: the plan does not fit the spec"),
        ({"batch": True}, "first.batch: the plan does not fit the spec"),
        ({"batch": 5}, "first.batch: the plan does not fit the spec"),
        ({"hardware": "gpu"}, "first.hardware: the plan does not fit the spec"),
        (None, "first: the plan does not fit the spec"),
    ],
)
def test_an_edited_stage_is_checked(change: dict[str, Any] | None, mistake: str) -> None:
    """Hardware, batch size and replicas are compared with what the spec offers for the stage."""
    edited = None if change is None else STAGE | change
    found = list_mistakes(SPEC, {"stages": {"first": edited, "then": STAGE}})
    assert len(found) == bool(mistake)
    assert mistake in "".join(found)


def test_other_stages_are_all_named() -> None:
    """A stage that is missing and one that the spec lacks are two mistakes."""
    missing, unknown = list_mistakes(SPEC, {"stages": {"first": STAGE, "than": STAGE}})
    assert missing.startswith("decision.stages.then: the plan has other stages than the spec")
    assert unknown.startswith("decision.stages.than: the plan has other stages than the spec")


@pytest.mark.parametrize(
    ("change", "around", "mistake"),
    [
        ({}, {}, ""),
        ({"tensor_parallel": 4}, {}, "engines.chat.tensor_parallel"),
        ({"hardware": "core"}, {}, "engines.chat.hardware"),
        ({"max_num_seqs": 65}, {}, "engines.chat.max_num_seqs"),
        ({"replicas": 10**6}, {}, "engines.chat.replicas"),
        ({}, {"replicas": 0}, "stages_around.rank.replicas"),
        (None, {}, "engines.chat: the plan has other stages"),
    ],
)
def test_edited_engines_are_checked(change: dict[str, Any] | None, around: dict[str, Any], mistake: str) -> None:
    """Engines have hardware, degrees and limits of the spec, and the stages around them are checked too."""
    rank = {"hardware": "core", "max_batch": 1, "replicas": 1}
    engines = {} if change is None else {"chat": ENGINE | change}
    found = list_mistakes(ENGINE_SPEC, {"engines": engines, "stages_around": {"rank": rank | around}})
    assert len(found) == bool(mistake)
    assert mistake in "".join(found)


def test_edited_pools_are_checked() -> None:
    """Two pools need a spec that has them, and each has degrees of its own."""
    pools = {"engines": {"chat-prefill": ENGINE, "chat-decode": ENGINE}, "disaggregated": {"stage": "chat"}}
    assert list_mistakes(ENGINE_SPEC, pools)[0].startswith("stages.chat.engine.disaggregated")
    text = ENGINE_SPEC.partition("  rank:")[0] + "  chat:\n" + ENGINE_SPEC[ENGINE_SPEC.index("    engine:") :]
    text += "      disaggregated: {bandwidth: 10 GB/s, latency: 1 ms, prefill_tensor_parallel: 1}\n"
    assert [item.partition(":")[0] for item in list_mistakes(text, pools)] == [
        "decision.engines.chat-prefill.tensor_parallel"
    ]
