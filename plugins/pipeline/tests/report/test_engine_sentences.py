"""Every sentence of a report on LLM engines, with sample values: plain, short English."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace

import pytest

from plugins.pipeline.tests.report.test_sentences import MAX_WORDS, NO_WORDS_OF_OURS
from unfold_pipeline.engine.step_times.columns import TableEnd
from unfold_pipeline.engine.step_times.interval import build_interval
from unfold_pipeline.report.engines import sentences

ENDS = (
    TableEnd(operator="context attention", size="context", measured=16_384, needed=131_072),
    TableEnd(operator="generation attention", size="requests", measured=256, needed=257),
)
PAGE: dict[str, list[str]] = {
    "describe_fresh_share": [
        sentences.describe_fresh_share(14, 24, 0.41),
        sentences.describe_fresh_share(24, 24, 0.91),
    ],
    "describe_low_share": [sentences.describe_low_share("$8.00/h: 2 engines on 2 GPUs (h100)", 14, 24)],
    "describe_unbounded_wait": [sentences.describe_unbounded_wait(621.0)],
    "describe_window": [sentences.describe_window(1024, 40, 48), sentences.describe_window(1024, 40, 48, is_pool=True)],
    "describe_left_out": [sentences.describe_left_out(2, 198)],
    "describe_table_ends": [
        sentences.describe_table_ends(
            replace(build_interval("tables"), ends=ENDS[:1], decode_tokens=131_072), 300_000, 9
        ),
        sentences.describe_table_ends(replace(build_interval("tables"), ends=ENDS), 300_000, 257),
    ],
    "describe_running_stages": [sentences.describe_running_stages(("embed", "guard"), 2)],
    "describe_pools": [sentences.describe_pools(12.5, 1, 3, 8)],
    "describe_pool_transfer": [sentences.describe_pool_transfer(0.031, 25e9, 0.005, 327_680.0)],
    "describe_other_plan": [sentences.describe_other_plan(16.0, "4 × h100 tp1", 0.4, 0.021)],
    "describe_engines": [sentences.describe_engines(4, "h100", 1), sentences.describe_engines(4, "h100", 1, "decode")],
    "describe_no_pools": [
        sentences.describe_no_pools(is_complete=True),
        sentences.describe_no_pools(is_complete=False),
    ],
    "describe_pool_replay": [sentences.describe_pool_replay(0.995, "p99 TTFT ≤ 500 ms", 12.5)],
    "describe_pool_limits": [sentences.describe_pool_limits()],
    "describe_autoscaling": [sentences.describe_autoscaling(180.0)],
    "describe_replayed_engines": [sentences.describe_replayed_engines(3, "h100", 2, 4096, 256)],
    "describe_no_fixed_peak": [
        sentences.describe_no_fixed_peak(256, "tpot", 0.09),
        sentences.describe_no_fixed_peak(0, "ttft", 1.2),
    ],
    "describe_by_gpu": [sentences.describe_by_gpu(31.65, "h200", 2, 2)],
    "describe_calibration": [sentences.describe_calibration(None, None), sentences.describe_calibration(1.15, 180.0)],
    "describe_estimate": [
        sentences.describe_estimate(2, 2, "h100", 1),
        sentences.describe_estimate(2, 1, "h100", 1),
    ],
    "describe_pool_estimate": [sentences.describe_pool_estimate("1 × h100 tp1 for prefill", "2 × h100 tp1 for decode")],
    "describe_hand_over": [sentences.describe_hand_over(0, 60), sentences.describe_hand_over(2, 60)],
    "describe_pool_routing": [
        sentences.describe_pool_routing((1, 2), (1, 2)),
        sentences.describe_pool_routing((1, 2), (2, 2)),
    ],
    "describe_measured_interval": [sentences.describe_measured_interval(0.8, 1.25, 9, 12)],
    "describe_local_engines": [
        sentences.describe_local_engines(1, 1.2, 0),
        sentences.describe_local_engines(2, 1.2, 1),
    ],
    "describe_local_service": [
        sentences.describe_local_service(1, 1, "round_robin"),
        sentences.describe_local_service(2, 4, "least_tokens"),
    ],
    "describe_split": [sentences.describe_split(0.03, 0.4, 0.02)],
    "describe_scaled_estimate": [sentences.describe_scaled_estimate()],
    "describe_measured_replay": [
        sentences.describe_measured_replay(0.993, "p99 TTFT ≤ 500 ms", 2, 0),
        sentences.describe_measured_replay(0.9, "p99 TTFT ≤ 500 ms", 1, 3),
        sentences.describe_measured_replay(0.9, "p99 TTFT ≤ 500 ms", 2, 0, 1),
    ],
    "describe_prompts": [sentences.describe_prompts(0.004, 0.001), sentences.describe_prompts(0.004, 0.97)],
    "describe_routing": [
        sentences.describe_routing(2, 2, "round_robin"),
        sentences.describe_routing(1, 2, "least_tokens"),
    ],
    "describe_endpoint": [sentences.describe_endpoint("chat", 38, 38), sentences.describe_endpoint("chat", 38, 1)],
    "describe_endpoint_fit": [sentences.describe_endpoint_fit(0.07)],
    "describe_endpoint_front": [sentences.describe_endpoint_front(0.008)],
    "describe_contention": [sentences.describe_contention(2, 1.41, 1.2)],
    "describe_endpoint_range": [sentences.describe_endpoint_range(1_500, 16)],
    "describe_endpoint_steps": [sentences.describe_endpoint_steps(0.014, 180.0, 2_048, 0.19)],
    "describe_excluded": [sentences.describe_excluded("l4", 1, "tpot", 0.07)],
    "describe_front": [
        sentences.describe_front(0.008, 1.0),
        sentences.describe_front(0.008, 1.5),
        sentences.describe_front(0.0, 1.0),
    ],
    "describe_hindsight": [
        sentences.describe_hindsight(41.2, 47.5, 6.0, 180.0),
        sentences.describe_hindsight(41.2, 41.2, 6.0, 180.0),
    ],
    "describe_interval": [
        sentences.describe_interval("tables", 4, 0.64, 1.62, 0.9, "bf16"),
        sentences.describe_interval("roofline", 4, 0.64, 1.62, 0.9, "int4"),
        sentences.describe_interval("runs", 1, 0.82, 1.22, 0.9, "bf16"),
        sentences.describe_interval("endpoint", 1, 0.9, 1.1, 0.9, "fp8"),
    ],
    "describe_kv": [
        sentences.describe_kv(0.17, 0, 229_744, is_measured=False),
        sentences.describe_kv(0.99, 1, 229_744, is_measured=True),
    ],
    "describe_no_plan": [sentences.describe_no_plan("p99 TTFT ≤ 500 ms")],
    "describe_no_sure_plan": [sentences.describe_no_sure_plan("p99 TTFT ≤ 500 ms", 0.9)],
    "describe_nodes": [
        sentences.describe_nodes(1, "h100", 8, 6, 1),
        sentences.describe_nodes(1, "h100", 8, 7, 0),
        sentences.describe_nodes(2, "h100", 8, 16, 0),
    ],
    "describe_plan": [sentences.describe_plan(55.04, 3, 6, "h100"), sentences.describe_plan(1.86, 1, 1, "l40s")],
    "describe_prefix": [sentences.describe_prefix(0.84)],
    "describe_price_range": [sentences.describe_price_range(55.04, 110.08), sentences.describe_price_range(4.0, None)],
    "describe_profile_value": [
        sentences.describe_profile_value(55.04, 110.08, is_measured=False),
        sentences.describe_profile_value(55.04, 110.08, is_measured=True),
        sentences.describe_profile_value(55.04, 55.04, is_measured=False),
        sentences.describe_profile_value(55.04, 55.04, is_measured=True),
    ],
    "describe_recheck": [
        sentences.describe_recheck("p99 TTFT ≤ 500 ms", meets=True, excess=""),
        sentences.describe_recheck("p99 TTFT ≤ 500 ms", meets=False, excess=""),
        sentences.describe_recheck(
            "p99 TTFT ≤ 500 ms", meets=True, excess="9 input tokens in 1 s exceed the planned 8"
        ),
    ],
    "describe_large_requests": [
        sentences.describe_large_requests(10, 1500, 100_036, 0.41, (172.0, 6.88)),
        sentences.describe_large_requests(19, 1500, 100_036, 0.57, (None, 6.88)),
    ],
    "describe_refusal": [
        sentences.describe_refusal("h100", 2, 2, "ttft", 0.687),
        sentences.describe_refusal("h100", 2, 2, "ttft", 0.687, 4096),
    ],
    "describe_replay": [sentences.describe_replay(0.9937, "p99 TTFT ≤ 500 ms", 55.04, "fixed plan")],
    "describe_search": [sentences.describe_search(16, 139_022)],
    "describe_steps": [sentences.describe_steps(0.04, 25)],
    "describe_targets": [sentences.describe_targets(0.5, 0.05, float("inf"))],
    "describe_token_excess": [sentences.describe_token_excess("input", 1.0, 12_000, 9_000)],
    "describe_too_small": [sentences.describe_too_small([("h100", 1)])],
}


def test_every_sentence_is_on_the_page() -> None:
    """A sentence without a sample would not be read here."""
    functions = inspect.getmembers(sys.modules[sentences.__name__], inspect.isfunction)
    named = {name for name, function in functions if function.__module__ == sentences.__name__}
    assert {name for name in named if name.startswith("describe_")} == set(PAGE)


@pytest.mark.parametrize("name", sorted(PAGE))
def test_sentences_are_short_and_use_the_terms_of_the_field(name: str) -> None:
    """At most 25 words between stops, and none of the words that the vocabulary retired."""
    for text in [*PAGE[name], sentences.NO_PREFIX, sentences.UNPREDICTED]:
        assert not NO_WORDS_OF_OURS.search(text), text
        assert all(len(part.split()) <= MAX_WORDS for part in text.replace(";", ".").split(". ")), text
        assert "  " not in text
