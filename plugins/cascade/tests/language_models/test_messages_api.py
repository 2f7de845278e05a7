"""Anthropic's Messages API of the gateway, with its official client: requests, whole answers, events and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import CALLS, Gateway, answer_with_calls, serve_gateway
from unfold_cascade.language_models.gateway.plan import ClientKey
from unfold_cascade.language_models.openai_api.anthropic_messages import MessageWriter, translate_request

anthropic = pytest.importorskip("anthropic")
ADD = {"name": "add", "description": "adds", "input_schema": {"type": "object", "required": ["a"]}}
DOCUMENT = {"type": "document", "title": "a.txt", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}}
ASK = [{"role": "user", "content": "2+2?"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serve_gateway(tmp_path_factory.mktemp("gateway"), answer_with_calls, answer_with_calls) as served:
        yield served


def connect(gateway: Gateway, key: str = "k") -> Any:
    """Open a client of the gateway."""
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Any]:
    with connect(gateway) as opened:
        yield opened


def test_a_request_is_routed_and_its_answer_is_a_message(client: Any, gateway: Gateway) -> None:
    """Text, usage, and the headers of the gateway; the system prompt is the first message of the chat request."""
    system = [{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}]
    raw = client.messages.with_raw_response.create(
        model="auto", max_tokens=9, messages=ASK, system=system, stop_sequences=["x"], extra_body={"temperature": 0.5}
    )
    message = raw.parse()
    assert [(block.type, block.text) for block in message.content] == [("text", "hello world")]
    assert (message.role, message.stop_reason, message.usage.output_tokens) == ("assistant", "end_turn", 10)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == 100
    assert raw.headers["x-unfold-route"] == "small:0.71>=0.50"
    sent = gateway.small.requests[-1]
    assert sent["messages"] == [{"role": "system", "content": "be short"}, *ASK]
    assert (sent["max_completion_tokens"], sent["stop"], sent["temperature"]) == (9, ["x"], 0.5)


def test_events_are_those_of_a_message(client: Any) -> None:
    """Each block is started, grows, and is stopped; what the client collects is the whole message."""
    with client.messages.stream(model="auto", max_tokens=9, messages=ASK) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        message = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert (message.content[0].text.split(), message.stop_reason) == (["hello", "world"], "end_turn")
    assert (message.usage.output_tokens, message.usage.input_tokens) == (10, 100)


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_used_and_their_results_return(client: Any, gateway: Gateway, stream: bool) -> None:
    """Parallel calls are blocks of one message; their results reach the model in order."""
    fields = {"model": "auto", "max_tokens": 9, "tools": [ADD]}
    if stream:
        with client.messages.stream(messages=ASK, **fields) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(messages=ASK, **fields)
    assert message.stop_reason == "tool_use"
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.id, call.name, call.input) for call in calls] == [(f"c{k}", "add", {"a": 1}) for k in range(2)]
    sent = gateway.small.requests[-1]["tools"]
    assert sent == [
        {"type": "function", "function": {"name": "add", "description": "adds", "parameters": ADD["input_schema"]}}
    ]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "2"} for call in calls]
    turns = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    last = client.messages.create(messages=turns, tool_choice={"type": "any"}, **fields)
    assert last.content[0].text == "hello world"
    sent = gateway.small.requests[-1]
    assert [each["role"] for each in sent["messages"]] == ["user", "assistant", "tool", "tool"]
    assert (sent["messages"][1]["tool_calls"], sent["tool_choice"]) == (CALLS, "required")


def test_images_go_to_the_reference(client: Any, gateway: Gateway) -> None:
    """The log covers texts only; an image becomes a data URL."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    raw = client.messages.with_raw_response.create(
        model="auto", max_tokens=9, messages=[{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]
    )
    assert raw.headers["x-unfold-promise"] == "unpromised"
    parts = gateway.large.requests[-1]["messages"][0]["content"]
    assert parts[0]["image_url"] == {"url": "data:image/png;base64,AA=="}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document"),
        ({"messages": [{"role": "user", "content": [DOCUMENT | {"citations": {"enabled": True}}]}]}, "citations"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "search_result"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"system": [3]}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "input_schema"),
        ({"tools": [ADD], "tool_choice": "auto"}, "tool_choice"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_what_the_gateway_does_not_have_is_refused(gateway: Gateway, fields: dict[str, Any], word: str) -> None:
    """Errors have Anthropic's form, and no endpoint is called."""
    before = len(gateway.small.requests) + len(gateway.large.requests)
    status, _, data = gateway.post({"model": "auto", "max_tokens": 9, "messages": ASK, **fields}, path="/v1/messages")
    error = json.loads(data)
    assert (status, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert word in error["error"]["message"]
    assert len(gateway.small.requests) + len(gateway.large.requests) == before


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_parts_keeps_its_texts(stream: bool) -> None:
    """Endpoints of reasoning models answer with a list of thoughts and texts; it is no empty answer."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    content = [thought, {"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}, "x", {"type": "text"}]
    writer = MessageWriter(is_stream=stream, model="m")
    if stream:
        chunks = [{"choices": [{"index": 0, "delta": {"content": [part]}}]} for part in content]
        events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
        written = writer.feed(b"".join(events) + b"data: [DONE]\n\n", is_last=True)
        data = [json.loads(event.partition(b"data: ")[2]) for event in written.split(b"\n\n") if event]
        text = "".join(event["delta"]["text"] for event in data if event["type"] == "content_block_delta")
    else:
        body = {"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]}
        (block,) = json.loads(writer.feed(json.dumps(body).encode(), is_last=True))["content"]
        text = block["text"]
    assert text == "four"


def test_documents_are_texts_and_files(client: Any, gateway: Gateway) -> None:
    """A PDF goes to the reference, as no log of texts covers it."""
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}}
    content = [DOCUMENT, pdf, {"type": "text", "text": "sum up"}]
    client.messages.create(model="auto", max_tokens=9, messages=[{"role": "user", "content": content}])
    text, file, _ = gateway.large.requests[-1]["messages"][0]["content"]
    assert text == {"type": "text", "text": "a.txt\n\nhi"}
    assert file["file"] == {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}


def test_errors_are_those_that_the_client_knows(tmp_path: Path) -> None:
    """Of a key, a model, a path, and an endpoint that refuses, whole or in a stream that has begun."""
    with serve_gateway(tmp_path / "a", keys=(ClientKey(name="team", key="right"),)) as gateway:
        with pytest.raises(anthropic.AuthenticationError, match="API key"):
            connect(gateway, "wrong").messages.create(model="auto", max_tokens=9, messages=ASK)
        with pytest.raises(anthropic.NotFoundError, match="no model"):
            connect(gateway, "right").messages.create(model="claude", max_tokens=9, messages=ASK)
        with pytest.raises(anthropic.AuthenticationError, match="API key"):
            connect(gateway, "wrong").messages.count_tokens(model="auto", messages=ASK)
        with pytest.raises(anthropic.NotFoundError, match="no model"):
            connect(gateway, "right").messages.count_tokens(model="claude", messages=ASK)
    refused = always(status=429)
    with serve_gateway(tmp_path / "b", small=refused, large=refused) as gateway:
        with pytest.raises(anthropic.RateLimitError):
            connect(gateway).messages.create(model="auto", max_tokens=9, messages=ASK)
        with pytest.raises(anthropic.RateLimitError):
            list(connect(gateway).messages.create(model="auto", max_tokens=9, messages=ASK, stream=True))


def test_results_come_before_what_the_user_adds() -> None:
    """A chat message of a tool holds texts only, so an image of a result follows; thoughts are left out."""
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    result = {"type": "tool_result", "tool_use_id": "c0", "content": [{"type": "text", "text": "2"}, image]}
    call = {"type": "tool_use", "id": "c0", "name": "add", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [
        {"role": "assistant", "content": [thought, call]},
        {"role": "user", "content": [{"type": "text", "text": "and?"}, result]},
    ]
    body, _ = translate_request(json.dumps({"model": "auto", "max_tokens": 9, "messages": turns}).encode())
    first, second, third = json.loads(body)["messages"]
    assert (first["content"], first["tool_calls"][0]["function"]["arguments"]) == (None, '{"a": 1}')
    assert second == {"role": "tool", "tool_call_id": "c0", "content": "2"}
    assert third["content"][1:] == [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]


def test_alternating_calls_are_blocks_in_a_row() -> None:
    """A block that is stopped does not grow any more, whatever the order of the chunks."""
    writer, written = MessageWriter(is_stream=True, model="m"), b""
    steps = [(0, "f", ""), (0, None, '{"a"'), (1, "g", '{"b"'), (0, None, ": 1}"), (1, None, ": 2}")]
    for index, name, arguments in steps:
        function = {"arguments": arguments} | ({"name": name} if name else {})
        delta = {"tool_calls": [{"index": index, "id": f"c{index}", "function": function}]}
        chunk = {"choices": [{"index": 0, "delta": delta}]}
        written += writer.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n", is_last=False)
    written += writer.feed(b"data: [DONE]\n\n", is_last=True)
    events = [json.loads(event.partition(b"data: ")[2]) for event in written.split(b"\n\n") if event]
    kinds = [(event["type"].removeprefix("content_block_"), event["index"]) for event in events if "index" in event]
    first = [("start", 0), ("delta", 0), ("delta", 0), ("stop", 0)]
    assert kinds == [*first, ("start", 1), ("delta", 1), ("stop", 1)]
    texts = [
        "".join(e["delta"]["partial_json"] for e in events if e.get("index") == k and "delta" in e) for k in (0, 1)
    ]
    assert texts == ['{"a": 1}', '{"b": 2}']
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
