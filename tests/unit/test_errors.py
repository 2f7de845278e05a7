"""Diagnostics, exit codes and hints."""

from __future__ import annotations

import pytest

from unfoldkit.errors import (
    Diagnostic,
    ExitCode,
    did_you_mean,
    escape_unprintable,
    format_value,
    internal_error,
    list_columns,
    quote_cell,
    shorten,
    user_error,
    with_default_file,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Diagnostic("bad"), "bad"),
        (Diagnostic("bad", hint="so"), "bad (so)"),
        (Diagnostic("bad", "a.yaml"), "a.yaml: bad"),
        (Diagnostic("bad", "a.yaml", 3, 7, "x.y", "so"), "a.yaml:3:7: x.y: bad (so)"),
        (Diagnostic("bad", "a.csv", 3), "a.csv:3: bad"),
        (Diagnostic("bad", "a\n.yaml", 3, 7, "x\x1b[31m"), "a\\n.yaml:3:7: x\\x1b[31m: bad"),
    ],
)
def test_a_diagnostic_is_one_line(given: Diagnostic, expected: str) -> None:
    """A diagnostic prints as file:line:column: key: message (hint), what is absent left out, in one safe line."""
    assert str(given) == expected


def test_a_long_key_is_cut() -> None:
    """A key of more than 120 characters is cut where it is printed, and whole where it is data."""
    item = Diagnostic("bad", key="k" * 500)
    assert str(item) == "k" * 117 + "...: bad"
    assert item.key == "k" * 500


def test_faults_have_their_codes() -> None:
    """The caller's fault is 2, ours is 3; both keep their words."""
    assert (user_error("x").code, internal_error("x").code) == (ExitCode.USAGE, ExitCode.INTERNAL) == (2, 3)
    assert str(user_error("x", hint="y", file="f", key="k")) == "f: k: x (y)"


def test_the_codes_are_the_published_ones() -> None:
    """Scripts rely on these numbers."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 129, 130, 141, 143]


def test_near_words_are_offered_and_few_are_listed() -> None:
    """The closest word is offered; without one a short list is given, a long one is not."""
    assert did_you_mean("budgett", ["budget", "name"]) == 'did you mean "budget"?'
    assert did_you_mean("zzz", ["b", "a"]) == "one of: a, b"
    assert did_you_mean("zzz", map(str, range(1000, 1013))) == ""
    assert did_you_mean("zzz", []) == ""


def test_a_value_is_shown_short_and_safe() -> None:
    """A value is shown as JSON in at most 60 characters, none of which a terminal would obey."""
    assert format_value("a") == '"a"'
    assert format_value("é\x9b\u202e") == '"é\\x9b\\u202e"'
    assert len(format_value("x" * 100)) == len(shorten("x" * 100)) == 60
    assert escape_unprintable("a\udcffb") == "a\\udcffb"


def test_a_file_is_added_once() -> None:
    """A diagnostic that names a file keeps it."""
    assert with_default_file(Diagnostic("x"), "f").file == "f"
    assert with_default_file(Diagnostic("x", "g"), "f").file == "g"


SECRETS = ("root:$y$j9T$F5Jx5fEx", "sk-proj-" + 60 * "a", "API_KEY=0123456789abcdef", '{"token": "0123456789"')


@pytest.mark.parametrize("secret", SECRETS)
def test_an_unrelated_file_is_quoted_only_at_its_beginning(secret: str) -> None:
    """A path in a spec may name a file of secrets, and the log of a check may be public."""
    for shown in (list_columns([secret]), quote_cell(secret), did_you_mean("arrival_s", [4 * secret])):
        assert secret[:8] in shown
        assert secret[:12] not in shown


def test_what_looks_like_columns_and_times_is_quoted_in_full() -> None:
    """A table with other columns than expected stays easy to repair."""
    assert list_columns(["Start time (ms)", "gpu.memory[0]", "größe"]) == "Start time (ms), gpu.memory[0], größe"
    assert quote_cell("2026-13-05T25:00:00.000+01:00") == "'2026-13-05T25:00:00.000+01:00'"
    assert quote_cell("tomorrow") == "'tomorrow'"
