"""Demand over the HTTP API of Prometheus: what it returns, and everything else that a server may return."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.pipeline.tests.control.metrics_server import MetricsServer, metrics_server
from unfold_pipeline.control.demand import SignalError
from unfold_pipeline.control.http import build_authorization, open_client, read_key_file, split_credentials
from unfold_pipeline.control.prometheus import PrometheusSource

SELECTOR = 'http_requests_total{service="video"}'


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """A server with a counter that grows by ten a second."""
    with metrics_server() as state:
        now_s = time.time()
        state.series[SELECTOR] = [[(now_s - 60 + 5 * index, 50.0 * index) for index in range(13)]]
        yield state


def source(server: MetricsServer, selector: str = SELECTOR, token: str = "") -> PrometheusSource:
    """A source with two stages, of which the first has a queue."""
    return PrometheusSource(
        client=open_client(token), url=server.url, arrivals=selector, queues=("sum(queue)", ""), stale_s=30.0
    )


def read_error(item: PrometheusSource) -> SignalError:
    """Return the error of a reading."""
    with pytest.raises(SignalError) as caught:
        item.read()
    return caught.value


def test_rate_age_and_queues_are_read(server: MetricsServer) -> None:
    """The samples are those of the scrapes, an absent queue is unknown, and the token is sent."""
    server.gauges["sum(queue)"] = [3.0, 4.0]
    demand = source(server, token="secret").read()  # noqa: S106 - of this test
    assert demand.arrivals_s.size == 600
    assert demand.age_s < 25
    assert demand.queued[0] == 7
    assert math.isnan(demand.queued[1])
    assert {token for _, token in server.queries} == {"Bearer secret"}


def test_queries_refused_in_front_of_the_counter_are_added(server: MetricsServer) -> None:
    """They are whole queries, also where a part of the queries enters at the stage that is counted."""
    at_s = [sample[0] for sample in server.series[SELECTOR][0]]
    server.series["refused"] = [[(at, 150.0 * index) for index, at in enumerate(at_s)]]
    half = replace(source(server), share=0.5)
    assert replace(half, refusals="refused").read().mean_rate(30.0) == pytest.approx(20 + 30, rel=0.02)
    assert replace(half, refusals="absent").read().mean_rate(30.0) == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("scrapes", [2, 4, 13])
def test_the_rate_of_a_young_counter_is_not_a_mean_over_time_before_it(server: MetricsServer, scrapes: int) -> None:
    """A counter that exists for five seconds has the rate of these five seconds."""
    server.series[SELECTOR] = [server.series[SELECTOR][0][-scrapes:]]
    assert source(server).read().mean_rate(30.0) == pytest.approx(10.0)


@pytest.mark.parametrize("values", [[], [math.nan], [-1.0], [math.inf]])
def test_a_queue_that_is_no_length_is_unknown(server: MetricsServer, values: list[float]) -> None:
    """No decision rests on such a value."""
    server.gauges["sum(queue)"] = values
    assert math.isnan(source(server).read().queued[0])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "refused"),
        ("html", "refused"),
        ("redirect", "refused"),
        ("hang", "unreachable"),
        ("huge", "unreachable"),
    ],
)
def test_every_fault_is_an_error_with_a_label(server: MetricsServer, fault: str, reason: str) -> None:
    """Whatever the server returns, nothing but an unknown demand follows."""
    server.fault = fault
    assert read_error(source(server)).reason == reason


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (401, b"Unauthorized", "control.key_env"),
        (403, b"{}", "control.key_env"),
        (301, b"", "control.prometheus"),
        (404, b"not here", "control.prometheus"),
        (422, b"{}", "control.arrivals"),
        (200, b"[" * 100_000, ""),
        (
            200,
            b'{"status":"success","data":{"resultType":"matrix","result":[{"values":[[1,1%s]]}]}}' % (b"0" * 400),
            "c",
        ),
    ],
)
def test_refusals_name_the_key_at_fault(server: MetricsServer, status: int, body: bytes, hint: str) -> None:
    """A wrong token or address is no wrong selector; JSON that Python cannot hold is refused like any other."""
    server.reply = status, body
    error = read_error(source(server))
    assert error.reason == "refused"
    assert error.hint.startswith(hint)
    assert bool(error.hint) == bool(hint)


def test_credentials_of_the_address_are_sent_and_not_shown(server: MetricsServer) -> None:
    """Basic authentication works; messages and status have the address without it."""
    url, credentials = split_credentials(server.url.replace("//", "//alice:s%40cret@"))
    assert credentials is not None
    client = open_client(authorization=lambda: build_authorization(credentials[1], credentials[0]))
    item = PrometheusSource(client=client, url=url, arrivals=SELECTOR, queues=("",), stale_s=30.0)
    assert item.read().arrivals_s.size == 600
    assert item.location == f"{SELECTOR} at {server.url}"
    assert {header for _, header in server.queries} == {f"Basic {base64.b64encode(b'alice:s@cret').decode()}"}


def test_a_key_that_is_replaced_is_read_again(server: MetricsServer, tmp_path: Path) -> None:
    """Tokens of Kubernetes rotate; a file that is gone for a moment is an unknown demand."""
    path = tmp_path / "token"
    client = open_client(authorization=lambda: build_authorization(read_key_file(str(path)), None))
    item = PrometheusSource(client=client, url=server.url, arrivals=SELECTOR, queues=("",), stale_s=30.0)
    assert "No such file" in str(read_error(item))
    for key in ("first", "second"):
        path.write_text(f"{key}\n")
        item.read()
        assert server.queries[-1][1] == f"Bearer {key}"
    path.write_bytes(b"\xff")
    assert read_error(item).reason == "unreachable"


def test_an_expression_is_refused_with_a_hint(server: MetricsServer) -> None:
    """Only counters have raw samples."""
    error = read_error(source(server, "sum(rate(a[1m]))"))
    assert error.reason == "refused"
    assert "ranges only allowed for vector selectors" in str(error)
    assert "selects one counter" in error.hint


@pytest.mark.parametrize("types", [{"http_requests_total": "gauge"}, {}])
def test_a_gauge_is_no_counter(server: MetricsServer, types: dict[str, str]) -> None:
    """A gauge is refused by its type, and one of unknown type by its falls: the sum of what it shows is no demand."""
    now_s = time.time()
    values = (8, 12, 7, 9, 9, 6, 11, 13, 10) if not types else range(9)
    server.types = types
    server.series[SELECTOR] = [[(now_s - 40 + 5 * index, float(value)) for index, value in enumerate(values)]]
    error = read_error(source(server))
    assert error.reason == "refused"
    assert "gauge" in str(error)
    assert "control.arrivals" in error.hint


def test_replicas_that_restart_are_counters(server: MetricsServer) -> None:
    """One of ten replicas crashes again and again; the demand is that of all."""
    now_s, server.types = time.time(), {"http_requests_total": "counter"}
    crashing = [(now_s - 60 + 5 * index, 10.0 * (index % 3)) for index in range(13)]
    server.series[SELECTOR] = [*(server.series[SELECTOR] * 9), crashing]
    assert source(server).read().mean_rate(30.0) > 90


COPIES = {0: {"prometheus": "a"}, 1: {"instance": "10.0.0.0:9100", "prometheus": "b", "job": "shop-pods"}}


@pytest.mark.parametrize("reset_at", [0, 20])
def test_a_counter_that_two_servers_scrape_counts_once(server: MetricsServer, reset_at: int) -> None:
    """Thanos without deduplication, or a target in two jobs, is no double demand; a restart does not change that."""
    now_s = time.time()
    times = [[now_s - 150 + shift + 5 * index for index in range(30)] for shift in (0.0, 2.2)]
    restarted_s = times[0][reset_at] - 1
    server.series[SELECTOR] = [
        [(at, 10 * (at - restarted_s if at > restarted_s else at - now_s + 1000)) for at in row] for row in times
    ]
    server.labels = COPIES
    assert source(server).read().mean_rate(60.0) == pytest.approx(10.0, rel=0.1)
    server.labels = {}
    assert source(server).read().mean_rate(60.0) == pytest.approx(20.0, rel=0.1)


@pytest.mark.parametrize("labels", [None, "shop", ["job", "shop"], {"job": ["shop"]}])
def test_labels_of_an_odd_form_keep_no_series_from_counting(server: MetricsServer, labels: object) -> None:
    """A proxy may send labels that are no object of texts; the samples count."""
    times = [time.time() - 60 + 5 * index for index in range(13)]
    rows = [{"metric": labels, "values": [[at, str(10 * (at - times[0]))] for at in times]} for _ in range(2)]
    content = {"status": "success", "data": {"resultType": "matrix", "result": rows}}
    server.reply = 200, json.dumps(content).encode()
    assert source(server).read().mean_rate(30.0) == pytest.approx(20.0, rel=0.1)


def test_different_counters_behind_one_address_all_count(server: MetricsServer) -> None:
    """A collector has the series of many pods, each with times of its own: random ones are never taken for copies."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        now_s = time.time()
        times = [now_s - 150 + shift + 5 * np.arange(30) for shift in (0.0, 2.2)]
        counts = rng.poisson(rng.uniform(0.3, 30), (2, 30)).cumsum(1)
        server.series[SELECTOR] = [
            list(zip(at.tolist(), map(float, row), strict=True)) for at, row in zip(times, counts, strict=True)
        ]
        server.labels = COPIES
        apart = source(server).read().arrivals_s.size
        server.labels = {}
        assert source(server).read().arrivals_s.size == apart


def test_a_counter_of_a_fraction_of_the_queries_stands_for_all(server: MetricsServer) -> None:
    """Where a second stage is an entrance too, the counter of the first one has its part of the queries only."""
    half = replace(source(server), share=0.5)
    assert half.read().mean_rate(30.0) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("name", "labels", "types"),
    [
        ("latency_seconds_bucket", {"le": "0.5"}, {}),
        ("latency_seconds_bucket", {}, {"latency_seconds": "histogram"}),
        ("latency_seconds_sum", {}, {"latency_seconds": "histogram"}),
        ("latency_seconds", {"quantile": "0.9"}, {"latency_seconds": "summary"}),
    ],
)
def test_only_the_count_of_a_distribution_counts_queries(
    server: MetricsServer, name: str, labels: dict[str, str], types: dict[str, str]
) -> None:
    """Buckets count each query several times, and a sum counts its seconds."""
    server.series = {name: server.series[SELECTOR], "latency_seconds_count": server.series[SELECTOR]}
    server.labels, server.types = {0: labels}, types
    error = read_error(source(server, name))
    assert (error.reason, error.hint) == ("refused", "latency_seconds_count counts the queries")
    server.labels = {}
    assert source(server, "latency_seconds_count").read().arrivals_s.size == 600


def test_no_series_is_no_data(server: MetricsServer) -> None:
    """A misspelt selector is not a lull."""
    assert read_error(source(server, 'http_request_total{service="video"}')).reason == "no data"


def test_old_samples_are_no_lull(server: MetricsServer) -> None:
    """A target that is not scraped any more leaves samples that are too old to decide by."""
    now_s = time.time()
    server.series[SELECTOR] = [[(now_s - 120 + 5 * index, 50.0 * index) for index in range(13)]]
    error = read_error(source(server))
    assert error.reason == "stale"
    assert " s old" in str(error)


def series_of(now_s: float, ages_s: list[float]) -> list[list[tuple[float, float]]]:
    """Return counters that grow by ten a second until some time ago, as far as a server remembers them."""
    times = [[now_s - age_s - 5 * index for index in range(30, -1, -1)] for age_s in ages_s]
    return [[(at, 10 * (at - now_s + 1000)) for at in row] for row in times]


def test_a_target_that_is_not_scraped_is_no_lull(server: MetricsServer) -> None:
    """Its queries are missing until it is scraped or removed, also after the server has forgotten its samples."""
    item, now_s = source(server), time.time()
    server.series[SELECTOR] = series_of(now_s, [0, 0, 0])
    assert item.read().gap == ""
    server.series[SELECTOR] = series_of(now_s, [0, 60, 60])
    assert item.read().gap == ""
    server.series[SELECTOR], server.down = series_of(now_s, [0, 0, 0]), {1, 7}
    assert item.read().gap == ""
    server.series[SELECTOR] = series_of(now_s, [0, 60, 60])
    message = '1 of 2 targets of http_requests_total{service="video"} are down, such as 10.0.0.1:9100'
    assert item.read().gap == message
    server.series[SELECTOR] = series_of(now_s, [0, 500, 500])
    assert item.read().gap == message
    server.down = set()
    assert item.read().gap == ""


@pytest.mark.parametrize(
    ("ages_s", "remembered", "is_gap"),
    [([0], {0, 1}, True), ([0], {0}, False), ([0], set(), False), ([0, 120], set(), True)],
)
def test_a_target_that_was_down_before_the_start_is_no_lull(
    server: MetricsServer, ages_s: list[float], remembered: set[int], is_gap: bool
) -> None:
    """It may serve queries, if it had the counter; another target of the same job says nothing."""
    server.series[SELECTOR] = series_of(time.time(), ages_s)
    server.down, server.remembered = {1, 7}, remembered
    item = source(server)
    assert bool(item.read().gap) == is_gap
    server.down = {7}
    assert item.read().gap == ""


@pytest.mark.parametrize(
    ("extra", "gap"),
    [
        ({"warnings": ["No StoreAPIs matched for this query"]}, "the server warns of partial data: No StoreAPIs"),
        ({"isPartial": True}, "the server states that its data is partial"),
        ({"warnings": [], "isPartial": False, "infos": ["not a counter"]}, ""),
    ],
)
def test_partial_responses_are_gaps(server: MetricsServer, extra: dict[str, object], gap: str) -> None:
    """Thanos and VictoriaMetrics answer with what they have where a store fails."""
    server.extra = extra
    found = source(server).read().gap
    assert found.startswith(gap)
    assert bool(found) == bool(gap)


def test_ages_are_by_the_clock_of_the_server(server: MetricsServer) -> None:
    """A server with a clock an hour behind has fresh samples, although they look old here."""
    server.clock = lambda: time.time() - 3600
    server.series[SELECTOR] = [[(server.clock() - 60 + 5 * index, 50.0 * index) for index in range(13)]]
    assert source(server).read().age_s < 25


def test_a_response_byte_by_byte_ends_at_the_limit() -> None:
    """Each byte of a header comes in time, and all of them never do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    connection.sendall(b"a")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = open_client("secret", timeout_s=0.3)
        began_s = time.monotonic()
        error = read_error(PrometheusSource(client=client, url=url, arrivals=SELECTOR, queues=("",), stale_s=30.0))
    assert error.reason == "unreachable"
    assert "did not complete" in str(error)
    assert time.monotonic() - began_s < 5
    assert "secret" not in repr(client)


def test_an_unreachable_server_is_an_error() -> None:
    """A port that nothing listens on."""
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{item.getsockname()[1]}"
    item_source = PrometheusSource(client=open_client(), url=url, arrivals=SELECTOR, queues=("",), stale_s=30.0)
    assert read_error(item_source).reason == "unreachable"
