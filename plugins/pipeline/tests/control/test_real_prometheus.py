"""Demand from a running Prometheus: its samples, its errors, and what it does when a target restarts or is gone."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.http_server import serve_handler
from unfold_pipeline.control.demand import Demand, DemandSource, SignalError
from unfold_pipeline.control.http import open_client
from unfold_pipeline.control.prometheus import PrometheusSource
from unfold_pipeline.schema.control import ControlSpec
from unfold_pipeline.verbs import serve_target as verb

PROGRAM = shutil.which("prometheus")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.targets,
    pytest.mark.skipif(PROGRAM is None, reason="needs Prometheus: apt-get install prometheus"),
]
RATE_PER_S, SCRAPE_S, PATIENCE_S = 20.0, 0.2, 30.0
BCRYPT_OF_TEST = "$2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay"
SELECTOR = 'http_requests_total{service="video"}'


class Target(BaseHTTPRequestHandler):
    """A service with counters that grow by twenty a second, half of that with code 429, until it restarts."""

    service = "video"
    began = 0.0
    is_down = False

    def do_GET(self) -> None:
        """Answer a scrape."""
        count = (time.monotonic() - Target.began) * RATE_PER_S / 2
        label = f'service="{self.service}"'
        lines = [f'http_requests_total{{{label},code="{code}"}} {count}' for code in (200, 429)]
        body = "\n".join(
            ["# TYPE http_requests_total counter", *lines, "# TYPE depth gauge", f"depth{{{label}}} 7", ""]
        ).encode()
        self.send_response(503 if self.is_down else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class OtherTarget(Target):
    """Another service of the same job, which can fail alone."""

    service = "audio"


@pytest.fixture
def source(server: str) -> PrometheusSource:
    """A source with a stage that has a queue, and one with a query that matches nothing."""
    return PrometheusSource(
        client=open_client(),
        url=server,
        arrivals=SELECTOR,
        queues=('sum(depth{service="video"})', "sum(absent)"),
        stale_s=3.0,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Start Prometheus, which scrapes the target five times a second."""
    with start_server(tmp_path) as address:
        yield f"http://{address}"


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[str]:
    """Start Prometheus with a certificate of a private authority, and with the user alice."""
    pytest.importorskip("cryptography")
    from tests.kubernetes import keys

    keys.write(tmp_path)
    tls = {"cert_file": f"{tmp_path}/server.crt", "key_file": f"{tmp_path}/server.key"}
    web = {"tls_server_config": tls, "basic_auth_users": {"alice": BCRYPT_OF_TEST}}
    (tmp_path / "web.yml").write_text(json.dumps(web))
    with start_server(tmp_path, f"--web.config.file={tmp_path}/web.yml") as address:
        yield f"https://{address}"


@contextlib.contextmanager
def start_server(tmp_path: Path, *options: str) -> Iterator[str]:
    """Start Prometheus, and return its host and port."""
    Target.began, Target.is_down, OtherTarget.is_down = time.monotonic(), False, False
    with serve_handler(Target) as port, serve_handler(OtherTarget) as other_port, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        scraped = {
            "job_name": "video",
            "static_configs": [{"targets": [f"127.0.0.1:{port}", f"127.0.0.1:{other_port}"]}],
        }
        config = {"global": {"scrape_interval": f"{SCRAPE_S * 1000:.0f}ms"}, "scrape_configs": [scraped]}
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        command = [str(PROGRAM), *words, f"--web.listen-address={address}", *options]
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                yield address
            finally:
                process.terminate()


def read_until(source: DemandSource, is_enough: Callable[[Demand], bool]) -> Demand:
    """Read until a demand suffices."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(SignalError):
            demand = source.read()
            if is_enough(demand):
                return demand
        time.sleep(SCRAPE_S)
    pytest.fail(f"no such demand within {PATIENCE_S:g} s")


def read_error(source: DemandSource) -> SignalError:
    """Return the error of a reading."""
    with pytest.raises(SignalError) as caught:
        source.read()
    return caught.value


def observed_rate(demand: Demand) -> float:
    """Return the arrivals per second from the first to the newest sample."""
    return demand.arrivals_s.size / (demand.until_s - float(demand.arrivals_s.min()))


def test_rate_and_queue_are_those_of_the_target(source: PrometheusSource) -> None:
    """Both series count, so refused queries are demand too; an unknown queue is no queue of zero."""
    demand = read_until(source, lambda item: item.arrivals_s.size > 100)
    assert observed_rate(demand) == pytest.approx(RATE_PER_S, rel=0.1)
    assert demand.age_s < 2
    assert demand.queued[0] == 7
    assert math.isnan(demand.queued[1])


def test_a_restart_of_the_target_is_no_lull(source: PrometheusSource) -> None:
    """The counters begin again, and the demand goes on."""
    before = read_until(source, lambda item: item.arrivals_s.size > 60)
    Target.began = time.monotonic()
    after = read_until(source, lambda item: item.until_s > before.until_s + 3)
    later = after.arrivals_s[after.arrivals_s > before.until_s + 1]
    assert later.size / (after.until_s - before.until_s - 1) == pytest.approx(RATE_PER_S, rel=0.3)


def test_a_target_that_is_down_is_a_gap(source: PrometheusSource) -> None:
    """What one of two targets counts is unknown until it is scraped again."""
    both = replace(source, arrivals='http_requests_total{job="video"}')
    assert not read_until(both, lambda item: item.arrivals_s.size > 80).gap
    OtherTarget.is_down = True
    assert "1 of 2 targets" in read_until(both, lambda item: bool(item.gap)).gap
    # a controller that starts now has seen no sample of it
    late, video = (replace(source, arrivals=text, targets=set()) for text in (both.arrivals, SELECTOR))
    assert "1 of 2 targets" in late.read().gap
    assert video.read().gap == ""
    OtherTarget.is_down = False
    read_until(late, lambda item: not item.gap)
    read_until(both, lambda item: not item.gap)


def test_errors_of_the_server_are_distinguished(source: PrometheusSource) -> None:
    """A misspelt selector has no data, an expression no samples, and the samples of a lost target are stale."""
    read_until(source, lambda item: item.arrivals_s.size > 10)
    assert read_error(replace(source, arrivals='http_request_total{service="video"}')).reason == "no data"
    refused = read_error(replace(source, arrivals="sum(rate(http_requests_total[1m]))"))
    assert (refused.reason, "selects one counter" in refused.hint) == ("refused", True)
    gauge = read_error(replace(source, arrivals="depth"))
    assert (gauge.reason, str(gauge)) == ("refused", "depth is a gauge, not a counter")
    Target.is_down = True
    time.sleep(source.stale_s + 2)
    stale = read_error(source)
    assert (stale.reason, "is the target scraped?" in stale.hint) == ("stale", True)


def test_credentials_and_a_private_authority_are_used(
    guarded_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password comes from a file and is shown nowhere; a hint names it or the authority if it is missing."""
    password = tmp_path / "password"
    password.write_text("test\n")
    control = ControlSpec(prometheus=guarded_server, user="alice", key_file=str(password))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    source = verb._open_prometheus(control, SELECTOR, [""])
    assert read_until(source, lambda item: item.arrivals_s.size > 20).age_s < 2
    assert source.location == f"{SELECTOR} at {guarded_server}"
    password.write_text("other")
    error = read_error(source)
    assert error.reason == "refused"
    assert "status 401" in str(error)
    assert "control.key_file" in error.hint
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "SSL_CERT_FILE" in read_error(verb._open_prometheus(control, SELECTOR, [""])).hint
