"""What an endpoint logs of requests that fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.serving.models import Total
from unfoldkit.errors import user_error
from unfoldkit.serving.observability.access_log import limit_texts
from unfoldkit.serving.oip.app import build_application


def test_a_failure_that_lasts_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each of thousands of requests a second failed on the file that was gone, with a line in the log."""
    clock_s = iter((0.0, 1.0, 2.0, 59.0, 61.0))
    endpoint = replace(build_application([Total()]).endpoints["total"], passes_log=limit_texts(lambda: next(clock_s)))
    for name in ("a.onnx", "a.onnx", "b.onnx", "a.onnx", "a.onnx"):
        endpoint.log_problem(user_error(f"{name} is gone"))
    assert caplog.messages == ["total: a.onnx is gone", "total: b.onnx is gone", "total: a.onnx is gone"]
