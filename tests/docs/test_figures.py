"""Figures in prose are those that the benchmarks stored."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, CLAIMS = "README.md", "docs/explanation/claims.md"
TUNING, GATES = "docs/explanation/tuning-plans.md", "docs/explanation/exact-gates.md"
FIGURES = [
    (README, "cascade-digits", "{saving:.1f}x fewer operations"),
    (README, "cascade-digits", "{loss_points:.2f} points lost, at most {certified_loss_points:.0f} certified"),
    (README, "pipeline-plan", "{coarse_peak_ratio_max:.1f}x cheaper than coarse-grained planning"),
    (README, "pipeline-plan", "{coarse_peak_ratio_median:.1f}x in the median ([{points} points]"),
    (README, "tuning-plan", "{static_ratio_tight_max:.1f}x cheaper than the best static cluster"),
    (README, "tuning-replay", "{cost_ratio_asha:.2f} of the dollars of Ray Tune's ASHA"),
    (README, "tuning-replay", "in total, {cost_ratio_asha_median:.2f} in the median"),
    (README, "placement-replay", "{openb_pods:,} pods replayed in {openb_seconds:.1f} s"),
    (README, "placement-replay", "{policy_lines_median:.0f} lines in the median"),
    (README, "supernet-switch", "12 models in {weights_ratio_twelve:.2f} of their memory"),
    (README, "supernet-serve", "{attainment_ratio_measured_median:.1f}x the attainment of the best fixed model"),
    (CLAIMS, "cascade-digits", "{saving:.1f}x fewer operations, {loss_points:.2f} points lost"),
    (CLAIMS, "cascade-digits", "{saving_min:.1f}x to 18.3x, worst loss {loss_points_max:.2f} points"),
    (CLAIMS, "tuning-plan", "{static_ratio_tight:.1f}x at tight deadlines, {static_ratio_tight_max:.1f}x at most"),
    (CLAIMS, "tuning-plan", "{on_time_seen:.1%} of the promises of at most 97% were kept"),
    (CLAIMS, "tuning-plan", "from {on_time_seen_min:.1%} to {on_time_seen_max:.1%}"),
    (CLAIMS, "pipeline-plan", "{coarse_peak_ratio_max:.1f}x at most, {coarse_peak_ratio_median:.1f}x in the median"),
    (CLAIMS, "tuner", "{equal_miss_cost_ratio_coarse_geomean:.2f}x lower cost at equal misses"),
    (CLAIMS, "tuner", "{equal_miss_cost_ratio_geomean:.2f}x lower than the best of three others"),
    (CLAIMS, "tuner", "over the {equal_miss_cases} of {cases} cases"),
    (CLAIMS, "tuner", "choice of wait the ratio is {equal_miss_cost_ratio_any_hold_geomean:.2f}x"),
    (CLAIMS, "tuner", "{equal_miss_cases_ray_serve} cases and costs {equal_miss_cost_ratio_ray_serve_geomean:.2f}x"),
    (CLAIMS, "tuner", "Knative's in {equal_miss_cases_knative}, {equal_miss_cost_ratio_knative_geomean:.2f}x"),
    (CLAIMS, "placement-replay", "{policy_lines_median:.0f} lines in the median"),
    (CLAIMS, "placement-kubernetes", "bound {bound_p95_ms:.0f} ms (p95) after its resource appears"),
    (CLAIMS, "placement-kubernetes", "of {gang_trials} competing pairs of gangs"),
    (CLAIMS, "fastswitch", "{latency_saving_mobilenetv3_19_2:.1%} at 19.2 GB/s"),
    (CLAIMS, "fastswitch", "to {latency_saving_mobilenetv3_1:.0%} at 1 GB/s"),
    (CLAIMS, "fastswitch", "{traffic_saving_mobilenetv3:.0%} less off-chip traffic for MobileNetV3"),
    (CLAIMS, "fastswitch", "MobileNetV3, {traffic_saving_resnet50:.0%} for ResNet-50"),
    (CLAIMS, "fastswitch", "layer by layer; {latency_saving_mobilenetv3_4:.0%} at 4 GB/s"),
    (CLAIMS, "fastswitch", "{latency_saving_fair_mobilenetv3_2:.0%} at 2 and {latency_saving_fair_mobilenetv3_1:.0%}"),
    (CLAIMS, "supernet-train", "{compound_time_ratio:.2f} of the processor time, {shrinking_points:.1f} points more"),
    (CLAIMS, "supernet-train", "{compound_work_ratio:.2f} of the operations of progressive shrinking"),
    (CLAIMS, "supernet-serve", "{accuracy_gain_points_measured:.1f} points at most in real time"),
    (CLAIMS, "supernet-serve", "in real time, {accuracy_gain_points_measured_median:.1f} in the median[^11]"),
    (CLAIMS, "supernet-serve", "{attainment_ratio_measured:.1f}x at most in real time"),
    (CLAIMS, "supernet-serve", "in real time, {attainment_ratio_measured_median:.1f}x in the median[^12]"),
    (CLAIMS, "supernet-serve", "At most {accuracy_gain_points:.1f} points in simulation"),
    (CLAIMS, "supernet-serve", "in simulation, {accuracy_gain_points_median:.1f} in the median"),
    (CLAIMS, "supernet-serve", "0.1 points of accuracy {attainment_ratio_near_measured:.1f}x at most"),
    (CLAIMS, "supernet-serve", "members that shed, {attainment_ratio_shedding_measured:.1f}x at most"),
    (CLAIMS, "supernet-serve", "In simulation {attainment_ratio:.1f}x at most and {attainment_ratio_median:.1f}x in"),
    (
        CLAIMS,
        "tuning-promise",
        "{seen_percent_105:.0f}, {seen_percent_130:.0f} and {seen_percent_200:.0f}% of {runs} runs; 17 surrogate tasks",
    ),
    (CLAIMS, "tuning-promise", "which is {soonest_ratio:.2f} times that of a planner"),
    (CLAIMS, "tuning-promise", "{cost_ratio_105:.2f}, {cost_ratio_130:.2f} and {cost_ratio_200:.2f} times the dollars"),
    (CLAIMS, "tuning-spot", "{on_time_percent_min:.1f}% in the worst cell, {cost_ratio:.2f}x of the same plan's"),
    (CLAIMS, "tuning-spot", "the dollars are {cost_ratio_max:.2f} times hindsight's"),
    (CLAIMS, "tuning-chaos", "{aborted} of {runs:,} aborted, none above its cap"),
    (CLAIMS, "tuning-chaos", "In {stopped_by_cap} of the runs the cap was too low"),
    (TUNING, "tuning-promise", "they are {cost_ratio_105:.2f}, {cost_ratio_130:.2f} and {cost_ratio_200:.2f} times"),
    (TUNING, "tuning-replay", "for {cost_ratio_asha:.2f} of its dollars in total and {cost_ratio_asha_median:.2f} in"),
    (TUNING, "tuning-replay", "ratio is {cost_ratio_asha_promised:.2f} in total and"),
    (TUNING, "tuning-replay", "in total and {cost_ratio_asha_promised_median:.2f} in the median; of the two"),
    (TUNING, "tuning-replay", "costs {cost_ratio_asha_promised_worst_task:.2f} times ASHA's dollars"),
    (TUNING, "tuning-replay", "the ratio is {cost_ratio_asha_refused:.1f} and {cost_ratio_asha_refused_median:.1f}"),
    (GATES, "cascade-gates", "greedy costs {greedy_gap_percent:.1f}% more on average"),
    (GATES, "cascade-gates", "{greedy_gap_percent_max:.0f}% at worst. In {greedy_missed_percent:.0f}% of the cases"),
    (GATES, "cascade-gates", "the mean gap is {greedy_gap_chain_chosen_percent:.2f}%"),
    ("docs/how-to/run-a-service.md", "serve-overload", "{refusal_us:.1f} µs in the median"),
    ("docs/how-to/run-a-service.md", "serve-overload", "{goodput_ratio:.2f} of the peak remains as goodput"),
    ("docs/how-to/run-a-policy-on-kubernetes.md", "placement-kubernetes", "{claimed_pods_per_s:.0f} pods/s instead of"),
    ("docs/how-to/run-a-policy-on-kubernetes.md", "placement-kubernetes", "pods/s instead of {plain_pods_per_s:.0f}."),
]
"""Page, benchmark, and words of the page with the benchmark's metrics in braces."""


@cache
def words_of(page: str) -> str:
    """Return the text of a page on one line, with percentages as Python writes them."""
    return " ".join((ROOT / page).read_text("utf-8").split()).replace(" %", "%")


@cache
def metrics_of(benchmark: str) -> dict[str, float]:
    """Return the stored metrics; a point in a name, which a format would follow, is written as ``_``."""
    stored = json.loads((ROOT / f"benchmarks/results/{benchmark}.json").read_text("utf-8"))["metrics"]
    return {name.replace(".", "_"): value for name, value in stored.items()}


@pytest.mark.parametrize(("page", "benchmark", "words"), FIGURES)
def test_figures_in_prose_are_the_stored_ones(page: str, benchmark: str, words: str) -> None:
    """A page quotes a benchmark as its last stored run reads."""
    assert words.format(**metrics_of(benchmark)) in words_of(page)


def test_no_page_installs_from_an_index() -> None:
    """The project is in no index yet, so that its pages install from a checkout."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert [page.name for page in pages if "pip install 'unfoldkit" in page.read_text("utf-8")] == []
