"""A Prometheus-compatible server with counters that a test sets, and faults that it injects."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.http_server import serve_handler

Samples = list[tuple[float, float]]


@dataclass(slots=True)
class MetricsServer:
    """The state of the server: samples by selector, gauges by query, types by metric, and how it answers.

    The series of a selector are those of targets with successive numbers; ``down`` holds those that cannot be scraped,
    and ``remembered`` those that had a series earlier.
    ``extra`` is added to each response, and ``labels`` to those of a series, which they replace.

    ``fault`` is empty, or one of ``500``, ``html``, ``hang``, ``huge``, ``redirect``; ``reply`` replaces all of them.
    """

    url: str = ""
    series: dict[str, list[Samples]] = field(default_factory=dict)
    gauges: dict[str, list[float]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    live: Callable[[str], list[Samples] | None] = lambda _selector: None
    down: set[int] = field(default_factory=set)
    remembered: set[int] = field(default_factory=set)
    extra: dict[str, Any] = field(default_factory=dict)
    labels: dict[int, dict[str, str]] = field(default_factory=dict)
    fault: str = ""
    reply: tuple[int, bytes] | None = None
    clock: Callable[[], float] = time.time
    queries: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, query: str) -> tuple[int, dict[str, Any]]:
        """Return status and body as Prometheus does."""
        ranged = re.fullmatch(r"(.*)\[(\d+)s\]", query)
        if query.startswith("up{"):
            values = [
                {"metric": {"__name__": "up", **_label_target(index)}, "value": [self.clock(), "0"]}
                for index in self.down
            ]
            return 200, {"status": "success", "data": {"resultType": "vector", "result": values}}
        if ranged is None:
            values = [{"metric": {}, "value": [self.clock(), str(value)]} for value in self.gauges.get(query, [])]
            return 200, {"status": "success", "data": {"resultType": "vector", "result": values}}
        if "(" in ranged[1].partition("{")[0]:
            error = "invalid parameter: ranges only allowed for vector selectors"
            return 400, {"status": "error", "errorType": "bad_data", "error": error}
        since_s = self.clock() - float(ranged[2])
        listed = self.live(ranged[1]) or self.series.get(ranged[1], [])
        rows = [
            {
                "metric": {
                    "__name__": ranged[1].partition("{")[0],
                    **_label_target(index),
                    **self.labels.get(index, {}),
                },
                "values": [[at, str(value)] for at, value in samples if at >= since_s],
            }
            for index, samples in enumerate(listed)
        ]
        return 200, {
            "status": "success",
            "data": {"resultType": "matrix", "result": [row for row in rows if row["values"]]},
            **self.extra,
        }


def _label_target(index: int) -> dict[str, str]:
    return {"job": "shop", "instance": f"10.0.0.{index}:9100"}


@contextlib.contextmanager
def metrics_server() -> Iterator[MetricsServer]:
    """Serve until the end of the block."""
    state = MetricsServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = parse_qs(urlsplit(self.path).query).get("metric", [""])[0]
            metadata = {name: [{"type": state.types[name], "help": "", "unit": ""}]} if name in state.types else {}
            labels = [_label_target(index) for index in sorted(state.remembered)]
            listed = labels if urlsplit(self.path).path.endswith("/series") else metadata
            data = json.dumps({"status": "success", "data": listed}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            query = parse_qs(form)["query"][0]
            state.queries.append((query, self.headers.get("Authorization", "")))
            status, body = state.answer(query)
            data, kind = json.dumps(body).encode(), "application/json"
            if state.fault == "hang":
                time.sleep(0.5)
                self.close_connection = True
                return
            if state.fault == "500":
                status, data = 500, b"oops"
            elif state.fault == "html":
                data, kind = b"<html>sign in</html>", "text/html"
            elif state.fault == "redirect":
                status, data = 302, b""
            elif state.fault == "huge":
                data = b"x" * (33 << 20)
            status, data = state.reply or (status, data)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(state.clock() if timestamp is None else timestamp)

    with serve_handler(Handler) as port:
        state.url = f"http://127.0.0.1:{port}"
        yield state
