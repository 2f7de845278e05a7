"""Serves the models of the tests: ``python server.py NAME [WORD=VALUE ...]``; its first line on stdout is the port."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from models import Diary, Total

from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.http.address import Address, bind_socket, open_listener
from unfoldkit.serving.http.resource_limits import ResourceLimits
from unfoldkit.serving.http.server import HostOptions, run_service
from unfoldkit.serving.http.tls import TlsFiles
from unfoldkit.serving.http.workers import Supervisor
from unfoldkit.serving.observability.access_log import JsonLines, json_access_log
from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.observability.tracing import Instrumentation, find_instrumentation
from unfoldkit.serving.oip.app import build_application, build_service
from unfoldkit.serving.oip.repository import offer_repository
from unfoldkit.serving.service import Service
from unfoldkit.serving.state.entity_model import EntityStateModel
from unfoldkit.serving.state.store import open_store

REAL, JUMPS = time.time, itertools.cycle((1, -2, 0))


def service(name: str, given: dict[str, str]) -> Service:
    limits = Limits(
        queue_rows=int(given.get("queue", 1024)),
        body_bytes=int(given.get("body", 100_000)),
        queue_seconds=float(given.get("wait", 5)),
        hung_seconds=float(given.get("hung", 30)),
    )
    close = lambda: None  # noqa: E731 - replaced by the store's
    if name == "total":
        model = Total(delay_s=float(given.get("delay", 0)))
    else:
        store = open_store(Path(given["store"]), made_from="diary", durability=given.get("durability", "normal"))
        model, close = EntityStateModel(Diary(), store), store.close
    app = build_application([model], limits=limits, close=close)
    watch = request_dashboard(name, "toy", app.source.read)
    served = build_service(name, app, watch=watch)
    if "control" in given:
        return offer_repository(served, lambda: service(name, {key: given[key] for key in given if key != "control"}))
    return served


@dataclass(frozen=True, slots=True)
class Work:
    """One of several processes."""

    name: str
    given: dict[str, str]
    address: Address
    folder: Path

    def __call__(self, number: int, beat: Callable[[], object]) -> None:
        if "needs" in self.given and not Path(self.given["needs"]).exists():
            sys.exit(2)
        found = service(self.name, self.given)
        keep = found.share(self.folder)

        def both() -> None:
            keep()
            beat()

        with open_listener(self.address, many=True) as bound:
            run_service(replace(found, watch=None), bound, HostOptions(token=self.address.token, heartbeat=both))


def jump(_number: int, _frame: Any) -> None:
    """Set the clock on the wall of this process back and forth by days: in turn a day ahead and two days back."""
    days, real = (next(JUMPS), REAL)
    time.time = lambda: real() + 86400.0 * days


def instrumentation() -> Instrumentation | None:
    """Return OpenTelemetry's instrumentation; spans and metrics go to stderr, one JSON document per line."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    def line(item: Any) -> str:
        return " ".join(item.to_json(indent=None).split()) + "\n"

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr, formatter=line)))
    meters = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr, formatter=line))])
    return find_instrumentation(provider, meters)


def terms(given: dict[str, str]) -> HostOptions:
    log = logging.Logger("server")  # noqa: LOG001 - of this process alone
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.handlers[0].setFormatter(JsonLines())
    observer = json_access_log(log) if "log" in given else None
    return HostOptions(
        token=given.get("token", ""),
        request_timeout_s=float(given.get("patience", 30)),
        observer=observer,
        instrumentation=instrumentation() if "spans" in given else None,
        fast_path=given.get("fast_path", "1") == "1",
        tls=TlsFiles(Path(given["cert"]), Path(given["key"]), Path(given["ca"]) if "ca" in given else None)
        if "cert" in given
        else None,
        grpc_address=f"127.0.0.1:{given['grpc']}" if "grpc" in given else "",
        limits=ResourceLimits(
            connections=int(given.get("connections", 0)),
            head_bytes=int(given.get("head_bytes", 16 * 2**20)),
            body_bytes=int(given.get("body_bytes", 64 * 2**20)),
            client_share=float(given.get("client_share", 1)),
        ),
    )


def main(name: str, *words: str) -> None:
    given = dict(word.split("=", 1) for word in words)
    address = Address(port=int(given.get("port", 0)), token=given.get("token", ""))
    many = int(given.get("processes", 1))
    signal.signal(signal.SIGUSR1, jump)
    if many == 1:
        with open_listener(address) as bound:
            print(bound.getsockname()[1], os.getpid(), flush=True)
            run_service(service(name, given), bound, terms(given))
        return
    with bind_socket(address, many=True) as held, TemporaryDirectory() as folder:
        port = held.getsockname()[1]
        print(port, os.getpid(), flush=True)
        work = Work(name, given, replace(address, port=port), Path(folder))
        Supervisor(work, many, lambda text: print(text, file=sys.stderr, flush=True), heartbeat_timeout_s=3.0).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
