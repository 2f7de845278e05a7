"""Several processes behind one port: one is killed, one hangs, all are stopped, and nothing is forgotten."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.unit.serving.client import Server, read, request, rows, serving

INFER = "/v2/models/total/infer"
DIARY = "/v2/models/diary/infer"


def children(server: Server) -> set[int]:
    """Return the processes that serve; Python's helper for shared resources is none of them."""
    found = set[int]()
    for name in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
        # one that ends while it is looked at serves no more
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{name}/cmdline").read_bytes():
                found.add(int(name))
    return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not become so in time")


def asked(server: Server, body: Any, path: str = INFER) -> int:
    """Return the status of one request on a connection of its own; 0 if it was cut."""
    try:
        return server.ask(path, body).status
    except OSError:
        return 0


def complete(server: Server, count: int) -> set[int]:
    """Wait until all processes answer, and return them."""
    until(lambda: len(children(server)) == count and tellers(server) == count)
    return children(server)


def tellers(server: Server) -> int:
    """Return how many processes have reported their counts."""
    found = server.ask("/metrics").body.decode()
    known = re.search(r"^python_info\{.*\} (\S+)", found, re.MULTILINE)
    return int(float(known[1])) if known else 0


def test_a_killed_process_is_replaced() -> None:
    """While one process is killed the others answer; another takes its place; counts of the dead one are kept."""
    with serving("total", "processes=2") as server:
        before = complete(server, 2)
        assert all(asked(server, rows([1, 1, 1])) == 200 for _ in range(40))
        until(lambda: counted(server) == 40)
        time.sleep(1.2)  # a killed process takes with it at most what it counted in its last second
        os.kill(min(before), signal.SIGKILL)
        answers = [asked(server, rows([1, 1, 1])) for _ in range(50)]
        assert answers[-40:] == [200] * 40
        after = complete(server, 2)
        assert len(before & after) == 1
        until(lambda: counted(server) >= 80)
        assert server.end() == 0
    assert not any(Path(f"/proc/{process}").exists() for process in before | after)


def counted(server: Server) -> float:
    text = server.ask("/metrics").body.decode()
    return float(re.findall(r'^unfold_requests_total\{code="200",model="total"\} (\S+)', text, re.MULTILINE)[0])


def test_a_process_that_cannot_start_ends_no_other(tmp_path: Path) -> None:
    """A file that is missing when a killed process is replaced leaves the others serving, until it is there again."""
    file = tmp_path / "model.onnx"
    file.touch()
    with serving("total", "processes=2", f"needs={file}") as server:
        before = complete(server, 2)
        file.unlink()
        os.kill(min(before), signal.SIGKILL)
        until(lambda: children(server) == {max(before)})
        late = time.monotonic() + 4
        while time.monotonic() < late:
            assert asked(server, rows([1, 1, 1])) == 200
            time.sleep(0.1)
        assert server.process.poll() is None
        file.touch()
        assert max(before) in complete(server, 2)
        assert server.end() == 0


def test_a_process_that_a_model_kills_is_replaced() -> None:
    """A row on which a model ends its process costs that request, and no other one later."""
    with serving("total", "processes=2") as server:
        before = complete(server, 2)
        assert asked(server, rows([999, 0, 0])) == 0
        until(lambda: bool(children(server) - before))
        complete(server, 2)
        assert [asked(server, rows([1, 1, 1])) for _ in range(20)] == [200] * 20


def test_a_hung_process_is_replaced() -> None:
    """A model that never comes back, in the loop or in a thread, costs its process, which is ended and replaced."""
    for words in (("delay=0",), ("delay=0.01", "hung=1")):
        with serving("total", "processes=2", *words) as server:
            before = complete(server, 2)
            with server.connect() as wire:
                wire.sendall(request(INFER, rows([888, 0, 0])))
                until(lambda known=before: bool(children(server) - known))  # type: ignore[misc]
            complete(server, 2)
            assert [asked(server, rows([1, 1, 1])) for _ in range(20)] == [200] * 20
            assert server.end() == 0


def test_no_process_is_replaced_after_a_sleep() -> None:
    """Processes that were silent because none of them ran, the one that watches included, are left as they are."""
    with serving("total", "processes=2") as server:
        before = complete(server, 2)
        for how, pause in ((signal.SIGSTOP, 5.0), (signal.SIGCONT, 3.0)):
            for process in (server.process.pid, *before):
                os.kill(process, how)
            time.sleep(pause)
        assert children(server) == before
        assert "does not respond" not in server.output()
        assert server.end() == 0


def test_a_model_that_hangs_in_a_thread_is_given_up() -> None:
    """Alone, a server with a hung model answers 503, is no longer live, and still ends on SIGTERM."""
    with serving("total", "delay=0.01", "hung=1") as server:
        assert server.ask(INFER, rows([1, 1, 1])).status == 200
        reply = server.ask(INFER, rows([888, 0, 0]))
        assert (reply.status, "does not respond" in reply.json["error"]) == (503, True)
        assert server.ask(INFER, rows([1, 1, 1])).status == 503
        assert server.ask("/v2/health/live").status == server.ask("/v2/health/ready").status == 503
        assert [one["state"] for one in server.ask("/v2/repository/index", {}).json] == ["UNAVAILABLE"]
        assert server.ask("/v2/repository/index", {"ready": True}).json == []
        assert server.end() == 0


def test_sigterm_under_load_loses_nothing_of_many_processes() -> None:
    """Every request that was sent on an open connection before the goodbye is answered, whole."""
    lost: list[Exception] = []
    done: list[int] = []

    def client(server: Server) -> None:
        count, last = 0, False
        with server.connect() as wire:
            while not last:
                try:
                    wire.sendall(request(INFER, rows([count, 1, 1])))
                    reply = read(wire)
                except OSError as error:
                    lost.append(error)
                    break
                assert reply.json["outputs"][0]["data"] == [count + 2]
                count += 1
                last = reply.headers.get("connection") == "close"
        done.append(count)

    with serving("total", "processes=2", "delay=0.005") as server:
        complete(server, 2)
        clients = [threading.Thread(target=client, args=(server,)) for _ in range(12)]
        for one in clients:
            one.start()
        time.sleep(0.5)
        code = server.end()
        for one in clients:
            one.join(20)
    assert (lost, code, len(done)) == ([], 0, 12)
    assert min(done) > 0


def listeners(port: int) -> int:
    """Return how many sockets listen on a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(place.split(":")[1], 16) == port and state == "0A" for _, place, _, state, *_ in lines)


def test_another_service_takes_over_without_a_lost_request() -> None:
    """While a service of several processes gives way to another on its port, each new connection is answered."""
    found: list[int] = []
    over = threading.Event()

    def client(server: Server) -> None:
        while not over.is_set():
            found.append(asked(server, rows([1, 1, 1])))

    with serving("total", "processes=2") as old, serving("total", "processes=2", f"port={old.port}") as new:
        until(lambda: listeners(old.port) == 4)
        clients = [threading.Thread(target=client, args=(old,)) for _ in range(8)]
        for one in clients:
            one.start()
        until(lambda: len(found) > 200)
        assert old.end() == 0
        count = len(found)
        until(lambda: len(found) > count + 200)
        over.set()
        for one in clients:
            one.join(20)
        assert new.end() == 0
    assert set(found) == {200}


def test_entities_are_right_with_many_processes(tmp_path: Path) -> None:
    """Hours of one entity that go to different processes are stepped one after the other, none lost or doubled."""
    with serving("diary", "processes=2", f"store={tmp_path / 's.db'}") as server:
        complete(server, 2)
        statuses: list[int] = []

        def client() -> None:
            x = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
            body = {"inputs": [x], "parameters": {"entity": "p"}}
            statuses.extend(asked(server, body, DIARY) for _ in range(25))

        clients = [threading.Thread(target=client) for _ in range(4)]
        for one in clients:
            one.start()
        for one in clients:
            one.join(60)
        assert statuses == [200] * 100
        x = {"name": "x", "shape": [1], "datatype": "FP64", "data": [2.0]}
        last = server.ask(DIARY, {"inputs": [x], "parameters": {"entity": "p"}}).json
        assert json.loads(last["outputs"][0]["data"][0]) == [*([n, 1.0] for n in range(100)), [100, 2.0]]


def test_an_orphan_ends() -> None:
    """When the first process is killed, the serving ones end too: nothing would replace them."""
    with serving("total", "processes=2") as server:
        found = complete(server, 2)
        server.process.kill()
        until(lambda: not any(Path(f"/proc/{process}").exists() for process in found))
