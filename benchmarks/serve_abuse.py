"""Thirty attacks next to one well-behaved client: the client's service, the server's memory, and the cost of a byte.

A small network behind the project's server on one core. First each attack alone, a fixed number of times: the processor
time of the server per byte on the wire, over that of a plain request sent in the same way (over a connection of its
own, over a kept one, or in packets of one byte). Then each attack without pause from four threads for some seconds,
next to a client with a schedule: the share of its requests which are answered in time, and the memory of the server.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.bodies import BODY
from benchmarks.serve_load import INFER, OURS
from benchmarks.serve_overload import WIDTH, prepare
from benchmarks.servers import cores, memory_mib, processor_s, started

HIDDEN = 64
RATE_PER_S = 50
IN_TIME_S = 0.25
THREADS = 4
HELD = 1500
MIB = 2**20

Way = Literal["own", "kept", "drip", "hold"]
"""Over a connection of its own, over a kept one, in packets of one byte, or on many connections that stay open."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What is sent again and again, and how."""

    name: str
    payload: bytes
    way: Way = "own"


def post(body: bytes, *lines: str, path: str = INFER) -> bytes:
    """Write a POST request."""
    extra = "".join(f"{line}\r\n" for line in lines)
    return f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


def tensor(data: bytes, more: bytes = b"", shape: bytes = b"[1,30]") -> bytes:
    """Write the body of a request."""
    return b'{%b"inputs":[{"name":"x","shape":%b,"datatype":"FP64","data":%b}]}' % (more, shape, data)


def list_attacks() -> Iterator[Attack]:
    """Yield the attacks."""
    row = b"[" + b",".join([b"0.5"] * WIDTH) + b"]"
    zeros, spaces = tensor(b"[" + b"0," * 1_900_000 + b"0]"), b" " * (4 * MIB - 100)
    packed = "content-encoding: gzip"
    head = f"POST {INFER} HTTP/1.1\r\nhost: a\r\n".encode()
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    get = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"
    yield Attack("gzip bomb of spaces", post(gzip.compress(spaces), packed))
    yield Attack("gzip of many values", post(gzip.compress(zeros), packed))
    yield Attack("gzip of gzip", post(gzip.compress(gzip.compress(zeros)), packed))
    yield Attack("damaged gzip", post(gzip.compress(zeros)[:-9], packed))
    yield Attack("4 MB of spaces", post(spaces))
    yield Attack("4 MB of zeros", post(zeros))
    yield Attack("4 MB of empty lists", post(tensor(b"[" + b"[]," * 1_300_000 + b"[]]")))
    yield Attack("deep nesting", post(b"[" * (4 * MIB - 100)))
    yield Attack("one huge integer", post(tensor(b"[" + b"1" * 4_000_000 + b"]")))
    yield Attack("one long fraction", post(tensor(b"[0." + b"1" * 4_000_000 + b"]")))
    yield Attack("unicode escapes", post(tensor(row, b'"id":"' + b"\\u00e9" * 600_000 + b'",')))
    yield Attack("commas in a string", post(tensor(row, b'"id":"' + b"," * 4_000_000 + b'",')))
    yield Attack(
        "many parameters",
        post(tensor(row, b'"parameters":{' + b",".join(b'"%d":1' % i for i in range(300_000)) + b"},")),
    )
    yield Attack(
        "many outputs", post(tensor(row, b'"outputs":[' + b'{"name":"label"},' * 200_000 + b'{"name":"label"}],'))
    )
    yield Attack("a long shape", post(tensor(row, shape=b"[" + b"1," * 1_900_000 + b"30]")))
    binary = json.dumps({"inputs": [{"name": "x", "shape": [1, WIDTH], "datatype": "INT8",
                                     "parameters": {"binary_data_size": 4_000_000}}]}).encode()  # fmt: skip
    sized = f"inference-header-content-length: {len(binary)}"
    yield Attack("tensor that lies about its size", post(binary + bytes(100), sized))
    yield Attack("4 MB of one-byte values", post(binary + bytes(4_000_000), sized))
    yield Attack("chunks of one byte", chunked + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n")
    yield Attack("chunk extensions", chunked + b"1;" + b"a" * 1000 + b"\r\n \r\n" + b"0\r\n\r\n")
    yield Attack("900 headers", head + b"a: b\r\n" * 900 + b"content-length: 0\r\n\r\n", "kept")
    yield Attack("a header of 3 MB", head + b"a: " + b"b" * 3_000_000 + b"\r\n\r\n")
    yield Attack("pipelined health checks", (get % b"/v2/health/live") * 200, "kept")
    yield Attack("scrapes of the metrics", get % b"/metrics", "kept")
    yield Attack("the description of the API", get % b"/openapi.json", "kept")
    yield Attack("unknown paths", get % b"/nowhere", "kept")
    yield Attack("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00" * 30)
    yield Attack("no Host", b"GET /v2 HTTP/1.1\r\n\r\n")
    yield Attack("a request byte by byte", post(tensor(row)), "drip")
    yield Attack("heads that do not end", head, "hold")
    yield Attack("bodies that do not end", head + b"content-length: 4000000\r\n\r\n" + b" " * 60_000, "hold")


PLAIN = post(json.dumps(BODY["v2"]([0.5] * WIDTH)).encode())


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the cost of a byte of each attack, then attack next to a client.

    Args:
        quick: One second of each attack instead of three.
        seed: Seed of the network.
        data: Not used.
    """
    del data
    seconds, load = 1.0 if quick else 3.0, os.getloadavg()[0]
    server_core, driver_core = cores()
    del driver_core
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepare(folder, seed, HIDDEN)
        with started(OURS, server_core, environment, folder / "log") as (port, process):
            rows = measure_attacks(port, process, seconds)
    worst = max(rows, key=lambda row: row["cost_ratio"])
    shares = [row["good_client_share"] for row in rows]
    metrics = {
        "good_client_goodput_share_min": min(shares),
        "good_client_goodput_share_median": sorted(shares)[len(shares) // 2],
        "rss_growth_mib_max": max(row["rss_growth_mib"] for row in rows),
        "cost_oracle_max": worst["cost_ratio"],
        "attacks": len(rows),
    }
    notes = [
        f"the most expensive byte is that of: {worst['attack']}",
        f"the client sends {RATE_PER_S} requests per second; in time is {IN_TIME_S * 1e3:g} ms from the schedule",
        "attackers and client share the second core, so a late request may be the fault of that core",
        f"load of the machine before the run: {load:.1f} on {os.cpu_count()} cores",
    ]
    aims = {"good_client_goodput_share_min": ">= 0.9", "rss_growth_mib_max": "<= 200", "cost_oracle_max": "<= 10"}
    return {"metrics": metrics, "aims": aims, "tables": {"attacks": rows}, "notes": notes}


def measure_attacks(port: int, pid: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row of figures per attack."""
    for _ in range(200):
        send_own(port, PLAIN)
    ways: tuple[Way, ...] = ("own", "kept", "drip")
    plain: dict[Way, float] = {way: measure_cost(port, pid, Attack("plain", PLAIN, way), 2 * MIB // 4) for way in ways}
    start_mib, rows = memory_mib(pid), []
    for attack in list_attacks():
        cost = measure_cost(port, pid, attack, 16 * MIB)
        share, peak_mib = attack_next_to_client(port, pid, attack, seconds)
        # an attack that holds connections pays for them as a plain request with its own does
        base = plain["own" if attack.way == "hold" else attack.way]
        rows.append({
            "attack": attack.name,
            "bytes": len(attack.payload),
            "us_per_kb": round(cost * 1e9, 2),
            "cost_ratio": round(cost / base, 3),
            "good_client_share": round(share, 4),
            "rss_growth_mib": round(peak_mib - start_mib, 1),
        })  # fmt: skip
        print(f"serve-abuse: {rows[-1]}", file=sys.stderr)
    return rows


def measure_cost(port: int, pid: int, attack: Attack, volume: int) -> float:
    """Return the processor seconds of the server per byte on the wire, for about ``volume`` bytes."""
    times = max(2, min(volume // len(attack.payload), 400))
    if attack.way == "drip":
        times = 10
    before, total = processor_s(pid), 0
    deadline = time.monotonic() + 4.0
    while times > 0 and time.monotonic() < deadline:
        batch = min(times, 50)
        total += send_batch(port, attack, batch)
        times -= batch
    time.sleep(0.05)
    return (processor_s(pid) - before) / max(total, 1)


def send_batch(port: int, attack: Attack, count: int) -> int:
    """Send an attack some times; return the bytes in both directions."""
    if attack.way == "hold":
        return sum(hold(port, attack.payload, count, 0.3))
    if attack.way == "own":
        return sum(send_own(port, attack.payload) for _ in range(count))
    return send_kept(port, attack.payload, count, packet=1 if attack.way == "drip" else 0)


def send_own(port: int, payload: bytes) -> int:
    """Send over a connection of its own and read until the response is there."""
    total = 0
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as wire:
        with suppress(OSError):
            wire.sendall(payload)
            total += len(payload)
        total += len(read_response(wire))
    return total


def send_kept(port: int, payload: bytes, count: int, *, packet: int) -> int:
    """Send several times over one connection, which is opened again when the server closes it."""
    total, sent = 0, 0
    while sent < count:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as wire:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while sent < count:
                sent += 1
                for start in range(0, len(payload), packet or len(payload)):
                    wire.sendall(payload[start : start + (packet or len(payload))])
                total += len(payload)
                responses = payload.count(b"HTTP/1.1\r\n")
                received = read_response(wire, responses)
                total += len(received)
                if b"connection: close" in received or not received:
                    break
        sent += 1
    return total


def read_response(wire: socket.socket, count: int = 1) -> bytes:
    """Read some responses with a Content-Length, or what comes until the end of the connection."""
    data, found = b"", 0
    with suppress(OSError):
        while found < count:
            part = wire.recv(1 << 16)
            if not part:
                break
            data += part
            found = count_responses(data)
    return data


def count_responses(data: bytes) -> int:
    """Return the number of complete responses at the beginning of some bytes."""
    count = 0
    while (end := data.find(b"\r\n\r\n")) >= 0:
        head = data[:end].lower()
        size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(data) < end + 4 + size:
            break
        data, count = data[end + 4 + size :], count + 1
    return count


def hold(port: int, payload: bytes, count: int, seconds: float) -> Iterator[int]:
    """Hold connections that sent a part of a request; yield the bytes of each."""
    wires = []
    for _ in range(count):
        with suppress(OSError):
            wires.append(socket.create_connection(("127.0.0.1", port), timeout=1))
            wires[-1].sendall(payload)
            yield len(payload)
    time.sleep(seconds)
    for wire in wires:
        wire.close()


def attack_next_to_client(port: int, pid: int, attack: Attack, seconds: float) -> tuple[float, float]:
    """Attack for some seconds; return the share of a client's requests in time, and the peak of memory in MiB."""
    stop = multiprocessing.Event()
    attackers = multiprocessing.Process(target=keep_attacking, args=(port, attack, stop), daemon=True)
    attackers.start()
    time.sleep(0.3)
    peak_mib = [memory_mib(pid)]
    share = run_client(port, seconds, lambda: peak_mib.append(memory_mib(pid)))
    stop.set()
    attackers.join(10)
    if attackers.is_alive():
        attackers.kill()
    return share, max(peak_mib)


def keep_attacking(port: int, attack: Attack, stop: Any) -> None:
    """Attack from several threads until ``stop`` is set."""

    def loop() -> None:
        while not stop.is_set():
            if attack.way == "hold":
                sum(hold(port, attack.payload, HELD // THREADS, 0.5))
            else:
                send_batch(port, attack, 5)

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    while not stop.is_set():
        stop.wait(0.1)


def run_client(port: int, seconds: float, sample: Callable[[], object]) -> float:
    """Send plain requests on a schedule; return the share which is answered with 200 in time.

    A connection that the server refuses or closes is opened again, as any client does.
    """
    count, answered, wire = int(seconds * RATE_PER_S), 0, None
    start = time.perf_counter() + 0.05
    for number in range(count):
        due = start + number / RATE_PER_S
        time.sleep(max(due - time.perf_counter(), 0.0))
        while time.perf_counter() < due + IN_TIME_S:
            try:
                if wire is None:
                    wire = socket.create_connection(("127.0.0.1", port), timeout=IN_TIME_S)
                wire.sendall(PLAIN)
                response = read_response(wire)
            except OSError:
                response = b""
            if response.startswith(b"HTTP/1.1 200"):
                answered += time.perf_counter() <= due + IN_TIME_S
                break
            if wire is not None:
                wire.close()
            wire = None
            time.sleep(0.005)
        if number % 10 == 0:
            sample()
    if wire is not None:
        wire.close()
    return answered / count
