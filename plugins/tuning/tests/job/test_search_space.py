"""Search spaces: ranges, constants, lists and conditions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tuning_runs import SPEC, load_spec

from unfold_tuning.job.build import build_trainable
from unfold_tuning.job.search_space import LogIntegerRange, sample_bracket_configs
from unfoldkit.api import UnfoldError


def draw(space: str, count: int = 300) -> list[dict[str, Any]]:
    """Draw configurations of a space as a spec writes it."""
    spec = load_spec(SPEC.replace("{ceiling: {uniform: [0, 1]}}", space))
    assert spec.trainable is not None
    return sample_bracket_configs(build_trainable(spec.trainable).space, 7, 0, count)


def test_bare_values_are_constants_and_bare_lists_choices() -> None:
    """A number, a string and a truth value arrive as they are, a list as one of its values, a nested list as a list."""
    configs = draw(
        "{epochs: 3, name: relu, nesterov: true, width: [16, 32], layers: [[64], [64, 32]], k: {value: [1, 2]}}"
    )
    assert all(config["epochs"] == 3 and config["name"] == "relu" and config["nesterov"] is True for config in configs)
    assert {config["width"] for config in configs} == {16, 32}
    assert {type(config[name]) for config in configs for name in ("epochs", "width")} == {int}
    assert Counter(str(config["layers"]) for config in configs).keys() == {"[64]", "[64, 32]"}
    assert all(config["k"] == [1, 2] for config in configs)


def test_constants_and_conditions_change_no_other_draw() -> None:
    """A constant draws nothing, and what a condition leaves out was drawn: the other values stay the same."""
    plain = draw("{a: {uniform: [0, 1]}, b: {log: [0.1, 1]}, c: [1, 2]}")
    more = draw("{k: 1, a: {uniform: [0, 1]}, b: {log: [0.1, 1], when: {c: 2}}, c: [1, 2]}")
    assert [config["a"] for config in plain] == [config["a"] for config in more]
    assert [config["b"] for config in plain if config["c"] == 2] == [config["b"] for config in more if "b" in config]
    assert all(("b" in config) == (config["c"] == 2) for config in more)


def test_conditions_form_chains_and_admit_lists() -> None:
    """What depends on a dimension that is left out is left out; a condition admits one value or several."""
    configs = draw(
        "{rate: {log: [0.001, 1], when: {kind: [warm, cosine]}}, "
        "kind: {choice: [warm, cosine, none], when: {opt: sgd}}, opt: [sgd, adam]}"
    )
    for config in configs:
        assert ("kind" in config) == (config["opt"] == "sgd")
        assert ("rate" in config) == (config.get("kind") in ("warm", "cosine"))
    assert {tuple(sorted(config)) for config in configs} == {("opt",), ("kind", "opt"), ("kind", "opt", "rate")}


def test_a_condition_may_name_a_list_or_a_truth_value() -> None:
    """Lists compare as lists, and true is not 1."""
    configs = draw("{layers: [[64], [64, 32]], drop: {uniform: [0, 1], when: {layers: [64, 32]}}}")
    assert all(("drop" in config) == (config["layers"] == [64, 32]) for config in configs)
    configs = draw("{n: {int: [1, 4]}, x: {uniform: [0, 1], when: {n: [3, 4]}}}")
    assert all(("x" in config) == (config["n"] >= 3) for config in configs)
    configs = draw("{n: {log_int: [1, 8]}, x: {uniform: [0, 1], when: {n: [1, 2]}}}")
    assert all(("x" in config) == (config["n"] <= 2) for config in configs)
    configs = draw("{flag: [true, false], x: {uniform: [0, 1], when: {flag: true}}}")
    assert all(("x" in config) == config["flag"] for config in configs)


@pytest.mark.parametrize(
    ("dimension", "hint"),
    [
        ("{type: float, low: 0.001, high: 0.1, log: true}", r"{log: \[0.001, 0.1\]}"),  # Optuna
        ("{distribution: q_log_uniform_values, min: 1.5, max: 9.0}", r"{log: \[1.5, 9.0\]}"),  # W&B
        ("{min: 1, max: 3}", r"{int: \[1, 3\]}"),
        ("{values: [1, 2]}", r"\[1, 2\]"),
        ("{loguniform: [0.001, 1]}", r"{log: \[0.001, 1\]}"),  # Ray Tune
        ("{q_log_uniform: [0.001, 1, 0.1]}", r"{log: \[0.001, 1\]}"),
        ("{randint: [1, 9]}", r"{int: \[1, 9\]}"),
        ("{_type: uniform, _value: [0, 1]}", r"{uniform: \[0, 1\]}"),  # NNI
        ("{_type: choice, _value: [a, b]}", r"\['a', 'b'\]"),
        ("{name: x, type: range, bounds: [1, 8], log_scale: true}", r"{log_int: \[1, 8\]}"),  # Ax
        ("{type: uniform_float, lower: 0, upper: 1}", r"{uniform: \[0, 1\]}"),  # ConfigSpace
    ],
)
def test_dimensions_of_other_tools_are_rejected_with_their_form_here(dimension: str, hint: str) -> None:
    """The hint of an unknown key led from ``values`` to ``value``, which gives every trial the whole list."""
    with pytest.raises(UnfoldError, match=rf"trainable\.space\.x: .* another tool .*\(write {hint}\)"):
        draw(f"{{x: {dimension}}}")


def test_a_choice_may_be_nothing() -> None:
    """Estimators take ``None`` for no limit; a key without a value is an error all the same."""
    configs = draw("{depth: [null, 3], x: {uniform: [0, 1], when: {depth: null}}}")
    assert {config["depth"] for config in configs} == {None, 3}
    assert all(("x" in config) == (config["depth"] is None) for config in configs)


def test_log_integers_follow_the_logarithm() -> None:
    """Each octave is about equally likely, and both bounds occur."""
    rng = np.random.default_rng(1)
    drawn = [LogIntegerRange(1, 64).sample(rng) for _ in range(6000)]
    assert min(drawn) == 1
    assert max(drawn) == 64
    octaves = Counter(int(np.log2(value)) for value in drawn if 2 <= value < 64)
    assert max(octaves.values()) < 1.3 * min(octaves.values())


@pytest.mark.parametrize(
    "space",
    [
        "{x: null}",
        "{x: {int: [0, 100000000000000000000]}}",
        "{x: {uniform: [-1.0e+308, 1.0e+308]}}",
        "{x: {value: 1, when: {y: true}}, y: [1, 2]}",
        "{x: {value: 1, when: {y: 0.5}}, y: {uniform: [0, 1]}}",
        "{x: {when: {y: 1}}}",
        "{x: {value: 1, when: {x: 1}}}",
    ],
)
def test_nonsense_is_rejected(space: str) -> None:
    """A dimension without values, or one that depends on itself, is an error of its key."""
    with pytest.raises(UnfoldError, match=r"trainable\.space\.x"):
        draw(space)
