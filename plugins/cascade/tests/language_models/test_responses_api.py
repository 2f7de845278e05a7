"""The Responses API of the gateway, with the official client: requests, whole answers, events, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import CALLS, Gateway, answer_with_calls, serve_gateway

openai = pytest.importorskip("openai")
ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "required": ["a"]}, "strict": False}
UNSURE = always(text="cheap answer", logprob=-3.0)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serve_gateway(tmp_path_factory.mktemp("gateway"), answer_with_calls, answer_with_calls) as served:
        yield served


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as opened:
        yield opened


def test_a_request_is_routed_and_its_answer_is_a_response(client: Any) -> None:
    """Text, usage and the headers of the gateway are those of a chat request."""
    raw = client.responses.with_raw_response.create(model="auto", input="2+2?", instructions="be short")
    response = raw.parse()
    assert (response.output_text, response.status, response.usage.total_tokens) == ("hello world", "completed", 110)
    assert raw.headers["x-unfold-route"] == "small:0.71>=0.50"


def test_events_are_those_of_a_response(client: Any) -> None:
    """Each item is added, grows, and is done; numbers of events have no gap."""
    events = list(client.responses.create(model="auto", input="2+2?", stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text.split() == ["hello", "world"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == text
    assert events[-1].response.usage.output_tokens == 10


@pytest.mark.parametrize("stream", [False, True])
def test_functions_are_called_and_their_results_return(client: Any, gateway: Gateway, stream: bool) -> None:
    """Calls of one turn are one message of the chat request; the model of the calls gets their results."""
    answer = client.responses.create(model="auto", input="add", tools=[ADD], stream=stream)
    response = list(answer)[-1].response if stream else answer
    calls = response.output
    assert [(call.type, call.call_id, call.arguments) for call in calls] == [
        ("function_call", f"c{k}", '{"a": 1}') for k in range(2)
    ]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "2"} for call in calls]
    turns = [{"role": "user", "content": "add"}, *(call.model_dump() for call in calls), *results]
    assert client.responses.create(model="auto", input=turns, tools=[ADD]).output_text == "hello world"
    sent = gateway.small.requests[-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"] == CALLS


def test_settings_have_their_names_of_chat_requests(client: Any, gateway: Gateway) -> None:
    """Limits, forms of the output and effort reach the endpoint under the names that it knows."""
    shape = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": False}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    client.responses.create(
        model="auto",
        input=[{"role": "user", "content": parts}],
        max_output_tokens=7,
        reasoning={"effort": "low"},
        text={"format": shape},
        temperature=0.5,
    )
    sent = gateway.small.requests[-1]
    assert (sent["max_completion_tokens"], sent["reasoning_effort"], sent["temperature"]) == (7, "low", 0.5)
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": False},
    }
    assert [part["text"] for part in sent["messages"][0]["content"]] == ["a", "b"]


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_log_probabilities_are_part_of_the_text(client: Any, fields: dict[str, Any]) -> None:
    """Whole or as events, a text has the log-probabilities of its tokens if they are requested, and else none."""
    whole = client.responses.create(model="auto", input="x", **fields).output[0].content[0]
    assert [token.logprob for token in whole.logprobs] == [-0.1]
    with client.responses.stream(model="auto", input="x", **fields) as events:
        deltas = [event.logprobs for event in events if event.type == "response.output_text.delta"]
        text = events.get_final_response().output[0].content[0]
    assert [token.token for token in text.logprobs] == [token.token for parts in deltas for token in parts] != []
    assert client.responses.create(model="auto", input="x").output[0].content[0].logprobs == []


@pytest.mark.parametrize("details", ["none", [1], 3])
def test_strange_details_of_usage_are_left_out(tmp_path: Path, details: Any) -> None:
    """An endpoint may send anything where counts of tokens have their details."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": details}
    with serve_gateway(tmp_path, small=always(usage=usage)) as gateway:
        status, _, data = gateway.post({"model": "auto", "input": "x"}, path="/v1/responses")
    assert (status, json.loads(data)["usage"]["input_tokens_details"]) == (200, {"cached_tokens": 0})


def test_images_go_to_the_reference(client: Any) -> None:
    """The log covers texts only."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"}
    raw = client.responses.with_raw_response.create(model="auto", input=[{"role": "user", "content": [image]}])
    assert raw.headers["x-unfold-promise"] == "unpromised"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"input": [{"content": "x"}]}, "messages"),
        ({"text": "plain"}, "text"),
        ({"model": 3}, "model"),
    ],
)
def test_what_the_gateway_does_not_have_is_refused_by_name(
    gateway: Gateway, fields: dict[str, Any], param: str
) -> None:
    """Errors have OpenAI's form, and no endpoint is called."""
    before = len(gateway.small.requests) + len(gateway.large.requests)
    status, _, data = gateway.post({"model": "auto", "input": "x", **fields}, path="/v1/responses")
    assert (status, json.loads(data)["error"]["param"]) == (400, param)
    assert len(gateway.small.requests) + len(gateway.large.requests) == before


def test_a_repeat_is_not_translated_twice(client: Any) -> None:
    """The stored reply is the response as it was sent."""
    for stream in (False, True):
        key = {"Idempotency-Key": f"r{stream}"}
        first, second = (
            client.responses.with_raw_response.create(model="auto", input="x", stream=stream, extra_headers=key)
            for _ in range(2)
        )
        assert second.headers["x-unfold-replayed"] == "true"
        assert first.http_response.read() == second.http_response.read()


def test_a_cut_answer_is_incomplete_and_a_break_fails(tmp_path: Path) -> None:
    """No client takes a part for the whole."""
    with serve_gateway(tmp_path / "a", UNSURE, always(text="cut", finish="length")) as gateway:
        data = json.loads(gateway.post({"model": "auto", "input": "x"}, path="/v1/responses")[2])
        assert (data["status"], data["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    with serve_gateway(tmp_path / "b", UNSURE, always(text="one two three four", cut=3)) as gateway:
        body = {"model": "auto", "input": "x", "stream": True}
        events = gateway.post(body, path="/v1/responses")[2].decode().split("\n\n")
        kinds = [line.partition("\n")[0] for line in events if line.startswith("event: ")]
        assert kinds[-2:] == ["event: error", "event: response.failed"]
