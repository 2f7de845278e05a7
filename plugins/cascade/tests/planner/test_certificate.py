"""Laws of the certificate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from plugins.cascade.tests.runs import certify_in_sequence
from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner.certificate import (
    Rule,
    best_wager,
    betting_p_value,
    binomial_p_value,
    cases_needed,
    choose_rule,
    count_discordant,
    hoeffding_bentkus_p_value,
    p_value,
    per_cluster,
    smallest_certifiable,
    upper_bound,
)
from unfold_cascade.temporal.search.select import certify_sequence

DELTA, EPSILON, TRIALS = 0.1, 0.05, 1000
# Of 1,000 valid tests at level 0.1 more than this many err with a chance below 1e-4.
SLACK = int(binom.ppf(1 - 1e-4, TRIALS, DELTA))
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=60).map(np.array)
BETTING = Rule("betting", best_wager(np.repeat([-1.0, 0.0, 1.0], [6, 190, 4]), EPSILON))
RULES = (Rule("exact"), Rule("binomial"), BETTING, Rule("hoeffding-bentkus"))


def _boundary(rng: np.random.Generator, shape: tuple[int, ...], better: float = 0.0) -> FloatArray:
    """Draw differences with a mean of EPSILON exactly: worse with chance EPSILON + better."""
    u = rng.random(shape)
    return np.where(u < EPSILON + better, 1.0, np.where(u > 1 - better, -1.0, 0.0))


@given(st.integers(1, 400), st.data(), st.floats(0.001, 0.999))
def test_binomial_equals_scipy(n: int, data: st.DataObject, epsilon: float) -> None:
    """The p-value is that of scipy's exact test."""
    worse = data.draw(st.integers(0, n))
    expected = binomtest(worse, n, epsilon, alternative="less").pvalue
    assert binomial_p_value(worse, n, epsilon) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.method)
@pytest.mark.parametrize("better", [0.0, 0.1])
def test_false_certificates_are_rare(rule: Rule, better: float) -> None:
    """At the null boundary at most delta of the calibrations certify falsely."""
    rng = np.random.default_rng(11)
    false = sum(p_value(d, EPSILON, rule) <= DELTA for d in _boundary(rng, (TRIALS, 300), better))
    assert false <= SLACK


def test_choosing_the_rule_on_the_tuning_split_is_valid() -> None:
    """At the null boundary the rule that the tuning split prefers errs in at most delta of cases."""
    rng = np.random.default_rng(12)
    tune, certify = (_boundary(rng, (TRIALS, 200), 0.02) for _ in range(2))
    rules = [choose_rule(d, EPSILON, 200, DELTA) for d in tune]
    assert {"binomial", "exact"} <= {rule.method for rule in rules}
    tests = zip(certify, rules, strict=True)
    assert sum(p_value(d, EPSILON, rule) <= DELTA for d, rule in tests) <= SLACK


def test_fixed_sequence_is_valid() -> None:
    """With the first two points good and ten at the null boundary, a bad one is returned rarely."""
    rng = np.random.default_rng(13)
    false = 0
    for _ in range(TRIALS):
        d = np.concatenate((np.zeros((2, 200)), _boundary(rng, (10, 200))))
        last = certify_in_sequence(d, EPSILON, DELTA, Rule("binomial"))
        false += last is not None and last >= 2
    assert 0 < false <= SLACK


def test_fixed_sequence_stops_at_the_first_failure() -> None:
    """A good point behind a bad one is never reached."""
    good, bad = np.zeros(100), np.ones(100)
    rule = Rule("binomial")
    assert certify_in_sequence(np.stack((good, good, bad, good)), EPSILON, DELTA, rule) == 1
    assert certify_in_sequence(np.stack((bad, good)), EPSILON, DELTA, rule) is None
    assert certify_in_sequence(np.stack((good, good)), EPSILON, DELTA, [rule, BETTING]) == 1
    assert certify_in_sequence(np.zeros((1, cases_needed(EPSILON, DELTA) - 1)), EPSILON, DELTA, rule) is None


@given(st.integers(1, 200), st.floats(0.001, 0.5))
def test_more_clean_cases_certify_more(n: int, epsilon: float) -> None:
    """With no case made worse each p-value falls with n, and so does the smallest loss certified."""
    wager = best_wager(np.zeros(100), epsilon)
    assert binomial_p_value(0, n + 1, epsilon) < binomial_p_value(0, n, epsilon)
    assert betting_p_value(np.zeros(n + 1), epsilon, wager) <= betting_p_value(np.zeros(n), epsilon, wager)
    assert hoeffding_bentkus_p_value(np.zeros(n + 2), epsilon) <= hoeffding_bentkus_p_value(np.zeros(n), epsilon)
    assert smallest_certifiable(n + 1, DELTA) < smallest_certifiable(n, DELTA)


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_cases_needed_is_the_smallest_number(epsilon: float, delta: float) -> None:
    """That many clean cases certify epsilon, and one fewer does not."""
    n = cases_needed(epsilon, delta)
    assert binomial_p_value(0, n, epsilon) <= delta * (1 + 1e-9)
    assert n == 1 or binomial_p_value(0, n - 1, epsilon) > delta * (1 - 1e-9)
    assert smallest_certifiable(n, delta) <= epsilon * (1 + 1e-9)


@given(DIFFERENCES, st.sampled_from(RULES), st.floats(-0.9, 0.9))
def test_the_bound_is_where_rejection_ends(d: FloatArray, rule: Rule, epsilon: float) -> None:
    """The p-value falls as epsilon grows, so all losses above the bound are certified and none below."""
    bound = upper_bound(d, 1 - DELTA, rule)
    if epsilon > bound + 1e-6:
        assert p_value(d, epsilon, rule) <= DELTA
    if epsilon < bound - 1e-6:
        assert p_value(d, epsilon, rule) > DELTA


def test_bound_of_clean_cases_is_the_closed_form() -> None:
    """With no case made worse the binomial bound is 1 - delta^(1/n)."""
    assert upper_bound(np.zeros(500), 0.95, Rule("binomial")) == pytest.approx(smallest_certifiable(500, 0.05))


@given(DIFFERENCES, st.floats(-0.5, 0.5))
def test_the_wager_maximizes_growth(d: FloatArray, epsilon: float) -> None:
    """No wager on a grid grows the tuning wealth, with half a bad case added, faster than the one chosen."""
    chosen = best_wager(d, epsilon)

    def growth(wager: float) -> float:
        return float(np.log1p(wager * (epsilon - d)).sum() + 0.5 * math.log1p(wager * (epsilon - 1)))

    grid = np.linspace(0, 1 / (1 - epsilon), 50, endpoint=False)
    assert 0 <= chosen < 1 / (1 - epsilon)
    assert growth(chosen) >= max(growth(w) for w in grid.tolist()) - 1e-6


@pytest.mark.parametrize(("fraction", "method"), [(1.0, "exact"), (0.5, "betting")])
def test_cases_made_better_help(fraction: float, method: str) -> None:
    """As many cases are made better as worse: the exact test of whole differences certifies what the binomial cannot.

    Fractions, such as costs of errors, are left to betting.
    """
    d = fraction * np.repeat([-1.0, 0.0, 1.0], [40, 900, 60])
    rule = choose_rule(d, EPSILON * fraction, d.size, 0.05)
    assert rule.method == method
    assert p_value(d, EPSILON * fraction, rule) < 0.05 < p_value(d, EPSILON * fraction, Rule("binomial"))


def test_the_exact_test_certifies_more_often_than_betting() -> None:
    """Of 300 cascades that gain a point where four may be lost, the chosen test certifies a tenth more than betting."""
    rng = np.random.default_rng(18)
    drawn = rng.choice([1.0, -1.0, 0.0], p=[0.025, 0.035, 0.94], size=(300, 750))
    passed = np.array(
        [
            [p_value(d, 0.04, rule) <= 0.05 for rule in (choose_rule(d0, 0.04, 250, 0.05), betting)]
            for d0, d in zip(drawn[:, :500], drawn[:, 500:], strict=True)
            for betting in [Rule("betting", best_wager(d0, 0.04))]
        ]
    )
    assert passed[:, 0].mean() > passed[:, 1].mean() + 0.05


def test_fractions_are_rounded_up() -> None:
    """The exact test of means of clusters is that of larger differences, so it is still valid."""
    assert count_discordant(np.array([0.5, -0.5, -1.0, 0.0, 1.0])) == (2, 1)


def test_a_search_without_bad_cases_is_not_trusted_to_stay_without() -> None:
    """Where tuning cases are made better and none worse, the exact test is chosen: it also credits the better ones."""
    d = np.repeat([-1.0, 0.0], [12, 888])
    rule = choose_rule(d, 0.02, 540, 0.05)
    fresh = np.repeat([-1.0, 0.0, 1.0], [6, 527, 7])
    assert rule.method == "exact"
    assert p_value(fresh, 0.02, rule) < 0.05 < p_value(fresh, 0.02, Rule("binomial"))


def test_few_bad_cases_prefer_the_binomial() -> None:
    """Where no case differs the exact test needs the fewest cases, and is chosen."""
    assert choose_rule(np.zeros(300), EPSILON, 300, 0.05).method == "binomial"


@pytest.mark.parametrize("cap", [None, 20])
def test_clustered_false_certificates_are_rare(cap: int | None) -> None:
    """Where whole patients go wrong together, certificates by patient keep their level."""
    rng = np.random.default_rng(14)
    false = 0
    for _ in range(TRIALS):
        size = rng.integers(1, 21, 120)
        clusters = np.repeat(np.arange(120), size)
        d = (rng.random(120) < EPSILON)[clusters] * 1.0
        false += p_value(d, EPSILON, BETTING, clusters=clusters, cap=cap) <= DELTA
    assert false <= SLACK


def test_case_weight_and_patient_weight_differ() -> None:
    """A long patient made worse counts once by patient, and by its cases under a cap."""
    d, clusters = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 3])
    np.testing.assert_allclose(per_cluster(d, clusters), [0.0, 1.0])
    weighted = per_cluster(d, clusters, epsilon=0.75, cap=3)
    assert weighted.mean() == pytest.approx(0.75)


@given(DIFFERENCES, st.floats(-0.9, 0.9))
def test_capped_clusters_stay_bounded(d: FloatArray, epsilon: float) -> None:
    """Numbers per cluster stay in [-1, 1], so betting may use them."""
    clusters = np.arange(d.size) // 3
    for cap in (None, 3, 5):
        assert (np.abs(per_cluster(d, clusters, epsilon=epsilon, cap=cap)) <= 1 + 1e-12).all()


def test_invalid_arguments_are_errors() -> None:
    """A wager out of bounds, a difference out of bounds, a cluster above the cap: each is an error."""
    d, clusters = np.zeros(4), np.array([0, 0, 0, 1])
    with pytest.raises(ValueError, match="wager"):
        betting_p_value(d, EPSILON, 1.2)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        betting_p_value(np.array([1.5]), EPSILON, 0.5)
    with pytest.raises(ValueError, match="cap of 2"):
        per_cluster(d, clusters, cap=2)
    with pytest.raises(ValueError, match="betting only"):
        p_value(d, EPSILON, Rule("binomial"), clusters=clusters, cap=3)


def _patients(rng: np.random.Generator, patients: int, mean: float) -> tuple[IntArray, FloatArray]:
    """Draw hours of patients: (n,) patient and (n,) difference; a patient's hours go mostly the same way."""
    entity = np.repeat(np.arange(patients), rng.integers(5, 40, patients))
    worse = rng.beta(0.2 * mean / (1 - mean), 0.2, patients)
    return entity, (rng.random(len(entity)) < worse[entity]).astype(np.float64)


@pytest.mark.e2e
def test_clustered_guarantees_hold_at_their_confidence() -> None:
    """A cascade on the verge is certified in at most delta of 300 calibrations by patient, by hour far more often."""
    trials, verge = 300, EPSILON + 1e-3
    rng = np.random.default_rng(17)
    broken = {"patient": 0, "hour": 0}
    for _ in range(trials):
        means = (1e-4, verge, verge, verge)
        drawn = [[_patients(rng, 80, mean) for mean in means] for _ in range(2)]
        before, after = (np.array([per_cluster(d, entity) for entity, d in part]) for part in drawn)
        tests = certify_sequence(np.array([4.0, 3.0, 2.0, 1.0]), before, after, EPSILON, DELTA)
        tested, last = tests.order, tests.last_certified
        broken["patient"] += last is not None and tested[last] > 0
        hours = [
            p_value(d, EPSILON, choose_rule(d0, EPSILON, len(d), DELTA)) for (_, d0), (_, d) in zip(*drawn, strict=True)
        ]
        broken["hour"] += any(p <= DELTA for p in hours[1:])
    assert broken["patient"] <= binom.ppf(1 - 1e-4, trials, DELTA)
    assert broken["hour"] > binom.ppf(1 - 1e-4, trials, DELTA)
