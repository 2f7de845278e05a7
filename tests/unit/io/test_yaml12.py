"""Writing YAML that 1.2 reads back."""

from __future__ import annotations

from unfoldkit.io.yaml12 import scalar, to_yaml


def test_what_looks_like_a_number_is_quoted() -> None:
    """Text that YAML 1.2, or 1.1, would read as something else stands in quotes; other text does not."""
    assert to_yaml({"a": "1e3", "b": "no", "c": "~", "d": "plain text", "e": "0o7"}) == (
        "a: '1e3'\nb: 'no'\nc: '~'\nd: plain text\ne: '0o7'\n"
    )
    # kubectl reads these as booleans too
    assert to_yaml({"a": "y", "N": "yes"}) == "a: 'y'\n'N': 'yes'\n"


def test_keys_keep_their_order() -> None:
    """Keys are written in the order that is given."""
    assert to_yaml({"b": 1, "a": [True, None, 1.5]}) == "b: 1\na:\n- true\n- null\n- 1.5\n"


def test_long_digits_are_numbers_without_end() -> None:
    """A whole number of up to 300 digits is exact; beyond, it is as large as a float can be."""
    assert scalar("9" * 300) == int("9" * 300)
    assert scalar("9" * 400) == float("inf")
