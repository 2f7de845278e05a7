"""A toy language model behind OpenAI's API, for trying the gateway offline: it adds numbers, large ones badly.

``python toy_llm.py --port 8081 --skill 60`` is wrong more often the further the numbers exceed its skill, and its
log-probability is that of a correct answer. The same question always gets the same answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer_question(text: str, skill: float) -> tuple[str, float]:
    """Return the answer to a question such as ``What is 17 + 25?``, and the log-probability of being correct."""
    numbers = [int(number) for number in re.findall(r"\d+", text)][-2:] or [0]
    chance = 1 / (1 + math.exp((max(numbers) - skill) / 12))
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    total = sum(numbers) + (0 if draw < chance else 1)
    return str(total), math.log(chance)


def build_reply(request: dict[str, Any], skill: float) -> list[dict[str, Any]]:
    """Build the events of a stream; the last one has the usage."""
    text, logprob = answer_question(str(request["messages"][-1]["content"]), skill)
    head = {"id": "toy", "object": "chat.completion.chunk", "created": 0, "model": request.get("model", "toy")}
    tokens = [{"token": text, "logprob": logprob, "bytes": None, "top_logprobs": []}]
    logprobs = {"content": tokens} if request.get("logprobs") else None
    words = sum(len(str(message.get("content")).split()) for message in request["messages"])
    usage = {"prompt_tokens": words, "completion_tokens": len(text), "total_tokens": words + len(text)}
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": text}, logprobs), ({}, None)]
    chunks = [
        {**head, "choices": [{"index": 0, "delta": d, "logprobs": p, "finish_reason": None if d else "stop"}]}
        for d, p in deltas
    ]
    return [*chunks, {**head, "choices": [], "usage": usage}]


def build_body(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Build the reply to a request without a stream."""
    choice = events[1]["choices"][0]
    message = {"role": "assistant", "content": choice["delta"]["content"]}
    whole = {"index": 0, "message": message, "logprobs": choice["logprobs"], "finish_reason": "stop"}
    return {**events[-1], "object": "chat.completion", "choices": [whole]}


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--skill", type=float, required=True)
    options = parser.parse_args()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: Any) -> None:
            """Stay silent."""

        def do_POST(self) -> None:
            """Answer a chat request."""
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            events = build_reply(request, options.skill)
            if request.get("stream"):
                kind, body = "text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events)
                body += "data: [DONE]\n\n"
            else:
                kind, body = "application/json", json.dumps(build_body(events))
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
