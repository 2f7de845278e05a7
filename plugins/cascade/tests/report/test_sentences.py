"""Every sentence of a report is complete, short, and in the terms of the field."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from unfold_cascade.data.changed_units import ChangedUnit
from unfold_cascade.data.doubtful_values import Doubt
from unfold_cascade.data.leakage import LabelMark
from unfold_cascade.report import sentences

SAMPLES: dict[str, list[str]] = {
    "loss": [sentences.loss(-0.01), sentences.loss(1.26)],
    "loss_or_gain": [sentences.loss_or_gain(-1.57, 2), sentences.loss_or_gain(-0.01), sentences.loss_or_gain(1.26)],
    "short_saving": [sentences.short_saving(ratio) for ratio in (None, 3.52, 1.04, 0.997, 0.95)],
    "headline": [
        sentences.headline(8.04, 100.0, "FLOPs", 0.2, "runs/digits"),
        sentences.headline(None, 6.0, "$", 0.5, "runs/own"),
        sentences.headline(0.997, 6.0, "$", 0.5, "runs/own"),
    ],
    "baseline_is_better": [sentences.baseline_is_better("svc-1", 0.951, 3.0, "$")],
    "over_budget": [sentences.over_budget(0.5, "$", 1.2)],
    "use_baseline": [sentences.use_baseline("svc-1", sentences.no_saving(1.05))],
    "no_saving": [sentences.no_saving(1.05), sentences.no_saving(None)],
    "uncertain_saving": [sentences.uncertain_saving(449, None, 1.05, 0.95)],
    "certified_costs": [sentences.certified_costs(1.05, None, "$"), sentences.certified_costs(1.05, 6.0, "$")],
    "saving_bound": [sentences.saving_bound(ratio, bound, 0.95, 450) for ratio, bound in ((2.1, 1.9), (1.0, 0.93))],
    "not_certified": [sentences.not_certified("1 point", "max_loss: 2.3%")],
    "choice_of_models": [sentences.choice_of_models(8)],
    "question": [
        sentences.question("svc-1", "2 points", None, "FLOPs"),
        sentences.question("premium", "", 12.5, "$/10k"),
    ],
    "label_bounds": [*sentences.label_bounds(0.95).values()],
    "points": [sentences.points(0.01), sentences.points(0.025)],
    "allowed_losses": [sentences.allowed_losses(0.01, {"ill": 0.05})],
    "relaxations": [sentences.relaxations([[("", 0.02)], [("", 0.01), ("ill", 0.06)]])],
    "units": [sentences.units(None), sentences.units("patient"), sentences.units("copies")],
    "certificate": [
        sentences.certificate(
            baseline="svc-1",
            cluster_column=column,
            certified_loss=0.01,
            of_labels=of_labels,
            confidence=0.95,
            unit_count=449,
            method="betting",
            test_loss_points=0.2,
            has_rejections=has_rejections,
            costs=costs,
        )
        for column, of_labels, has_rejections, costs in (
            (None, {}, False, "saving ≥ 1.05x"),
            ("patient", {"ill": 0.05}, True, ""),
        )
    ],
    "vacuous_certificate": [sentences.vacuous_certificate("svc-1", None, 30, 0.95, 1.2)],
    "no_certificate": [sentences.no_certificate("no cascade is cheaper")],
    "cannot_certify": [sentences.cannot_certify(None, 65, "1 point", 0.95)],
    "too_few_units": [sentences.too_few_units("65 cases cannot certify ≤ 1 point", None, 0.045, 299)],
    "least_certified": [sentences.least_certified("449 cases cannot certify ≤ 1 point", 0.03)],
    "front_range": [sentences.front_range(12, "1.2x", "9.5x")],
    "call_cost": [sentences.call_cost(1200.0, "FLOPs", 0)],
    "exit_cases": [sentences.exit_cases("svc-1", 1)],
    "second_stage": [sentences.second_stage("fine", 10)],
    "greedy_gap": [sentences.greedy_gap([("coarse", 12.0), ("fine", None)])],
    "class_skew": [
        sentences.class_skew("0", 0.931, 45, "svc-1", 33, 30),
        sentences.class_skew("0", 0.931, 45, "svc-1", 33, None),
    ],
    "baseline_drop": [sentences.baseline_drop("svc-1", 0.97, 0.12)],
    "unnamed_groups": [sentences.unnamed_groups("t.csv")],
    "repeated_patients": [sentences.repeated_patients("subject_id", 600)],
    "label_marks": sentences.label_marks(
        [
            LabelMark("organism", "filled", 1, 0.6),
            LabelMark("pressor", "1", 1, 0.4),
            *[LabelMark("x", "nonzero", 0, 1)] * 2,
        ],
        ["no", "sepsis"],
    ),
    "doubtful_values": [
        *sentences.doubtful_values([Doubt("a", -9.0, 0.1), *[Doubt("b", None, 0.4)] * 3]),
        *sentences.doubtful_values([Doubt("Unnamed: 0", None, 1.0, is_counter=True)]),
        *sentences.doubtful_values([Doubt("hr", 900.0, 0.0004, is_isolated=True)]),
        *sentences.doubtful_values([Doubt("hr", 0.0, 0.0004)]),
    ],
    "missing_labels": [sentences.missing_labels(["-99", "Unknown"])],
    "similar_labels": [
        sentences.similar_labels([("No", "no")]),
        sentences.similar_labels([("No", "no"), ("Yes", "yes"), ("A", "a")]),
    ],
    "error_costs": [
        sentences.error_costs("balanced"),
        sentences.error_costs({"sick": {"healthy": 20.0}, "other": 5.0}),
    ],
    "split": [sentences.split(898, 449, 450, is_recorded=False), sentences.split(898, 449, 450, is_recorded=True)],
    "not_promised": [
        sentences.not_promised(["a", "b", "c", "d", "e"], has_saving=True),
        sentences.not_promised([], has_saving=False),
    ],
    "attempt": [sentences.attempt(1, 0.95, 1), sentences.attempt(3, 0.85, 1), sentences.attempt(3, 0.9925, 20)],
    "percent": [sentences.percent(0.95), sentences.percent(0.9975)],
    "copied_rows": [
        sentences.copied_rows(840, 0, "own.csv", are_grouped=True),
        sentences.copied_rows(1, 12, "own.csv", are_grouped=False),
    ],
    "leaked_label": [sentences.leaked_label(["a"]), sentences.leaked_label(["a", "b", "c", "d"])],
    "unlabelled_rows": [sentences.unlabelled_rows(1, "own.csv"), sentences.unlabelled_rows(6, "own.csv")],
    "left_out_sites": [sentences.left_out_sites(3, -0.2, 4.1, 2), sentences.left_out_sites(3, -0.2, 4.1, None)],
    "utility_of_sites": [sentences.utility_of_sites(0.2, 0.37)],
    "validation_headline": [sentences.validation_headline(["loss"], ["saving"], ["accuracy"])],
    "intervals_of_validation": [sentences.intervals_of_validation(0.95)],
    "estimate_before": [sentences.estimate_before(0.37, 0.33, 0.41)],
    "concluded_without_labels": [
        sentences.concluded_without_labels(has_drifted=True),
        sentences.concluded_without_labels(has_drifted=False),
    ],
    "models_measured": [sentences.models_measured(5, 256)],
    "changed_units": sentences.changed_units([ChangedUnit("Temp", 37.0, 98.6, "°C and °F")]),
    "known_cases": [sentences.known_cases(40, "new.csv"), sentences.known_cases(1, "new.csv")],
    "own_table": [sentences.own_table("own.csv")],
    "served_policy": [
        sentences.served_policy("svc-1", is_cascade=True),
        sentences.served_policy("svc-1", is_cascade=False),
    ],
    "engines": [
        sentences.engines("ONNX Runtime, equal to the native model on 285 rows", ["a/all/m"], is_only_one=True),
        sentences.engines("native, requested", ["a/all/m", "a/all/n"], is_only_one=False),
    ],
}
PRIVATE = re.compile(r"\b(told|tells?|whose?|whom|nobody|asked|sure|dear(er|est)?|monolith|luck|worth|stakes)\b")
MAX_WORDS = 25


def test_a_ratio_below_one_never_reads_as_no_change() -> None:
    """A cascade which costs more is not rounded into one which costs the same."""
    assert [sentences.short_saving(ratio) for ratio in (0.9999, 0.96, 1.0, 1.04)] == [
        "0.99x",
        "0.96x",
        "1.00x",
        "1.04x",
    ]
    assert sentences.headline(0.9999, 6.0, "$", 0.5, "runs/own").startswith("costs 1 % more than the baseline")


def test_every_sentence_has_a_sample() -> None:
    """A new sentence must be added to the samples, so that it is read here."""
    functions = inspect.getmembers(sentences, inspect.isfunction)
    public = {name for name, function in functions if function.__module__ == sentences.__name__ and name[0] != "_"}
    assert public == set(SAMPLES)


def check_sentence(text: str) -> None:
    """Print a sentence, and fail if it is empty, padded, open-ended, too long or in words of this project only."""
    sys.stdout.write(f"{text}\n")
    assert text == text.strip() != ""
    assert "  " not in text
    assert text[-1] not in ",;:("
    assert text.count("(") == text.count(")")
    assert all(len(clause.split()) <= MAX_WORDS for clause in re.split(r"[;·(]", text))
    assert not PRIVATE.search(text)


@pytest.mark.parametrize("text", [text for texts in SAMPLES.values() for text in texts])
def test_sentences_are_complete_short_and_free_of_private_words(text: str) -> None:
    """No sentence is empty, padded, open-ended, longer than 25 words per clause, or in words of this project only."""
    check_sentence(text)
