"""A trained supernet over HTTP, by the command line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.served import rest, serving, unfold

pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")


pytestmark = pytest.mark.torch
SPEC = """
version: 1
kind: supernet
name: tiny
data: {source: digits}
space: {form: conv2d, stages: [{width: 16}, {width: 32}, {width: 64}], expand: [0.125, 0.5, 1], depth: [1, 1, 2]}
training: {epochs: 4, batch: 64, alone: false}
serving: {slo: 500 ms}
"""
ROWS = 64


def request_json(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as reply:
        return json.load(reply)


def infer(server_url: str, x: Any, deadline_ms: Any = None, least_accuracy: Any = None) -> dict[str, list[Any]]:
    """Send an inference request and return the outputs by name."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}
    asked = {"deadline_ms": deadline_ms, "least_accuracy": least_accuracy}
    parameters = {name: value for name, value in asked.items() if value is not None}
    reply = request_json(f"{server_url}/v2/models/tiny/infer", {"inputs": [tensor], "parameters": parameters})
    return {output["name"]: output["data"] for output in reply["outputs"]}


def load_rows(rows: int) -> Any:
    return (load_digits().data[:rows] / 16).reshape(-1, 1, 8, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny.yaml").write_text(SPEC, "utf-8")
    done = unfold(folder, "train", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server_url(trained: Path) -> Iterator[str]:
    with serving(trained, "runs/tiny") as (_, address):
        yield address


def read_subnets(server_url: str) -> dict[str, Any]:
    """Read the subnets from the metadata, smallest first."""
    found: dict[str, Any] = request_json(f"{server_url}/v2/models/tiny")["parameters"]["nets"]
    return found


def read_counter(server_url: str, net: str, in_time: str) -> float:
    with urllib.request.urlopen(f"{server_url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = re.search(rf'unfold_supernet_answers_total{{in_time="{in_time}",net="{re.escape(net)}"}} (\S+)', text)
    assert found, text
    return float(found[1])


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Copy the run's folder, because the original is locked while it is served."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def wait_until_ready(server_url: str, seconds: float) -> None:
    """Wait until the server is ready: none of several processes is before its subnets are measured."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{server_url}/v2/health/ready", timeout=30).close()
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return


def test_loose_deadlines_get_more_accurate_subnets(server_url: str) -> None:
    """Under load, requests with loose deadlines get a more accurate subnet than those with tight ones."""
    known = read_subnets(server_url)
    best = max(known, key=lambda name: float(known[name]["expected_accuracy"]))
    tight = 0.4 * known[best]["ms"][str(ROWS)]
    x, limits = load_rows(ROWS), [tight, 20_000.0] * 7
    with ThreadPoolExecutor(len(limits)) as pool:
        said = list(pool.map(lambda limit: infer(server_url, x, limit), limits))
    short, long = ([one["net"][0] for one in said[start::2]] for start in (0, 1))
    # a loose request may fill the batch of a tight one
    assert long.count(best) > len(long) / 2
    assert best not in short
    for one in said:
        assert len(set(one["net"])) == 1
        assert one["expected_accuracy"] == [known[one["net"][0]]["expected_accuracy"]] * ROWS


def test_hopeless_requests_are_served_late_and_counted(server_url: str) -> None:
    """A request that cannot be in time is served by the smallest subnet, marked late and counted as late."""
    smallest = next(iter(read_subnets(server_url)))
    before = read_counter(server_url, smallest, "no")
    said = infer(server_url, load_rows(1), 0.001)
    assert (said["net"], said["in_time"]) == ([smallest], [False])
    assert read_counter(server_url, smallest, "no") == before + 1


def test_minimum_accuracy_holds_under_load(server_url: str) -> None:
    """At any load and deadline, a request is served by a sufficiently accurate subnet, late if necessary."""
    known, x = read_subnets(server_url), load_rows(ROWS)
    levels = sorted(net["expected_accuracy"] for net in known.values())
    asked = [(limit, least) for limit in (0.001, 10.0, 20_000.0) for least in (*levels, None)] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        said = list(pool.map(lambda one: infer(server_url, x, *one), asked))
    for (limit, least), one in zip(asked, said, strict=True):
        assert one["expected_accuracy"][0] >= (least or 0.0)
        assert one["accurate_enough"] == [True] * ROWS
        assert limit > 0.001 or one["in_time"] == [False] * ROWS


def test_excessive_minimum_accuracy_gets_the_best_subnet(server_url: str) -> None:
    """If no subnet is accurate enough, the most accurate one serves and says so."""
    known = read_subnets(server_url)
    best = max(known, key=lambda name: float(known[name]["expected_accuracy"]))
    said = infer(server_url, load_rows(2), 20_000, 1.0)
    assert said["net"] == [best] * 2
    assert said["accurate_enough"] == [known[best]["expected_accuracy"] == 1.0] * 2


def test_responses_equal_the_exported_models(trained: Path, server_url: str) -> None:
    """Labels and confidences are those of the subnet's ONNX file in the run."""
    x, known, seen = load_rows(50), read_subnets(server_url), set()
    for limit in (0.001, *(1.3 * net["ms"]["64"] for net in known.values()), None):
        said = infer(server_url, x, limit)
        name = said["net"][0]
        seen.add(name)
        session = onnxruntime.InferenceSession(trained / "runs" / "tiny" / "subnets" / f"{name}.onnx")
        logits = session.run(["logits"], {"x": x.astype(np.float32)})[0].astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert said["label"] == [str(label) for label in shares.argmax(1)]
        np.testing.assert_allclose(said["confidence"], shares.max(1), atol=1e-4)
    assert len(seen) > 1


@pytest.mark.parametrize("given", [0, -1, "5", True, 1e9])
def test_invalid_deadlines_are_refused(server_url: str, given: Any) -> None:
    """Zero, negative, textual and over-long deadlines get status 400, and the message names the parameter."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        infer(server_url, load_rows(1), given)
    assert caught.value.code == 400
    assert "deadline_ms" in json.loads(caught.value.read())["error"]


def test_inputs_beyond_single_precision_are_refused(server_url: str) -> None:
    """A row without finite outputs gets status 400 instead of a class; requests beside it are answered."""
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(infer, server_url, load_rows(2), 20_000) for _ in range(7)]
        with pytest.raises(urllib.error.HTTPError) as caught:
            infer(server_url, np.concatenate([load_rows(2), np.full((1, 1, 8, 8), 1e300)]), 20_000)
    assert caught.value.code == 400
    assert "not finite" in json.loads(caught.value.read())["error"]
    assert all(None not in request.result()["confidence"] for request in beside)


def test_live_page_shows_attainment_and_usage(server_url: str) -> None:
    """The events of the live page contain the attainment tile and the usage of every subnet."""
    infer(server_url, load_rows(1))
    with urllib.request.urlopen(f"{server_url}/events", timeout=30) as reply:
        board = json.loads(reply.readline().decode().removeprefix("data: "))
    assert {"attainment", "late", "accuracy served"} <= {tile["label"] for tile in board["tiles"]}
    (shares,) = board["shares"]
    assert list(shares["values"]) == list(read_subnets(server_url))
    assert sum(shares["values"].values()) >= 1


def test_spec_is_served_and_ends_with_0(copied: Path) -> None:
    """The spec of a trained run can be served, and SIGTERM ends the service with 0."""
    with serving(copied, "tiny.yaml") as (process, server_url):
        assert infer(server_url, load_rows(1), 20_000)["in_time"] == [True]
        process.send_signal(signal.SIGTERM)
        message = rest(process)
    assert process.returncode == 0
    assert "requests that cannot be in time run on" in message


def test_several_processes_serve_one_supernet(copied: Path) -> None:
    """With two processes, targets hold, and the metrics of either count the requests of both."""
    with serving(copied, "runs/tiny", "--processes", "2", patience=300) as (process, server_url):
        wait_until_ready(server_url, 240)
        best = max(net["expected_accuracy"] for net in read_subnets(server_url).values())
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda _: infer(server_url, load_rows(1), 20_000, best), range(40)))
        assert {one["accurate_enough"][0] for one in said} == {True}
        end = time.monotonic() + 20
        # the processes exchange their counts once a second
        while (
            found := sum(
                read_counter(server_url, net, way) for net in read_subnets(server_url) for way in ("yes", "no")
            )
        ) < 40:
            assert time.monotonic() < end, found
            time.sleep(0.2)
        assert found == 40
        process.send_signal(signal.SIGTERM)
        rest(process)
    assert process.returncode == 0


def test_untrained_specs_are_refused(tmp_path: Path) -> None:
    """An untrained spec, and a family known by its layers only, end with 2 and a hint."""
    (tmp_path / "tiny.yaml").write_text(SPEC, "utf-8")
    done = unfold(tmp_path, "serve", "tiny.yaml", "--port", "0")
    assert done.returncode == 2
    assert "this supernet is not trained yet" in done.stderr
    (tmp_path / "layers.yaml").write_text("version: 1\nkind: supernet\nname: layers\nfamily: ofa-resnet50\n", "utf-8")
    done = unfold(tmp_path, "serve", "layers.yaml", "--port", "0")
    assert done.returncode == 2
    assert "known by their layers only" in done.stderr


def test_another_space_is_refused(copied: Path) -> None:
    """A spec with another space than the run's supernet ends with 2."""
    done = unfold(copied, "serve", "tiny.yaml", "--port", "0", "--set", "space.depth=[1, 2, 2]")
    assert done.returncode == 2
    assert "another space" in done.stderr


def test_large_request_with_time_runs_on_the_most_accurate_subnet(server_url: str) -> None:
    """A request with more rows than any measured batch is computed in parts, on the best subnet if its time allows."""
    largest = max(read_subnets(server_url).items(), key=lambda item: item[1]["expected_accuracy"])[0]
    outputs = infer(server_url, load_rows(513), deadline_ms=60_000)
    assert set(outputs["net"]) == {largest}
    assert len(outputs["label"]) == 513
    assert outputs["label"][:5] == infer(server_url, load_rows(5), deadline_ms=60_000)["label"]
