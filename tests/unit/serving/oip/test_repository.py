"""Models that clients unload and load again, over HTTP, the fast path and gRPC."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest

from tests.unit.serving.client import read, request, rows
from tests.unit.serving.grpc.test_server import both, call, raw_request
from unfoldkit.serving.grpc.messages import build_messages

INFER = "/v2/models/total/infer"
CHANGE = "/v2/repository/models/total"
INDEX = "/v2/repository/index"


def list_states(server: Any, body: Any = None) -> list[tuple[str, str, str]]:
    entries = server.ask(INDEX, body or {}).json
    return [(entry["name"], entry["version"], entry["state"]) for entry in entries]


def test_a_model_is_unloaded_and_loaded_again() -> None:
    """Without its last model a service is live but not ready; requests get 503 until the model is loaded."""
    messages = build_messages()
    with both("control=1") as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert list_states(server) == [("total", "1", "READY")]
        for _ in range(2):
            assert server.ask(f"{CHANGE}/unload", {"parameters": {"unload_dependents": False}}).status == 200
        assert list_states(server) == [("total", "1", "UNAVAILABLE")]
        assert list_states(server, {"ready": True}) == []
        statuses = {path: server.ask(path).status for path in ("/v2/health/live", "/v2/health/ready", "/metrics")}
        assert statuses == {"/v2/health/live": 200, "/v2/health/ready": 503, "/metrics": 200}
        for path in (INFER, "/v2/models/total/versions/1/infer", "/v1/models/total:predict"):
            refused = server.ask(path, rows([1, 2, 3]))
            assert (refused.status, f"{CHANGE}/load" in refused.json["error"]) == (503, True), path
        for path in ("/v2/models/total", "/v2/models/total/ready", "/v2/models/stats", "/openapi.json"):
            assert server.ask(path).status == 503
        assert b"unfold_connections " in server.ask("/metrics").body
        assert not call(channel, messages, "ServerReady").ready
        assert call(channel, messages, "ServerLive").live
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [item.state for item in call(channel, messages, "RepositoryIndex").models] == ["UNAVAILABLE"]
        # the other protocol loads it
        call(channel, messages, "RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="total"))
        assert list_states(server) == [("total", "1", "READY")]
        assert server.ask("/v2/health/ready").status == 200
        assert server.ask(INFER, rows([1, 2, 3])).json["outputs"][0]["data"] == [6]
        assert call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]])).outputs
        text = server.ask("/metrics").body
        assert b'unfold_requests_total{code="200",model="total"} 2.0' in text
        assert b"unfold_connections " in text
        call(channel, messages, "RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="total"))
        assert server.end() == 0
        assert "Traceback" not in server.output()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{CHANGE}/load", {"parameters": {"config": "{}"}}, 400),
        (f"{CHANGE}/load", b"[", 400),
        (f"{CHANGE}/load", b"x" * 5000, 413),
        (f"{CHANGE}/load", None, 405),
        (f"{CHANGE}/reload", {}, 404),
        ("/v2/repository/models/other/load", {}, 404),
        ("/v2/repository/models/other/unload", {}, 404),
        ("/v2/repository/models/load", {}, 404),
    ],
)
def test_a_wrong_change_is_refused(controlled: Any, path: str, body: Any, status: int) -> None:
    """A change that names contents, no model or no action changes nothing."""
    assert controlled.ask(path, body).status == status
    assert list_states(controlled) == [("total", "1", "READY")]


@pytest.fixture(scope="module")
def controlled() -> Any:
    with both("control=1") as (server, _):
        yield server


def test_an_unload_waits_for_responses() -> None:
    """Requests under way are answered before the model is given back; those that follow are not admitted."""
    with both("control=1", "delay=0.3") as (server, _):
        wires = [server.connect() for _ in range(4)]
        for number, wire in enumerate(wires):
            path = INFER if number % 2 else "/v2/models/total/versions/1/infer"
            wire.sendall(request(path, rows([number, 0, 0])))
        statuses: list[int] = []
        unload = threading.Thread(target=lambda: statuses.append(server.ask(f"{CHANGE}/unload", {}).status))
        unload.start()
        assert [read(wire).status for wire in wires] == [200] * 4
        unload.join()
        assert statuses == [200]
        assert server.ask(INFER, rows([1, 2, 3])).status == 503
        for wire in wires:
            wire.close()


def test_without_model_control_models_stay() -> None:
    """A service that was not started for it explains which option it needs."""
    messages = build_messages()
    with both() as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        refused = server.ask(f"{CHANGE}/unload", {})
        assert (refused.status, "--model-control" in refused.json["error"]) == (404, True)
        with pytest.raises(grpc.RpcError, match="--model-control"):
            call(channel, messages, "RepositoryModelUnload")
        assert server.ask(INFER, rows([1, 2, 3])).status == 200


@pytest.mark.targets
def test_the_clients_of_triton_control_models() -> None:
    """Both clients of Triton list, unload and load the model, and read its configuration and statistics."""
    library = pytest.importorskip("tritonclient.http")
    remote = pytest.importorskip("tritonclient.grpc")
    with both("control=1") as (server, port):
        clients = (
            library.InferenceServerClient(f"127.0.0.1:{server.port}"),
            remote.InferenceServerClient(f"127.0.0.1:{port}"),
        )
        for client in clients:
            assert client.is_model_ready("total")
            client.unload_model("total")
            assert not client.is_server_ready()
            assert client.is_server_live()
            client.load_model("total")
            assert client.is_model_ready("total", "1")
            index, config = client.get_model_repository_index(), client.get_model_config("total", "1")
            states = index if isinstance(index, list) else [{"state": item.state} for item in index.models]
            assert [item["state"] for item in states] == ["READY"]
            assert (config if isinstance(config, dict) else {"name": config.config.name})["name"] == "total"
            for arguments in ((), ("total",), ("total", "1")):
                statistics = client.get_inference_statistics(*arguments)
                models = statistics["model_stats"] if isinstance(statistics, dict) else statistics.model_stats
                assert len(models) == 1
            client.close()
