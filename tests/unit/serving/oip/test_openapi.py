"""The OpenAPI document says all that the server does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.serving.models import Total
from unfoldkit.serving.oip.app import Application, build_application
from unfoldkit.serving.oip.codec import build_reader
from unfoldkit.serving.oip.errors import InvalidRequest
from unfoldkit.serving.oip.openapi import build_document


@pytest.fixture
def app() -> Application:
    return build_application([Total()])


def described(app: Application, **more: Any) -> dict[str, Any]:
    return build_document([endpoint.model for endpoint in app.endpoints.values()], "1.0", **more)


def test_every_path_of_the_server_is_described_and_no_other(app: Application) -> None:
    """What can be got and posted is in the document, the paths of a version and those of a kind among it."""
    app.gets["/status"] = app.gets["/v2"]
    paths = described(app, more={"/status": "how it goes"})["paths"]
    assert {path for path, item in paths.items() if "get" in item} == set(app.gets)
    assert {path for path, item in paths.items() if "post" in item} == set(app.posts)


def test_each_operation_has_a_name_of_its_own_and_says_who_may_ask(app: Application) -> None:
    """Generators of clients find one name an operation; all but the health of the server may need the token."""
    paths = described(app)["paths"]
    operations = {path: operation for path, item in paths.items() for operation in item.values()}
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    free = {path for path, operation in operations.items() if not operation["security"]}
    assert free == {"/v2/health/live", "/v2/health/ready"}
    assert all("401" in operation["responses"] for path, operation in operations.items() if path not in free)
    assert all("503" in operations[path]["responses"] for path in (*free, "/v2/models/total/ready"))


def test_a_refusal_is_described_with_when_to_come_back(app: Application) -> None:
    """The answer 429 has the header Retry-After."""
    responses = described(app)["paths"]["/v2/models/total/infer"]["post"]["responses"]
    assert "Retry-After" in responses["429"]["headers"]


def test_the_datatypes_are_those_that_are_taken(app: Application) -> None:
    """Each datatype of the document is taken by the reader, another one is not."""
    model = Total()
    schema = described(app)["paths"]["/v2/models/total/infer"]["post"]["requestBody"]["content"]["application/json"]
    tensor = schema["schema"]["properties"]["inputs"]["items"]["anyOf"][0]["properties"]
    read = build_reader(model.inputs, model.outputs).read
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"%b","data":[1,2,3]}]}'
    for datatype in tensor["datatype"]["enum"]:
        assert read(body % datatype.encode()).call.rows == 1
    with pytest.raises(InvalidRequest, match="datatype"):
        read(body % b"BYTES")
