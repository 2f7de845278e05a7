"""What is written reads back: YAML, reports, hashes."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from unfoldkit.figure_data import Figure, Series, SeriesStyle
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.report import Column, Metric, Report, Table, Verdict, from_data, to_data
from unfoldkit.run_directory import fingerprint
from unfoldkit.spec.yaml_reader import parse

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
TRAPS = st.sampled_from(
    [
        "no",
        "010",
        "1e3",
        "~",
        "",
        " ",
        "null",
        "0x1F",
        ".inf",
        "1_000",
        "12:30:45",
        "2024-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "a #b",
        "#",
        "%",
        "@",
        "`",
        "'",
        '"',
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "\n",
        "a\nb",
        "a\n\n b\n",
        "\t",
        "é\u2028\x85",
        "\ufeff",
        "\x00",
        "x" * 300,
        "word " * 60,
        "---",
        "...",
        "[",
        "{",
        "?",
        ":",
        "-",
        "yes",
        "1.",
        "+1",
        "0o7",
        "True",
        "\U0001f600",
    ]
)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT | TRAPS
DATA = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | TRAPS, inner, max_size=4), max_leaves=20
)
SHORT = st.text(max_size=8)
CELLS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT


@given(data=st.dictionaries(TEXT | TRAPS, DATA, max_size=5))
@example(data={"no": "no", "a": "010", "1": ["~", "1e3", "a\n b\n", None, 1e22, -0.0]})
def test_yaml_reads_back(data: dict[str, Any]) -> None:
    """Any plain data that is written as YAML is read as the same data, types and all."""
    again = parse(to_yaml(data)).data
    assert again == data
    assert json.dumps(again, sort_keys=True) == json.dumps(data, sort_keys=True)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a table with rows as long as its columns."""
    columns = draw(
        st.lists(st.builds(Column, SHORT, SHORT, st.none() | st.integers(0, 5), st.booleans()), min_size=1, max_size=3)
    )
    rows = draw(st.lists(st.tuples(*[CELLS] * len(columns)), max_size=3))
    return Table(draw(SHORT), tuple(columns), tuple(rows), draw(st.none() | st.integers(0, 2)))


@st.composite
def series(draw: st.DrawFn) -> Series:
    """Draw a series of as many x as y."""
    points = draw(st.lists(st.tuples(st.floats(), st.floats()), max_size=4))
    style: SeriesStyle = draw(st.sampled_from(["line", "steps", "points", "bars", "segments"]))
    return Series(draw(SHORT), tuple(x for x, _ in points), tuple(y for _, y in points), style)


METRICS = st.builds(
    Metric, st.none() | st.floats() | st.integers(), SHORT, st.none() | SHORT, st.none() | st.booleans(), st.booleans()
)
FIGURES = st.builds(
    Figure,
    SHORT,
    SHORT,
    SHORT,
    SHORT,
    st.lists(series(), max_size=2).map(tuple),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
REPORTS = st.builds(
    Report,
    SHORT,
    SHORT,
    SHORT,
    st.sampled_from(Verdict),
    TEXT,
    st.lists(SHORT, max_size=3).map(tuple),
    st.dictionaries(SHORT, METRICS, max_size=3),
    st.lists(tables(), max_size=2).map(tuple),
    st.lists(FIGURES, max_size=2).map(tuple),
    st.lists(st.tuples(SHORT, TEXT), max_size=2).map(tuple),
    st.lists(TEXT, max_size=2).map(tuple),
    SHORT,
    st.none() | st.dictionaries(SHORT, DATA, max_size=3),
    st.dictionaries(SHORT, DATA, max_size=3),
)


@given(report=REPORTS)
def test_a_report_survives_json(report: Report) -> None:
    """Any report written as strict JSON and read again is the same report, what is not finite being nothing."""
    data = json.loads(json.dumps(to_data(report), allow_nan=False))
    again = from_data(data)
    assert to_data(again) == data
    assert to_data(from_data(to_data(again))) == data


@given(data=st.dictionaries(TEXT, DATA, max_size=6), seed=st.integers(0, 99))
def test_a_fingerprint_does_not_see_the_order_of_keys(data: dict[str, Any], seed: int) -> None:
    """Equal values have equal fingerprints, whatever the order of keys at any depth."""
    dice = random.Random(seed)  # noqa: S311 - tests, not secrets
    assert fingerprint(_shuffled(data, dice)) == fingerprint(data)


@given(data=st.dictionaries(TEXT, st.integers(), min_size=1, max_size=6), other=st.integers())
def test_a_fingerprint_sees_every_value(data: dict[str, int], other: int) -> None:
    """Another value, or the parts in another order, is another fingerprint."""
    key = next(iter(data))
    changed = data | {key: other}
    assert (fingerprint(changed) == fingerprint(data)) is (other == data[key])
    assert fingerprint("a", "b") != fingerprint("b", "a")


def _shuffled(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, _shuffled(item, dice)) for key, item in value.items()]
        dice.shuffle(items)
        return dict(items)
    return [_shuffled(item, dice) for item in value] if isinstance(value, list) else value
