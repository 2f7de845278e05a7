"""All sentences of the kind on one page: print it with ``pytest -s`` and read it from top to bottom."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from inspect import getmembers, isfunction
from typing import Any

import pytest

from unfold_supernet._types import Task
from unfold_supernet.accelerator.hardware import get_presets
from unfold_supernet.report import sentences
from unfold_supernet.study.strategies import Strategy

MAX_WORDS = 25
PRIVATE_WORDS = re.compile(
    r"\b(told|tells?|whose?|whom|nobody|asks?|asked|answers?|surely|nets?|alone\b(?!,)|kept|keep|quickest)\b",
    re.IGNORECASE,
)
TASKS: tuple[Task, ...] = ("classes", "labels", "values")
CACHE = sentences.describe_static_cache(1_769_472, "core")
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "format_percent": [((0.123,), {}), ((-0.0001,), {})],
    "format_bandwidth": [((4e9,), {})],
    "name_source": [((source,), {}) for source in ("core", "F", "A∩B")],
    "name_strategy": [((strategy, 16, 8, 5_000_000), {}) for strategy in Strategy],
    "describe_static_cache": [((1_769_472, "core"), {}), ((204, "A∩B"), {})],
    "describe_adaptive_cache": [((1_769_472, "avgnet", 16), {}), ((1_769_472, "avgnet", 1), {})],
    "state_latency_saving": [((CACHE, 0.444, 0.305, 0.158), {}), ((CACHE, 0.01, -0.02, -0.03), {})],
    "state_accuracy_gain": [((CACHE, 0.162, 0.53, 1.05), {})],
    "describe_queries": [((10_000, "random", ""), {}), ((10, "random", "q.csv"), {})],
    "describe_cached_layers": [((6_000, 3, "F", order), {}) for order in ("stall", "reuse", "front", "back")],
    "state_adaptive_gain": [(("avgnet, every 16", gain), {}) for gain in (0.02, -0.02)],
    "state_energy_saving": [((0.2, 0.1), {})],
    "state_accuracy_points": [((0.5, -0.2), {})],
    "describe_precision": [((get_presets()[name],), {}) for name in ("zcu104", "row-stationary")],
    "list_study_notes": [((size,), {"is_reference": size is not None}) for size in (8 << 20, None)],
    "explain_claim_buffer": [((8 << 20,), {})],
    "state_deadline_missed": [(("mine", 2.0), {})],
    "state_fastest_subnet": [(("A", 2.5, "memory"), {})],
    "state_compute_bound": [((1.5,), {})],
    "propose_deadline": [((2.51, 76.0), {})],
    "name_score": [((task,), {}) for task in TASKS],
    "name_constant": [((task,), {}) for task in TASKS],
    "state_training": [((task, 5, 80.0, 97.0, 3, gap), {}) for task in TASKS for gap in ("", "no weight-sharing gap")],
    "state_no_gap": [((), {})],
    "state_gap": [((1.2,), {})],
    "state_insignificant_gap": [((0.7, 1.48), {})],
    "rate_gap": [((), {"is_significant": flag, "points": points}) for flag in (True, False) for points in (1.0, -1.0)],
    "describe_front": [((task, names), {}) for task in TASKS for names in (["0.5x1k3", "1x2k3"], ["0.5x1k3"])],
    "describe_steps": [(({"a": 100, "b": 2_000}, 16), {}), (({"a": 100, "b": 2_000, "c": 300}, 2), {})],
    "explain_switch": [((1.5,), {})],
    "state_useless_subnets": [((task, names, 88.0), {}) for task in TASKS for names in (["a"], list("abcde"))],
    "state_no_growth": [((task,), {}) for task in TASKS],
    "state_missed_score": [((task, 91.2, 95.0), {}) for task in TASKS],
    "state_missed_sharing": [((0.8, 0.5), {})],
    "advise_training": [((reason,), {}) for reason in ("useless", "growth", "score", "sharing")],
    "state_constant": [((task, 50.0), {}) for task in TASKS],
    "state_view_cost": [((1.4,), {})],
    "title_front": [((task,), {"shown": shown, "total": 60}) for task in TASKS for shown in (60, 7)],
    "title_roofline": [(("G",), {})],
    "title_outputs": [((task, shown, 40), {}) for task in TASKS[1:] for shown in (40, 12)],
    "title_errors": [((3, 3), {}), ((12, 40), {})],
    "note_undefined_outputs": [((["rash"], 12), {}), (([str(label) for label in range(15)], 12), {})],
    "name_front_group": [((), {"is_front": is_front}) for is_front in (True, False)],
    "name_standalone_group": [((), {})],
    "name_standalone": [(("0.5x1",), {})],
    "describe_precision_choice": [
        ((names, speedup, bound, 1.0, 300), {})
        for names, speedup, bound in ((("0.5x1", "1x1"), 1.8, 0.99), ((), None, 100.0), ((), 1.8, 1.4), ((), 0.7, 0.6))
    ],
    "describe_module": [(("mine:model", 12, heads, 4), {}) for heads in (0, 6)],
    "list_shared_parts": [(([("fc", "its channels are the outputs")], 0), {}), (([("fc", "why")], 3), {})],
    "describe_engines": [
        ((copied, views, {"a": 1.4, "b": 0.8, **{str(index): 2.0 for index in range(6)}}), {})
        for copied, views in ((["a"], ["b"]), (["a"], []), ([], ["b"]), ([str(index) for index in range(6)], ["b"]))
    ],
    "state_demanded_engine": [((engine, 3_000_000), {}) for engine in ("onnx", "views")],
    "state_engine_memory": [((3_000_000, names), {}) for names in ([], ["a", "b"])],
    "note_busy_machine": [((), {})],
    "note_delayed_members": [((["a", "b"],), {})],
    "list_member_files": [((task,), {}) for task in TASKS],
    "state_members": [((3, 2, fits), {}) for fits in (True, False)],
    "state_memory_limit": [((120_000_000, limit), {}) for limit in (80_000_000, None)],
    "state_residency": [
        ((pinned, unused, 1_000), {})
        for pinned, unused in ((["a"], ["b", "c"]), (["a", "b"], [str(index) for index in range(40)]), ([], []))
    ],
    "explain_member_figures": [((), {})],
    "list_dominated": [((["a", "b"],), {})],
    "explain_no_residency_plan": [((), {})],
    "note_unused_numbers": [((2,), {})],
    "state_memory": [((120_000, 400_000), {})],
    "list_files": [((), {})],
    "describe_search": [((512, 80, 0.87), {})],
    "note_leak": [
        ((task, columns, "rash", 99.9), {}) for task in TASKS for columns in (['column "a"'], ["a", "b", "c", "d"])
    ],
    "note_unnamed_group": [(("patient",), {})],
    "state_missed_classes": [((["F"], 12), {}), (([str(label) for label in range(15)], 12), {})],
    "title_classes": [((4, 4), {}), ((12, 40), {})],
    "state_replay": [((task, 0.987, 82.1), {"measured": measured}) for task in TASKS for measured in (True, False)],
    "describe_deadlines": [((20.0, 20.0), {}), ((2.0, 200.0), {})],
    "state_gain_at_equal_attainment": [((points,), {}) for points in (1.5, None)],
    "state_ratio_at_equal_accuracy": [((ratio,), {}) for ratio in (1.5, None)],
    "state_targets": [((0.5, 0.25, 0.9), {})],
    "describe_rate": [((9942.0, None), {}), ((9942.0, 21.8), {})],
    "state_load": [((3.2, 0.5, 200.0), {})],
    "state_needed_subnets": [(({"small": 0.6, "large": 0.4}, 0.99), {})],
    "state_accelerator_energy": [((0.12, 1024, 20_000, "zcu104"), {})],
    "state_prediction": [((task, 0.98, 82.0), {}) for task in TASKS],
    "state_slowdown": [((1.1, 2.0), {})],
    "describe_served_subnet": [(("small", 80.0, 0.42), {})],
    "explain_policy": [(("steady", "small"), {})],
    "explain_min_accuracy": [((), {})],
    "explain_deadline": [((20.0,), {})],
    "note_attainment": [((0.99,), {})],
    "note_accuracy": [((), {})],
}


def list_sentences() -> list[tuple[str, Callable[..., Any]]]:
    """List the public functions of the module that define a sentence."""
    return [
        (name, function)
        for name, function in getmembers(sentences, isfunction)
        if function.__module__ == sentences.__name__ and not name.startswith("_")
    ]


def write_page() -> dict[str, list[str]]:
    """Write every sentence with its sample values."""
    page: dict[str, list[str]] = {}
    for name, function in list_sentences():
        texts = [function(*args, **kwargs) for args, kwargs in SAMPLES[name]]
        page[name] = [text for item in texts for text in ([item] if isinstance(item, str) else item)]
    return page


def test_every_sentence_has_samples() -> None:
    """A sentence without sample values would never be read."""
    assert {name for name, _ in list_sentences()} == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_sentences_are_short_and_free_of_private_words(name: str) -> None:
    """Each sentence is not empty, has at most 25 words, is complete, and uses the field's words."""
    for text in write_page()[name]:
        sys.stdout.write(f"{name}: {text}\n")
        assert text
        assert text == text.strip()
        assert "  " not in text
        assert text[-1].isalnum() or text[-1] in ".%)µ"
        assert not PRIVATE_WORDS.search(text)
        assert all(len(part.split()) <= MAX_WORDS for part in text.split(". "))


def test_dominated_members_that_are_not_named_are_counted() -> None:
    """A long list of dominated members ends with the number of the others."""
    assert "and 12 others" in sentences.list_dominated([f"m{index}" for index in range(20)])
