"""The clock of a connection: the server's, as its responses state it, wherever that of this machine is wrong."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from unfoldkit.kubernetes.api import Api


@dataclass
class Server:
    """Answers every request at ``ahead_s`` seconds before this machine's time."""

    ahead_s: float
    dates: list[str] = field(default_factory=list)

    def request(self, *_: Any, **__: Any) -> Any:
        date = self.dates.pop(0) if self.dates else formatdate(time.time() + self.ahead_s, usegmt=True)
        return SimpleNamespace(status=200, data=b"{}", headers={"Date": date} if date else {})


def connect(server: Server) -> Api:
    """Return a connection to a server."""
    configuration = SimpleNamespace(host="http://server", auth_settings=dict)
    rest = SimpleNamespace(pool_manager=SimpleNamespace(request=server.request))
    return Api(SimpleNamespace(configuration=configuration, rest_client=rest), "unfold")


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, 5.0, -5.0])
def test_a_wrong_clock_follows_the_server(ahead_s: float) -> None:
    """From the first response on, and without further corrections."""
    api = connect(Server(ahead_s))
    api.get("/api")
    assert api.now() == pytest.approx(time.time() + ahead_s, abs=1.5)
    corrected = api.clock_offset_s
    for _ in range(20):
        api.get("/api")
    assert api.clock_offset_s == corrected


def test_responses_of_several_threads_correct_a_clock_once() -> None:
    """All were sent by the wrong clock, and each shows the same difference."""
    api, sent = connect(Server(-3600.0)), Barrier(4)
    answer = api.client.rest_client.pool_manager.request

    def wait_for_others(*args: Any, **options: Any) -> Any:
        sent.wait(10)
        return answer(*args, **options)

    api.client.rest_client.pool_manager.request = wait_for_others
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(api.get, ["/api"] * 4))
    assert api.now() == pytest.approx(time.time() - 3600.0, abs=1.5)


def test_a_right_clock_keeps_its_fractions() -> None:
    """The server states whole seconds, which say less than a clock that agrees with them."""
    api = connect(Server(0.4))
    api.get("/api")
    assert api.now() == pytest.approx(time.time(), abs=0.1)


def test_a_response_without_a_date_corrects_nothing() -> None:
    """So may one of a proxy with a date that is none."""
    api = connect(Server(3600.0, ["", "yesterday", "Tue, 99 Foo 2026 10:00:00 GMT"]))
    for _ in range(3):
        api.get("/api")
    assert api.now() == pytest.approx(time.time(), abs=0.1)
