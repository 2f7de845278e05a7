"""Laws of spaces and fronts, which need no torch."""

from __future__ import annotations

import itertools
import json
import math
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import make_run, make_space, parse_spec
from unfold_supernet.networks.space import count_attention_macs, count_macs, count_parameters, list_convolutions
from unfold_supernet.report.training import describe_gap
from unfold_supernet.schema.space import SpaceSpec
from unfold_supernet.study.family_layers import build_trained_family
from unfold_supernet.training.accuracy import compare_paired, evaluate_predictions, select_front
from unfold_supernet.verbs.train import train
from unfoldkit.api import UnfoldError, dump

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})
TOKENS = "data: {source: digits}\nspace: {form: transformer, stages: [{width: 8}]"
ECG = {"form": "conv1d", "stages": STAGES, "stem": {"kernel": 7, "stride": 2}, "kernel": (5,)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_a_front_is_surely_better_step_by_step(seed: int, count: int) -> None:
    """Each point of the front costs more than the one before it and is more accurate beyond the paired error."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 400)
    said = [np.where(rng.random(400) < share, y, (y + 1) % 3) for share in rng.uniform(0.5, 1, count)]
    found = [evaluate_predictions(one, y, 3) for one in said]
    costs = rng.random(count)
    front = select_front(list(costs), found)
    for one, other in itertools.pairwise(front):
        gap = compare_paired(found[other].correct, found[one].correct)
        assert costs[other] >= costs[one]
        assert gap.points > 1.96 * gap.error
    assert front[0] == int(np.argmin(costs))


@pytest.mark.parametrize(("better", "worse", "sure"), [(5, 0, False), (6, 0, True), (8, 1, True), (7, 1, False)])
def test_a_few_rows_do_not_tell_nets_apart(better: int, worse: int, sure: bool) -> None:
    """Nets that differ on a few rows are told apart as often as the exact test of McNemar does, whatever the rows."""
    for rows in (60, 5000):
        one, other = np.ones(rows, bool), np.ones(rows, bool)
        other[:better] = False
        one[better : better + worse] = False
        chance = 2 * sum(math.comb(better + worse, k) for k in range(worse + 1)) / 2 ** (better + worse)
        assert (
            compare_paired(one, other).is_significant
            is compare_paired(other, one).is_significant
            is sure
            is (chance < 0.05)
        )
    assert not compare_paired(one, one).is_significant


@pytest.mark.parametrize(("right", "rows"), [(360, 360), (359, 360), (0, 20), (180, 360), (8700, 9000)])
def test_an_interval_holds_what_the_answers_allow(right: int, rows: int) -> None:
    """The interval goes as far as the shares that leave so many right answers no surprise, all or none included."""
    found = evaluate_predictions(np.zeros(rows, np.int64), (np.arange(rows) >= right).astype(np.int64), 2)
    low, high = proportion(right, rows)
    assert found.half_width == pytest.approx(max(high - right / rows, right / rows - low) * 100, rel=1e-6)
    assert found.half_width > 0


def proportion(right: int, rows: int) -> tuple[float, float]:
    """Return the shares that lie 1.96 of their own deviations away from what was seen, found by halving."""
    seen, ends = right / rows, list[float]()
    for side in (0.0, 1.0):
        inner, outer = seen, side
        for _ in range(200):
            middle = (inner + outer) / 2
            far = abs(seen - middle) > 1.96 * math.sqrt(middle * (1 - middle) / rows)
            inner, outer = (inner, middle) if far else (middle, outer)
        ends.append(outer)
    return ends[0], ends[1]


def test_work_is_that_of_the_study() -> None:
    """The beat nets have the operations and parameters that the study of the recipe counted."""
    given_ = SpaceSpec.model_validate({**ECG, "expand": (0.25, 0.5, 0.5, 0.75, 0.75, 1.0), "depth": (1, 1, 2, 2, 3, 3)})
    space = make_space(given_, 1, (128,), 2, 4)
    counted = {one.name: count_macs(space, one) for one in space.subnets}
    thousands = {name: round(count / 1000) for name, count in counted.items()}
    assert thousands == {
        "0.25x1k5": 22, "0.5x1k5": 86, "0.5x2k5": 229, "0.75x2k5": 512, "0.75x3k5": 835, "1x3k5": 1482,
    }  # fmt: skip
    assert count_parameters(space, space.largest) == pytest.approx(68_000, rel=0.02)


def test_independent_lists_are_multiplied() -> None:
    """Every combination is a subnet, once; compound lists go together."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3, 5)}
    for coupling, count in (("independent", 8), ("compound", 2)):
        given_ = SpaceSpec.model_validate({"stages": STAGES, **lists, "coupling": coupling})
        assert len(make_space(given_, 1, (8, 8), 0, 10).subnets) == count


def test_the_chip_sees_the_same_work() -> None:
    """As layer tables, the nets have the operations that the space counts."""
    given_ = SpaceSpec.model_validate({**ECG, "expand": (0.5, 1.0), "depth": (1, 2)})
    space = make_space(given_, 1, (128,), 2, 4)
    family = build_trained_family("f", space, [90.0, 95.0])
    assert [int(net.macs.sum()) for net in family.subnets] == [count_macs(space, one) for one in space.subnets]
    assert len(family.layers) == len(list_convolutions(space, space.largest)) + 1


def test_the_chip_leaves_out_products_of_activations_only() -> None:
    """As layer tables, transformers have the operations that the space counts, but for attention's two products."""
    lists = {"attention": {"patch": 2, "width": 12, "heads": 3}, "expand": (0.25, 1.0), "depth": (1, 3)}
    given_ = SpaceSpec.model_validate({"form": "transformer", "stages": STAGES[:1], "resolution": (0.5, 1.0), **lists})
    space = make_space(given_, 3, (9, 8), 2, 4)
    family = build_trained_family("f", space, [90.0, 95.0])
    by_name = {net.name: int(net.macs.sum()) for net in family.subnets}
    assert by_name == {one.name: count_macs(space, one) - count_attention_macs(space, one) for one in space.subnets}
    assert count_attention_macs(space, space.subnets[0]) == 2 * 4**2 * 12
    share = max(count_attention_macs(space, one) / count_macs(space, one) for one in space.subnets)
    assert f"up to {share:.0%}" in family.about


def test_a_patch_must_fit_the_smallest_input() -> None:
    """A patch larger than the smallest input is told with its key, once the size of the input is known."""
    lists = {"form": "transformer", "stages": STAGES, "attention": {"patch": 5}, "resolution": (1.0, 0.5)}
    with pytest.raises(UnfoldError, match=r"space\.attention\.patch.*at most 4"):
        make_space(SpaceSpec.model_validate(lists), 1, (9,), 0, 2)


def test_missing_torch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, training is refused with the extra to install; nothing is imported before."""
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    text = "version: 1\nkind: supernet\nname: t\ndata: {source: digits}\nspace: {stages: [{width: 8}]}\n"
    with pytest.raises(UnfoldError, match=r"pip install '\.\[torch\]'"):
        train(parse_spec(text), make_run(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data: {source: mitbih}\nspace: {form: conv1d, stages: [{width: 8}]}", "not named"),
        ("data: {source: digits}\nspace: {form: conv1d, stages: [{width: 8}]}", "conv2d"),
        ("space: {stages: [{width: 8}]}", "needs data"),
        ("data: {source: digits}\nspace: {stages: [{width: 8}], kernel: [4]}", "odd"),
        ("data: {source: digits}\nspace: {stages: [{width: 8}], expand: [0.5, 1], depth: [1, 2, 3]}", "equal length"),
        (f"{TOKENS}, attention: {{width: 30, heads: 4}}}}", "heads: 2, or another divisor of 30"),
        (f"{TOKENS}, attention: {{patch: 5}}, resolution: [0.5]}}", "at most 4"),
        (f"{TOKENS}, kernel: [5]}}", "a transformer has no kernel"),
        (f"{TOKENS}, stem: {{stride: 2}}}}", "a transformer has no stem"),
        (
            "data: {source: digits}\nspace: {stages: [{width: 8}], attention: {width: 8, heads: 2}}",
            "conv2d has no attention",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(change: str, told: str) -> None:
    """Parts of a spec that contradict each other are refused in words."""
    with pytest.raises(UnfoldError, match=told):
        parse_spec(f"version: 1\nkind: supernet\nname: t\n{change}\n")


@pytest.mark.parametrize("change", [f"{TOKENS}}}", "data: {source: digits}\nspace: {stages: [{width: 8}]}"])
def test_a_run_is_answered_by_its_own_spec(change: str) -> None:
    """A spec with every default written out, as a run keeps it, is as valid as the short one."""
    spec = parse_spec(f"version: 1\nkind: supernet\nname: t\n{change}\n")
    assert parse_spec(json.dumps(dump(spec))) == spec


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ((0, 0), "no weight-sharing gap"),
        ((1, 0), "no significant weight-sharing gap (2.00 points, paired error 1.98)"),
        ((0, 20), "weight-sharing gap of at most 40.00 points"),
        ((30, 20), "weight-sharing gap of at most 60.00 points"),
    ],
)
def test_a_cost_by_chance_is_no_cost(worse: tuple[int, int], told: str) -> None:
    """Of sharing a cost is told as one only where a net alone is surely better; else as what it may be by chance."""
    alone = np.ones(50, bool)
    gaps = [compare_paired(alone, np.arange(50) >= count) for count in worse]
    assert describe_gap(gaps) == told
