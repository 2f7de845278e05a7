"""Every sentence about cascades of language models, with sample values: ``pytest -s`` shows them on one page."""

from __future__ import annotations

import inspect

import pytest

from plugins.cascade.tests.report.test_sentences import check_sentence
from unfold_cascade.language_models.report import sentences

MODELS = ("small", "large")
SAMPLES: dict[str, tuple[str, ...]] = {
    "dollars": (sentences.dollars(0.00123456), sentences.dollars(0.0)),
    "percent": (sentences.percent(0.123456), sentences.percent(-0.02)),
    "points": (sentences.points(-0.0001), sentences.points(0.01), sentences.points(0.0234)),
    "limit": (sentences.limit(0.01), sentences.limit(0.025)),
    "question": (sentences.question("large", 0.02),),
    "headline": (sentences.headline(0.348, "large", 3.7e-5, 0.03, 0.95),),
    "refusal": (sentences.refusal(0.01, 0.95, "large", None), sentences.refusal(0.01, 0.95, "large", 0.023)),
    "no_cheaper": (sentences.no_cheaper("small"),),
    "costs_more": (sentences.costs_more("large", 0.06), sentences.costs_more("large", 0.0)),
    "late_break": tuple(sentences.late_break("large", promise) for promise in ("loss", "cost", "latency")),
    "leaked_confidence": (sentences.leaked_confidence(["small|logprob"]),),
    "certificate": tuple(
        sentences.certificate(test, 838, "prompt", 16, 0, 0.034, bound)
        for test, bound in (("binomial", 0.0297), ("exact", -0.001), ("betting", 0.012), ("exact", None))
    ),
    "unanswered_rows": (sentences.unanswered_rows(1, "log.csv"), sentences.unanswered_rows(240, "log.csv")),
    "failed_reference": (sentences.failed_reference("large", 160, 1600),),
    "repeated_prompts": (sentences.repeated_prompts("question", 1500, 150),),
    "average_unit": (sentences.average_unit("conversation"),),
    "failed_certificate": (sentences.failed_certificate("exact", 838, "prompt", 40, 1, 0.21),),
    "units_needed": tuple(sentences.units_needed(count, "prompt", 838) for count in (None, 500, 2100)),
    "refused_latency": tuple(sentences.refused_latency(90, 838, "p95", 2000.0, ms) for ms in (2412.0, float("inf"))),
    "saving_interval": (sentences.saving_interval(0.31, 0.38, 0.95, 225),),
    "tested_chains": (sentences.tested_chains([("small → large", 0.04), ("small → middle → large", 0.01)]),),
    "uncertified": (sentences.uncertified(0.421, 0.042), sentences.uncertified(0.421, -0.006)),
    "latency": (sentences.latency(410.0, 1903.0, 870.0, 2100.0),),
    "certified_latency": (sentences.certified_latency("p95", 2000.0, 0.95),),
    "chain_length": (sentences.chain_length(800, 1000),),
    "labels": (sentences.labels(34),),
    "split": (sentences.split(375, 838, 287),),
    "confidence_source": tuple(
        sentences.confidence_source({"from": kind, "of": "mean", "samples": 5, "judge": "large (l-1)"} | prompt)
        for kind, prompt in (
            ("logprob", {}),
            ("votes", {}),
            ("check", {"prompt_sha256": "0123456789abcdef"}),
            ("judge", {"prompt_sha256": "0123456789abcdef"}),
            ("column", {}),
        )
    ),
    "branch_cost": (sentences.branch_cost(0.00041), sentences.branch_cost(0.0)),
    "entry": (
        sentences.entry(0.0, "small", has_embedding=False),
        sentences.entry(0.234, "small", has_embedding=True),
    ),
    "reversed_scores": (sentences.reversed_scores(MODELS),),
    "weak_scores": (sentences.weak_scores(MODELS[:1]),),
    "served_alias": (sentences.served_alias("auto", MODELS),),
    "served_promise": (sentences.served_promise(0.02, 0.95, "large"),),
    "withdrawn": (sentences.withdrawn("large", ""), sentences.withdrawn("large", "small is now s-2, and was s-1")),
    "unpromised": (sentences.unpromised("large"),),
    "no_log_probabilities": (sentences.no_log_probabilities("small"),),
    "served_audit": (
        sentences.served_audit(0.02, None, by_labels=False),
        sentences.served_audit(0.02, 0.054, by_labels=False),
        sentences.served_audit(0.02, 0.02, by_labels=True),
    ),
    "calling": (sentences.calling(0.0623, 1.0),),
    "stored_calls": (sentences.stored_calls(120, 1500, 0.0623, 1.0),),
    "collected": (
        sentences.collected(1500, 1500, 0.0623, 1.0, is_capped=False),
        sentences.collected(1499, 1500, 0.0623, 1.0, is_capped=False),
        sentences.collected(200, 1500, 0.999, 1.0, is_capped=True),
    ),
}


def test_every_sentence_has_a_sample() -> None:
    """A new sentence must be added to the samples, so that it is read here."""
    functions = inspect.getmembers(sentences, inspect.isfunction)
    assert {name for name, function in functions if function.__module__ == sentences.__name__} == set(SAMPLES)


@pytest.mark.parametrize("text", [text for texts in SAMPLES.values() for text in texts])
def test_sentences_are_complete_short_and_free_of_private_words(text: str) -> None:
    """No sentence is empty, padded, open-ended, longer than 25 words per clause, or in words of this project only."""
    check_sentence(text)
