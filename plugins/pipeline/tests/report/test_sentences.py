"""Every sentence of a pipeline report, with sample values: one page of plain, short English."""

from __future__ import annotations

import inspect
import math
import re
import sys

import pytest

from unfold_pipeline.report import sentences

NO_WORDS_OF_OURS = re.compile(
    r"\b(told|tells?|asked|asks?|says?|said|hears?|heard|whose?|whom|nobody|somebody|most of all|dear(er|est)?)\b"
)
MAX_WORDS = 25
PAGE: dict[str, list[str]] = {
    "describe_activation": [
        sentences.describe_activation(5.0, "default"),
        sentences.describe_activation(2.31, "measured"),
    ],
    "describe_attainment": [
        sentences.describe_attainment(0.9987, 0.35, 2.7, "calibrated", most) for most in ((4, 9), (1, 1))
    ],
    "describe_binding_quotas": [
        sentences.describe_binding_quotas([("k80", 14)]),
        sentences.describe_binding_quotas([("k80", 14), ("v100", 3)]),
    ],
    "describe_binding_stage": [sentences.describe_binding_stage("detect", "k80", 0.054, 0.011)],
    "describe_bound": [
        sentences.describe_bound(0.0, is_optimal=True),
        sentences.describe_bound(0.041, is_optimal=False),
    ],
    "describe_cascade_latency": [
        sentences.describe_cascade_latency(["quick", "slow"], 2, 256),
        sentences.describe_cascade_latency(["slow"], 2, 256),
    ],
    "describe_comparison": [sentences.describe_comparison(0.0012, 0.0341, 0.62)],
    "describe_configuration": [sentences.describe_configuration("k80", 8, 1.3)],
    "describe_wandering": [sentences.describe_wandering(19)],
    "describe_rare_bursts": [sentences.describe_rare_bursts(1), sentences.describe_rare_bursts(2)],
    "describe_drift": [sentences.describe_drift(0.83)],
    "describe_heavy_tail": [sentences.describe_heavy_tail(1.4)],
    "describe_excess": [sentences.describe_excess(12.5, 41, 0.25, 30)],
    "describe_faster_batch": [sentences.describe_faster_batch("detect", 4)],
    "describe_floor": [sentences.describe_floor(has_floor=True), sentences.describe_floor(has_floor=False)],
    "describe_frontier": [sentences.describe_frontier([(0.1, None, True), (0.2, None, False), (0.3, 2.4, False)])],
    "describe_greedy_steps": [
        sentences.describe_greedy_steps(9, [("detect", "replica", 8.85), ("detect", "batch", 8.85)]),
        sentences.describe_greedy_steps(1, [("detect", "hardware cpu", 3.2)]),
    ],
    "describe_idle": [sentences.describe_idle(0.2, "hours")],
    "describe_instances": [sentences.describe_instances([(3, "k80", 10, 4), (1, "v100", 1, 2)])],
    "describe_interval": [
        sentences.describe_interval(0.232, 0.328, 1, 1),
        sentences.describe_interval(0.232, 0.328, 2, 3),
    ],
    "describe_jitter": [sentences.describe_jitter(0.21, 0.35), sentences.describe_jitter(0.4, 0.35)],
    "describe_knative_settings": [sentences.describe_knative_settings(0.7, 60.0)],
    "describe_limits": [sentences.describe_limits(10, 1, 5.0)],
    "describe_paused": [sentences.describe_paused(["detect", "face"])],
    "describe_proposal": [
        sentences.describe_proposal(12.34, 8.0, 0),
        sentences.describe_proposal(12.34, 8.0, 1),
        sentences.describe_proposal(12.34, 8.0, 3),
    ],
    "describe_known_plan": [sentences.describe_known_plan(0.4, 3.1)],
    "describe_measured": [
        sentences.describe_measured(["detect", "classify"], "core", "8 cores of EPYC 7763"),
        sentences.describe_measured(["detect"], "core", ""),
    ],
    "describe_measured_replay": [sentences.describe_measured_replay(1200, "local processes", 0.995, 0.35, 0)],
    "describe_no_plan": [
        sentences.describe_no_plan(0.05, is_proven=True),
        sentences.describe_no_plan(0.05, is_proven=False),
    ],
    "describe_optimality": [
        sentences.describe_optimality(0.0, is_optimal=True, is_search_complete=True),
        sentences.describe_optimality(0.02, is_optimal=False, is_search_complete=True),
        sentences.describe_optimality(0.3, is_optimal=False, is_search_complete=False),
    ],
    "describe_outage": [sentences.describe_outage(["detect", "classify"])],
    "describe_overload": [sentences.describe_overload([("detect", 4.01)])],
    "describe_overridden": [sentences.describe_overridden(["detect"], "core")],
    "describe_confident_share": [
        sentences.describe_confident_share(59, 60, 0.92, 0.65, is_reached=True),
        sentences.describe_confident_share(40, 60, 0.57, 0.0, is_reached=False),
    ],
    "describe_expected_share": [sentences.describe_expected_share(13, 24, 0.39)],
    "describe_plan_on_samples": [
        sentences.describe_plan_on_samples(2.7, 0.35, 13, 24),
        sentences.describe_plan_on_samples(2.7, 0.35, 49, 50, confidence=0.9),
    ],
    "describe_plan": [sentences.describe_plan(2.7, 0.35)],
    "describe_price_change": [sentences.describe_price_change(3.1, 2.7)],
    "describe_prices": [sentences.describe_prices([("cpu", 0.05, "spec"), ("k80", 0.65, "p2.xlarge on demand")])],
    "describe_profile": [sentences.describe_profile(1, 2, "core", "runs/mine")],
    "describe_quota_violations": [sentences.describe_quota_violations([("k80", 14, 12)])],
    "describe_ray_serve_settings": [sentences.describe_ray_serve_settings(2.0, 30.0, 600.0)],
    "describe_recheck": [
        sentences.describe_recheck(0.35, 0.4, misses_slo=True, violations="", excess=""),
        sentences.describe_recheck(0.35, 0.3, misses_slo=False, violations="14 k80 used, the quota is 12", excess=""),
        sentences.describe_recheck(0.35, 0.3, misses_slo=False, violations="", excess="first exceeded at 1.000 s"),
        sentences.describe_recheck(0.35, 0.3, misses_slo=False, violations="", excess=""),
    ],
    "describe_rejected_saving": [
        sentences.describe_rejected_saving("k80", "detect", 0.4, 0.35, after_loss=False),
        sentences.describe_rejected_saving("k80", "detect", 0.4, 0.35, after_loss=True),
        sentences.describe_rejected_saving("k80", "detect", math.inf, 0.35, after_loss=True),
    ],
    "describe_refusals": [sentences.describe_refusals(0.31, 1.4)],
    "describe_relative_cost": [
        sentences.describe_relative_cost(3.0, 2.0, misses_slo=False),
        sentences.describe_relative_cost(1.9, 2.0, misses_slo=True),
        sentences.describe_relative_cost(2.0, 2.0, misses_slo=False),
        sentences.describe_relative_cost(0.0, 0.0, misses_slo=False),
        sentences.describe_relative_cost(2.0, 0.0, misses_slo=False),
    ],
    "describe_relaxation": [
        sentences.describe_relaxation((0.4, 3.1), [], "detect", 0.04),
        sentences.describe_relaxation(None, [("k80", 14)], "detect", 0.04),
        sentences.describe_relaxation(None, [], "detect", -0.01),
    ],
    "describe_survival": [sentences.describe_survival("k80", "detect", 0.3, 0.35)],
    "describe_survival_goal": [sentences.describe_survival_goal()],
    "describe_failed_survival": [
        sentences.describe_failed_survival("detect", 0.4, 0.35),
        sentences.describe_failed_survival("detect", math.inf, 0.35),
    ],
    "describe_replica_loss": [
        sentences.describe_replica_loss("k80", "detect", 0.3, 0.35),
        sentences.describe_replica_loss("k80", "detect", 0.4, 0.35),
    ],
    "describe_replay_figure": [sentences.describe_replay_figure("calibrated")],
    "describe_replicas": [sentences.describe_replicas([("detect", 1, 2), ("classify", 3, 3)])],
    "describe_routes": [sentences.describe_routes(12_000, "cases", "runs/digits")],
    "describe_settings": [sentences.describe_settings(1.15, 60.0, has_floor=True)],
    "describe_shared_quotas": [sentences.describe_shared_quotas([("k80", 12), ("v100", 2)])],
    "describe_shedding": [sentences.describe_shedding()],
    "describe_slack": [sentences.describe_slack(0.012, "detect", 0.64)],
    "describe_spec_latency": [sentences.describe_spec_latency(["detect"], "core")],
    "describe_branch": [sentences.describe_branch("plates", 0.3, 0.612)],
    "describe_core_shortage": [sentences.describe_core_shortage(4.5, 2)],
    "describe_drawn_routes": [sentences.describe_drawn_routes(["face", "plates"])],
    "describe_other_hardware": [
        sentences.describe_other_hardware("l4", "this machine (cpu in the spec)"),
        sentences.describe_other_hardware("l4", "any node of the Ray cluster"),
    ],
    "describe_speed": [sentences.describe_speed([("detect", 1.1), ("classify", 0.98)])],
    "describe_stages": [sentences.describe_stages(1), sentences.describe_stages(4)],
    "describe_stopped_search": [sentences.describe_stopped_search(2.5e8)],
    "describe_unit_settings": [sentences.describe_unit_settings(8, 1.25, 5.0, 120.0)],
    "describe_unused_models": [sentences.describe_unused_models(["large"], "cases")],
}
FIXED = (
    sentences.PLOT_HINT,
    sentences.LIVE_REPLICAS,
    sentences.PLANNED_REPLICAS,
    sentences.NO_WINDOW_EXCEEDED,
    sentences.NO_SAVING,
    sentences.GRAPH_TITLE,
    sentences.BOTTLENECK,
    sentences.EDGE_WEIGHT,
)


TEXTS = [*(text for texts in PAGE.values() for text in texts), *FIXED]


def test_page_holds_every_sentence() -> None:
    """No function that returns a sentence is missing on the page."""
    functions = {name for name, _ in inspect.getmembers(sentences, inspect.isfunction) if name.startswith("describe_")}
    assert set(PAGE) == functions
    sys.stdout.write(
        "\n".join(f"{name.removeprefix('describe_'):22} {text}" for name, texts in PAGE.items() for text in texts)
    )


@pytest.mark.parametrize("text", TEXTS)
def test_sentence_is_short_and_complete(text: str) -> None:
    """A sentence is not empty, has no stray spaces, ends in a word or a closing sign, and has at most 25 words."""
    assert text == text.strip()
    assert re.search(r"[\w%)’]$", text)
    assert "None" not in text
    longest = max(len(re.findall(r"[A-Za-z]{2,}", clause)) for clause in re.split(r"[;.] ", text))
    assert longest <= MAX_WORDS


@pytest.mark.parametrize("text", TEXTS)
def test_sentence_has_no_private_words(text: str) -> None:
    """Programs report and reject; they do not tell, say or ask."""
    assert not NO_WORDS_OF_OURS.search(text.lower())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12.3 s"),
        (0.35, "350 ms"),
        (0.0042, "4.2 ms"),
        (0.00004, "40 µs"),
        (0.0, "0.0 ms"),
        (1000.0, "1,000.0 s"),
    ],
)
def test_duration_has_the_digits_that_matter(seconds: float, text: str) -> None:
    """A duration is in seconds from ten seconds on, in microseconds below 0.1 ms, and otherwise in milliseconds."""
    assert sentences.format_latency(seconds) == text


def test_nearly_all_is_not_all() -> None:
    """Neither a confidence nor a share is rounded up to 100 %."""
    text = sentences.describe_plan_on_samples(1.0, 0.35, 249, 250, confidence=0.999)
    assert "on 99.6 % of fresh samples; 99.9 % required" in text
    assert "on 100 % of fresh samples" in sentences.describe_plan_on_samples(1.0, 0.35, 24, 24)
    text = sentences.describe_plan_on_samples(1.0, 0.35, 59, 60, confidence=0.9)
    assert "on 98 % of fresh samples; 90 % required" in text
    assert sentences.describe_plan_on_samples(1.0, 0.35, 4, 4).endswith("and on 4 of 4 fresh samples")


def test_a_single_replica_is_counted_in_the_singular() -> None:
    """A replay that needs no second replica has one replica."""
    assert "with 1 replica (" in sentences.describe_attainment(1.0, 0.35, 0.05, "calibrated", (1, 1))
