"""What the OpenAPI document promises, held against the server by schemathesis: good bodies, bad bodies, any method."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.serving.client import Server, serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; nox -s faults has it")

INFER = "/v2/models/total/infer"
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


def test_every_operation_keeps_its_promise(total: Server) -> None:
    """Whatever is sent to any path by the document, or against it, no answer is a failure, and each is as described."""
    place = f"http://127.0.0.1:{total.port}"
    schema = schemathesis.openapi.from_url(f"{place}/openapi.json")
    paths = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        held(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.method.upper() == "POST":
            held(operation, schemathesis.GenerationMode.NEGATIVE)
    assert INFER in paths
    assert total.ask("/v2/health/ready").status == 200


def held(operation: object, mode: object) -> None:
    """Send what schemathesis makes of one operation; its checks look at status, type and body of every answer."""
    checks = schemathesis.checks
    wanted = [
        checks.CHECKS.get_by_names([name])[0]
        for name in (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
    ]

    @given(case=operation.as_strategy(generation_mode=mode))  # type: ignore[attr-defined]
    @QUIET
    def check(case: object) -> None:
        case.call_and_validate(checks=wanted, headers={"connection": "close"})  # type: ignore[attr-defined]

    check()


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["inputs", "name", "shape", "data", "datatype", "id", "x"]), x)
        ),
    )
)
@QUIET
def test_any_json_is_rejected(total: Server, body: object) -> None:
    """JSON of any form is answered with 400 and a reason, never with a failure."""
    reply = total.ask(INFER, json.dumps(body).encode())
    assert reply.status == 400
    assert reply.json["error"]
