"""All sentences of cascades over time on one page: run ``pytest -s`` on this file to read them."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from unfold_cascade.data.doubtful_values import Doubt
from unfold_cascade.data.leakage import LabelMark
from unfold_cascade.planner.select import BUDGET_UNCERTAIN, REFUTED
from unfold_cascade.temporal.report import sentences

LOW_HIGH = (-0.012, 0.034)
SAMPLES: dict[str, tuple[str, ...]] = {
    "summarize_plan": (
        sentences.summarize_plan(
            price_saving=5.3, flops_saving=16.6, loss_points=0.69, path="runs/wards", relaxed=None
        ),
        sentences.summarize_plan(price_saving=5.3, flops_saving=None, loss_points=-0.1, path="runs/wards", relaxed=2.1),
    ),
    "leak_notes": (*sentences.leak_notes(["hours_to_death"]), *sentences.leak_notes(())),
    "describe_merged_stays": (*sentences.describe_merged_stays("stay_id"), *sentences.describe_merged_stays("")),
    "describe_repeated_patients": (
        *sentences.describe_repeated_patients("subject_id"),
        *sentences.describe_repeated_patients(""),
    ),
    "describe_table": sentences.describe_table(
        ("sepsis",),
        leaks=("culture",),
        marks=(LabelMark("culture", "filled", 1, 0.6),),
        repeated="subject_id",
        stays="stay_id",
        copies=2,
        doubts=(Doubt("Age", 999.0, 0.1),),
        gap_h=110.0,
        span_h=24.0,
    ),
    "describe_rare_rows": (
        *sentences.describe_rare_rows(6600.0, 24.0),
        *sentences.describe_rare_rows(1.0, 24.0),
        *sentences.describe_rare_rows(1.0, 0.0),
    ),
    "describe_copies": (
        *sentences.describe_copies(0),
        *sentences.describe_copies(1),
        *sentences.describe_copies(240),
    ),
    "describe_known_patients": (
        sentences.describe_known_patients(80, 160, "ward.csv"),
        sentences.describe_known_patients(160, 160, "ward.csv"),
    ),
    "describe_certificate": (
        sentences.describe_certificate(
            loss_points=20.0, confidence=0.9, patients=40, method="betting", refused_points=None
        ),
        sentences.describe_certificate(
            loss_points=4.2, confidence=0.95, patients=5082, method="betting", refused_points=0.1
        ),
        sentences.describe_certificate(
            loss_points=0.1,
            confidence=0.95,
            patients=5082,
            method="betting",
            refused_points=None,
            costs=["saving ≥ 1.05x"],
        ),
    ),
    "describe_uncertain_saving": (sentences.describe_uncertain_saving(5082, 1.05, 0.95),),
    "describe_refusal": (sentences.describe_refusal(REFUTED), sentences.describe_refusal(BUDGET_UNCERTAIN)),
    "describe_mean_price": (
        sentences.describe_mean_price(0.226, 1.01, "GBP"),
        sentences.describe_mean_price(0.0, 4.0, None),
        sentences.describe_mean_price(0.25, 0.668, "$"),
    ),
    "describe_saving_bound": (
        sentences.describe_saving_bound(4.56, "price+flops", 0.95),
        sentences.describe_saving_bound(0.0, "latency", 0.9),
    ),
    "describe_outcomes": (
        sentences.describe_outcomes(["alerts of sepsis ≤ 12 per 100 h", "utility: loss ≤ 0.02"], [], 0.95),
        sentences.describe_outcomes([], ["utility: loss ≤ 0.02"], 0.95),
    ),
    "describe_not_promised": (sentences.describe_not_promised(["lead time", "saving"]),),
    "describe_loss": (sentences.describe_loss(-1.57, (-2.04, -1.13)),),
    "describe_quality": tuple(
        sentences.describe_quality(
            utility=0.012, utility_interval=LOW_HIGH, auprc=-0.001, auprc_interval=LOW_HIGH, meets_margins=meets
        )
        for meets in (True, False)
    ),
    "describe_lead": (
        sentences.describe_lead(
            lead_h=24.2,
            baseline_lead_h=23.1,
            per_100h=10.0,
            gain_interval_h=(0.2, 2.1),
            sensitivity=0.747,
            baseline_sensitivity=0.731,
        ),
    ),
    "describe_savings": (sentences.describe_savings((4.9, 5.8), (15.2, 17.9)),),
    "describe_split": (sentences.describe_split(10164, 5082, 5082),),
    "format_interval": (sentences.format_interval(LOW_HIGH),),
    "describe_served_baseline": (sentences.describe_served_baseline(),),
    "describe_served_cascade": (sentences.describe_served_cascade(),),
    "describe_chain": tuple(sentences.describe_chain(["glance", "full"], is_parallel=flag) for flag in (True, False)),
    "describe_engines": (sentences.describe_engines("ONNX Runtime", 4, 5),),
    "describe_audit": (sentences.describe_audit(0.05),),
    "describe_memory": (sentences.describe_memory(1200, "runs/wards/serving/entities.sqlite"),),
    "name_cost_unit": (sentences.name_cost_unit(None), sentences.name_cost_unit("$")),
    "title_models": (sentences.title_models(is_certified=True), sentences.title_models(is_certified=False)),
    "model_facts": sentences.model_facts(1.0, 0.493, "240"),
    "title_patient": (sentences.title_patient("p000123", 447),),
    "title_patient_without_onset": (sentences.title_patient_without_onset("p000123", 5082),),
    "first_alert": (sentences.first_alert(24.0),),
    "title_ward": (sentences.title_ward(8, 447, 8, 4635), sentences.title_ward(0, 0, 1, 1)),
}
PRIVATE = re.compile(
    r"\b(told|tells?|asked|says?|said|who|whose|whom|nobody|monolith|rival|caught|kept|dear)\b", re.IGNORECASE
)


def test_every_sentence_has_a_sample() -> None:
    """A new sentence must be added to the page."""
    functions = inspect.getmembers(sentences, inspect.isfunction)
    assert {name for name, value in functions if value.__module__ == sentences.__name__} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_sentences_are_short_and_use_the_terms_of_the_field(name: str) -> None:
    """Each clause has at most 25 words, no private word, no doubled space and no dangling punctuation."""
    for text in SAMPLES[name]:
        sys.stdout.write(f"{name:26} {text}\n")
        assert text.strip() == text != ""
        assert "  " not in text
        assert text[-1] not in ",;:"
        assert not PRIVATE.search(text)
        assert all(len(clause.split()) <= 25 for clause in text.split(";"))
