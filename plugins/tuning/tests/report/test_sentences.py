"""Every sentence of reports and runs, printed on one page: ``pytest -s`` shows it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest

from unfold_tuning.executor import messages
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.profile import Machine
from unfold_tuning.report import sentences

MACHINE = Machine("g5.12xlarge", 4, 5.67, price_source="aws 2026-11-20")
SPOT = Machine("g6.12xlarge", 4, 1.85, price_source="aws 2026-11-20", market="spot")
SAMPLES: dict[Callable[..., str], list[tuple[object, ...]]] = {
    sentences.name_machine: [(MACHINE,), (SPOT,)],
    sentences.write_plan_headline: [(0.73, MACHINE, [2, 2, 1], 420.0, 0.97), (9.0, SPOT, range(9), 420.0, 0.97)],
    sentences.write_missed_deadline_headline: [(120.0, 0.95, 361.0)],
    sentences.write_over_budget_headline: [(420.0, 0.5, 0.95)],
    sentences.write_small_budget_headline: [(0.5, 0.95)],
    sentences.write_profile_headline: [(0.05,)],
    sentences.write_stopped_headline: [(4.9, messages.describe_budget_stop(5.0))],
    sentences.write_no_winner_headline: [()],
    sentences.write_winner_headline: [
        ("accuracy", 0.97, 3, 300.0, 0.7, None),
        ("accuracy", 0.97, 3, 500.0, 0.7, 420.0),
    ],
    sentences.describe_profile_cost: [(0.0016, 0.0013)],
    sentences.describe_cap: [(1.2, None), (1.2, 2.0)],
    sentences.describe_slack: [(12.0, 0.95)],
    sentences.describe_cheaper_plan: [(0.7, 0.89, 438.0)],
    sentences.describe_earliest: [(360.0, 306.0)],
    sentences.describe_frontier: [({"$2.60": "6.0 min", "$0.85": "6.7 min"},)],
    sentences.describe_asha: [(2, 0.6, (0.5, 0.8), 400.0, 0.95), (1, 0.6, (0.5, 0.8), 400.0, 0.95)],
    sentences.describe_asha_saving: [(None,), (0.1,)],
    sentences.describe_late_asha: [(8, 460.0, 0.95)],
    sentences.describe_sensitivity: [([("iterations 3 % slower", 0.955), ("provisioning twice as long", 0.717)],)],
    sentences.describe_released_cost: [(1.2,)],
    sentences.describe_total_loss: [(0.766,)],
    sentences.describe_thrifty: [(0.2, 12.3)],
    sentences.describe_on_demand_plan: [(4.65,)],
    sentences.describe_stage: [(1, 32, 1), (2, 1, 4)],
    sentences.describe_market: [(1, 600.0, 0), (2, 3 * 86400.0, 12)],
    sentences.describe_unknown_market: [(0.2,)],
    sentences.describe_coarse_billing: [(3600.0,)],
    sentences.describe_lower_bound: [(0.7,)],
    sentences.describe_gap: [(3.4,)],
    sentences.describe_instance_option: [(MACHINE, 0.73), (SPOT, None)],
    sentences.describe_prices: [([MACHINE, SPOT],)],
    sentences.describe_reduced_samples: [(4000,)],
    sentences.ask_for_plan: [(420.0, None, 0.95), (None, 5.0, 0.95)],
    sentences.describe_goal: [(420.0, None, 0.95), (None, 5.0, 0.95)],
    sentences.describe_longest_stage: [(3, 1, 18, 4, 105.0, 306.0)],
    sentences.describe_fastest: [(306.0, 2.6)],
    sentences.describe_best_probability: [(0.4,)],
    sentences.describe_relaxed_deadline: [(361.0, 2.6, MACHINE)],
    sentences.describe_binding_budget: [(0.73, 420.0)],
    sentences.describe_relaxed_budget: [(0.8, None, 0.5), (0.8, 600.0, 0.5)],
    sentences.describe_smallest_budget: [(0.58, 510.0)],
    sentences.describe_winner: [(3, 12, {"learning_rate": 0.123456, "max_depth": 3})],
    sentences.describe_minimized: [("loss",)],
    sentences.describe_target: [(0.95,)],
    sentences.describe_early_stops: [([2, 5], 4)],
    sentences.describe_diverged: [([1, 4],)],
    sentences.describe_failed: [(list(range(1, 12)), "RuntimeError: too low")],
    sentences.describe_lost_nodes: [(1,)],
    sentences.describe_offers: [({"g6 spot": False, "g5 on-demand": True},), ({"g6 spot": False},)],
    sentences.describe_profiled_trials: [(8, 12)],
    sentences.describe_warm_up: [(40.0,)],
    sentences.describe_posterior: [(0, 8, "2 x Xeon"), (17, 8, ""), (20, 8, "g5.xlarge")],
    sentences.describe_unmeasured_spans: [((8,), "p3.8xlarge"), ((8, 16), "p3.8xlarge")],
    sentences.describe_failed_configs: [(2, "RuntimeError: too low")],
    sentences.describe_stored_measurements: [(1,)],
    sentences.describe_resumed_measurements: [(1,), (12,)],
    sentences.describe_other_measurements: [(1,), (12,)],
    sentences.list_trials: [([1, 2],)],
    messages.describe_late_finish: [(90.0, None), (90.0, 1.2)],
    messages.describe_growth: [(8, 1.2), (None, 0.0)],
    messages.describe_trim: [(0.5, 6, 1.2), (None, 0, 0.0)],
    messages.describe_stragglers: [([5, 9],)],
    messages.describe_straggler_option: [([5],)],
    messages.describe_stop: [(3, 0.97), (None, None)],
    messages.format_score: [(0.97,), (2.44e-5,)],
    messages.describe_lost_guarantee: [(90.0, 0.42)],
    messages.describe_missed_deadline: [()],
    messages.describe_replan: [("after stage 1", (Allocation(4, 1, 16), Allocation(2, 4, 2)))],
    messages.describe_early_release: [(1, 1, 2), (7, 2, 3)],
    messages.describe_budget_stop: [(5.0,)],
    messages.describe_slowdown: [(2, 3.96)],
    messages.describe_fallback: [(300.0,)],
    messages.describe_timeout: [(2.5,)],
    messages.describe_silence: [(6, 600.0, 42.0)],
    messages.describe_leftovers: [([],), (["i-0a1", "i-0b2"],)],
    messages.describe_spend: [(1.2, 5.0), (0.0, None)],
    messages.describe_progress: [(2, 3, 90.0, 1.2, 5.0), (1, 3, None, 0.0, None)],
}
PRIVATE_WORDS = re.compile(
    r"\b(told|tells?|says?|said|asks?|asked|whose?|whom|nobody|deals?|gangs?|luck|promised?|promises|soonest|dear(er)?"
    r"|rivals?|hits|pieces)\b",
    re.IGNORECASE,
)
MAX_WORDS = 25
PAGE = [(function, arguments) for function, samples in SAMPLES.items() for arguments in samples]


def _list_functions(module: ModuleType) -> set[Callable[..., str]]:
    functions = inspect.getmembers(module, inspect.isfunction)
    return {
        function for name, function in functions if function.__module__ == module.__name__ and not name.startswith("_")
    }


def test_a_small_loss_is_no_zero() -> None:
    """The headline of a run shows a loss of any size; accuracies keep four decimals."""
    texts = [
        sentences.write_winner_headline("loss", metric, 3, 60.0, 1.0, None)
        for metric in (2.44e-5, 0.0, 0.97, 12.5, -7e33)
    ]
    assert [text.split()[4] for text in texts] == ["2.44e-05", "0.0000", "0.9700", "12.5000", "-7e+33"]


def test_a_short_log_of_a_market_has_its_length() -> None:
    """A log of minutes is none of 0 days."""
    assert sentences.describe_market(1, 600.0, 0).startswith("modelled from the last 10.0 min of 1 zone, ")


def test_every_sentence_is_on_the_page() -> None:
    """Each public function of both modules has sample values above."""
    assert set(SAMPLES) == _list_functions(sentences) | _list_functions(messages)


@pytest.mark.parametrize(("function", "arguments"), PAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_sentences_are_short_and_plain(function: Callable[..., str], arguments: tuple[object, ...]) -> None:
    """A sentence has an end that is no separator, at most 25 words per part, and no word that only its authors know."""
    text = function(*arguments)
    print(text)  # noqa: T201 - the page
    assert re.fullmatch(r"\S.*[\w%$).?]", text)
    assert "  " not in text
    assert not PRIVATE_WORDS.search(text)
    assert all(len(part.split()) <= MAX_WORDS for part in re.split(r" · |; |: ", text))
