"""The address of a service is found behind the warnings of other libraries; one that never starts is reported."""

from __future__ import annotations

import pytest

from tests.served import find_address

STARTED = "serving ecg on http://127.0.0.1:8123 · run runs/ecg\n"


def test_warnings_may_precede_the_address() -> None:
    """A library that warns on its import does not hide the service."""
    lines = iter(["UserWarning: no GPU\n", "  import torch\n", STARTED, "later\n"])
    assert find_address(lines) == "http://127.0.0.1:8123"
    assert list(lines) == ["later\n"]


def test_a_service_that_ends_is_reported_with_all_its_lines() -> None:
    """The failure contains the output of the process."""
    with pytest.raises(AssertionError, match=r"(?s)first.*runs/ecg: no such run"):
        find_address(["first\n", "error: runs/ecg: no such run\n"])
