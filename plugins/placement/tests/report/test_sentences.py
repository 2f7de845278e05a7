"""Every sentence of a placement report, printed on one page and checked for its form."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from unfold_placement.core.explain import Reason
from unfold_placement.report import sentences
from unfold_placement.simulation.deadlock_check import Counterexample

MAX_WORDS = 25
PRIVATE_WORDS = re.compile(r"\b(told|tells?|whose?|whom|nobody|somebody|for ever|beside)\b", re.IGNORECASE)
REASONS = (
    Reason(requirement="1 gpu", available_on="all 4 nodes", missing_on="", since_s=None, set_by="task"),
    Reason(requirement="gang-a-", available_on="", missing_on="everywhere", since_s=3.0, set_by="Gang"),
)
COUNTEREXAMPLE = Counterexample(("a", "b"), ("a-0", "a-1"), 6, "a-0", "waits for room", REASONS)
UNPLACEABLE = {f"t{index}": f"no node has {index} gpu" for index in range(9)}
SAMPLES: dict[str, list[str]] = {
    "stuck_headline": [sentences.stuck_headline(1, "a-0"), sentences.stuck_headline(12, "a-0")],
    "violation_headline": [sentences.violation_headline(count, "3 s: a-0 on n1: b runs here") for count in (1, 4)],
    "unplaceable_headline": [
        sentences.unplaceable_headline(1, "big", 1, 6.0),
        sentences.unplaceable_headline(1200, "big", 40_000, 3600.0),
    ],
    "success_headline": [
        sentences.success_headline(1, 0.25, 1, 0.31),
        sentences.success_headline(30, 1200.0, 2, 1300.0),
    ],
    "bottleneck_line": [sentences.bottleneck_line("gpu", 0.95)],
    "baseline_line": [sentences.baseline_line("0 s: 2 of the 8 tasks of gang b start"), sentences.baseline_line("")],
    "rejection_line": [
        sentences.rejection_line(1, "a-0", "the work due by 60 s does not fit before it"),
        sentences.rejection_line(3, "a-0", "it comes after b, which was rejected"),
    ],
    "explanation_line": [
        sentences.explanation_line("c-0", 330.0, "waits for its turn behind b-0, for which nodes are kept free")
    ],
    "wait_phrase": [sentences.wait_phrase("a-0", wait) for wait in ("waits for room", "set aside: no node has 9 gpu")],
    "explanation_title": [sentences.explanation_title("c-0", 330.0)],
    "unplaceable_lines": sentences.unplaceable_lines(UNPLACEABLE),
    "counterexample_message": [sentences.counterexample_message(COUNTEREXAMPLE)],
    "counterexample_hint": [sentences.counterexample_hint(COUNTEREXAMPLE)],
    "counterexample_headline": [sentences.counterexample_headline("starvation", "gang", 5)],
    "counterexample_title": [
        sentences.counterexample_title("starvation", "gang", is_by_design=is_by_design)
        for is_by_design in (False, True)
    ],
    "verified_headline": [
        sentences.verified_headline(1, 3, 39),
        sentences.verified_headline(2, 3, 1568, ["head of line"]),
    ],
    "incomplete_headline": [sentences.incomplete_headline(20_000)],
    "unstarted_line": [sentences.unstarted_line("jobs.csv", (12, 500))],
    "whole_trace_line": [sentences.whole_trace_line("jobs.csv", (12, 500))],
    "array_line": [sentences.array_line("jobs.csv", 8, 1, 1), sentences.array_line("jobs.csv", 1200, 30, 0)],
    "mixed_zones_line": [sentences.mixed_zones_line("jobs.csv")],
    "unread_amounts_line": [sentences.unread_amounts_line("jobs.csv", {"cpu": "CPUs", "gpu": "num_gpus"})],
    "zero_run_line": [sentences.zero_run_line("jobs.csv", (12, 500))],
    "resource_claims_line": [sentences.resource_claims_line("pods.json", 3)],
    "unlisted_line": [sentences.unlisted_line("jobs.csv", "after", (12, 500))],
    "never_starting_line": [sentences.never_starting_line("train")],
    "bound_line": [sentences.bound_line(1, 3), sentences.bound_line(2, 3)],
    "by_design_line": [sentences.by_design_line("head of line"), sentences.by_design_line("starvation")],
    "time_dependent_line": [sentences.time_dependent_line("history")],
    "name_dependent_line": [sentences.name_dependent_line("ByName")],
    "unconfirmed_line": [sentences.unconfirmed_line(1), sentences.unconfirmed_line(4)],
    "starvation_headline": [sentences.starvation_headline("g-0")],
    "starvation_line": [sentences.starvation_line("g-0", (600.0, 630.0), (1200.0, 1230.0))],
    "class_starvation_line": [sentences.class_starvation_line("g-0")],
    "starts_headline": [
        sentences.starts_headline(1, 0, 30.0),
        sentences.starts_headline(12, 1, 30.0),
        sentences.starts_headline(1, 0, -49.0),
    ],
    "change_headline": [sentences.change_headline(1, 0, 3, 0), sentences.change_headline(12, 3, 4, 1)],
    "quota_change_line": [sentences.quota_change_line("team-a", "default", "nvidia.com/gpu", "8", "16")],
    "start_line": [
        sentences.start_line("team-a/x", "2026-03-01 10:00:00Z", None, 0),
        sentences.start_line("team-a/x", "2026-03-01 10:00:00Z", -600.0, 2),
        sentences.start_line("team-a/x", "2026-03-01 10:00:00Z", 0.0, 1),
    ],
    "never_starts_line": [
        sentences.never_starts_line("team-a/x", ""),
        sentences.never_starts_line("team-a/x", "waits behind team-a/y, which StrictFIFO never passes"),
    ],
    "quota_above_nodes_line": [sentences.quota_above_nodes_line("nvidia.com/gpu", "16", "8")],
    "admission_only_line": [sentences.admission_only_line()],
    "ignored_field_line": [sentences.ignored_field_line("after", "barrier")],
    "manager_settings_line": [sentences.manager_settings_line("0.17")],
    "replay_start_line": [sentences.replay_start_line(is_history=value) for value in (True, False)],
    "run_time_line": [sentences.run_time_line(count, "workload.replay.run") for count in (1, 30)],
    "overdue_line": [sentences.overdue_line(1), sentences.overdue_line(3)],
    "left_out_line": [sentences.left_out_line(1, "not active")],
    "missing_flavor_line": [sentences.missing_flavor_line("team-a", "spot")],
    "no_flavors_line": [sentences.no_flavors_line()],
    "stopped_queue_line": [sentences.stopped_queue_line("team-a", "Hold")],
    "fair_sharing_line": [sentences.fair_sharing_line("team-a")],
    "admission_check_line": [sentences.admission_check_line("team-a")],
    "unknown_namespace_line": [sentences.unknown_namespace_line("team-a", "research")],
    "agreement_headline": [
        sentences.agreement_headline(0, 0, 0),
        sentences.agreement_headline(1, 1, 0),
        sentences.agreement_headline(1200, 900, 40),
    ],
    "node_loss_line": [
        sentences.node_loss_line(1, 0, {}),
        sentences.node_loss_line(1, 8, {"gpu": 0.267}),
        sentences.node_loss_line(3, 1, {}),
    ],
    "preemption_line": [
        sentences.preemption_line(3, {"gpu": 80.0, "cpu": 4.25, "memory": 9.0}),
        sentences.preemption_line(12, {}),
    ],
    "unaudited_line": [sentences.unaudited_line(["drf"]), sentences.unaudited_line(["drf", "Quarantine"])],
    "default_line": [sentences.default_line("tasks.csv", "arrival", "their start", (1, 20_000))],
    "skipped_line": [sentences.skipped_line("tasks.csv", "run", (4_812, 20_000), 7)],
    "missing_requirement": [sentences.missing_requirement(REASONS), sentences.missing_requirement(REASONS[:1])],
    "format_seconds": [sentences.format_seconds(0.31), sentences.format_seconds(3600.0)],
}


def test_every_function_has_a_sample_on_the_page() -> None:
    """The page, which ``pytest -s`` shows, has a sample of each public function of the module."""
    page = "\n".join(f"{name}: {sentence}" for name, samples in SAMPLES.items() for sentence in samples)
    sys.stdout.write(page + "\n")
    functions = {
        name
        for name, function in inspect.getmembers(sentences, inspect.isfunction)
        if function.__module__ == sentences.__name__ and not name.startswith("_")
    }
    assert set(SAMPLES) == functions


@pytest.mark.parametrize("sentence", [sentence for samples in SAMPLES.values() for sentence in samples])
def test_a_sentence_is_short_and_ends_properly(sentence: str) -> None:
    """A sentence is not empty, has at most 25 words, no private word, no doubled space and no open end."""
    assert sentence == sentence.strip()
    assert "  " not in sentence
    assert re.search(r"[\w)%-]$", sentence)
    assert len(sentence.split()) <= MAX_WORDS
    assert not PRIVATE_WORDS.search(sentence)


def test_counts_agree_in_number() -> None:
    """One task waits, several wait; one violation is no violations."""
    assert sentences.stuck_headline(1, "a-0") == "1 task waits forever, the first is a-0"
    assert sentences.stuck_headline(2, "a-0") == "2 tasks wait forever, the first is a-0"
    assert sentences.success_headline(1, 5.0, 1, 5.0).endswith("; without the policy 1 violation and 5 s")


def test_reasons_are_limited() -> None:
    """The commonest reasons are listed, the others are counted."""
    lines = sentences.unplaceable_lines(UNPLACEABLE)
    assert len(lines) == sentences.MAX_REASONS + 1
    assert lines[-1] == "and 3 other reasons"
