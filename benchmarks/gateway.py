"""What the gateway adds to a call, next to the LiteLLM proxy: time, processor time, lost requests and double billing.

Gateway and proxy stand in front of the same scripted upstream, each on the core of the servers; the client and the
upstream are on the other. ``unfold`` routes: it requests log-probabilities, reads them and decides. LiteLLM passes on,
with a fallback to the second model. Answers have 30 tokens. The overhead is the time of single requests above that of
the upstream alone; requests per core are answers divided by processor seconds of the process.

Faults: 1,000 requests in which the cheap model answers 429 or 500, resets, stalls, breaks off, sends broken JSON, no
usage or no log-probabilities, or the expensive model fails once. A request is lost if its client got no answer, and
billed twice if one model answered it twice in full. LiteLLM gets 250 of these requests. The replayed log is synthetic;
the bill is that of the headers. ``plain relay`` is uvicorn and httpx passing bytes on: what any relay in Python costs.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chat_load import Reply, format_request, send_all
from benchmarks.peers.chat_upstream import FAULTS
from benchmarks.servers import Peer, cores, processor_s, started

ROWS, CONNECTIONS, MODELS = 2000, 16, ("small", "large")
PRICES = {"small": (0.15, 0.60), "large": (2.50, 10.0)}
SPEC = """
version: 1
kind: cascade
name: bench
data: {{source: recorded, path: log.csv, prompt: prompt}}
stages:
  - name: answer
    models:
      - name: small
        endpoint: {{url: "{url}", model: small}}
        price: {{in: 0.15, out: 0.60}}
        recorded: {{score: small|correct, confidence: small|logprob, tokens: {{in: small|in, out: small|out}}}}
      - name: large
        endpoint: {{url: "{url}", model: large}}
        price: {{in: 2.50, out: 10}}
        recorded: {{score: large|correct, confidence: large|logprob, tokens: {{in: large|in, out: large|out}}}}
confidence: {{from: logprob, of: mean}}
goal: {{max_loss: 3%}}
serve: {{audit: 0%, retries: 1, timeouts: {{first_token: 2 s, between_tokens: 1 s, total: 20 s}}{keys}}}
"""
LITELLM = """
model_list:
  - model_name: auto
    litellm_params: {{model: openai/small, api_base: "{url}", api_key: any, timeout: 2, stream_timeout: 2}}
  - model_name: large
    litellm_params: {{model: openai/large, api_base: "{url}", api_key: any, timeout: 2, stream_timeout: 2}}
litellm_settings: {{num_retries: 1, telemetry: false, set_verbose: false}}
router_settings: {{num_retries: 1, disable_cooldowns: true, fallbacks: [{{auto: [large]}}]}}
"""
SERVE = ("{python}", "-m", "unfoldkit", "serve")
PROXY = Peer(
    "LiteLLM",
    (
        "{python}",
        "-c",
        "from litellm import run_server; run_server()",
        "--config",
        "{folder}/litellm.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ),
    "/v1/chat/completions",
    ready="/health/liveliness",
    packages=("litellm[proxy]",),
    more={
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    },
    reads_joblib=False,
)
OURS, PASSED, KEYED, RELAY = "unfold", "unfold, one model", "unfold, with keys", "plain relay"


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its port, the model to request, and its process (0: not measured)."""

    port: int
    model: str
    process: int = 0


@dataclass(slots=True)
class Load:
    """What one server gave, with or without streams."""

    per_core: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run(quick: bool, seed: int, data: None = None) -> dict[str, Any]:
    """Plan on a synthetic log, serve the plan and the peer, and drive both.

    Args:
        quick: A fifth of the requests.
        seed: Seed of the log.
        data: Not needed.
    """
    del data
    count = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server_core, client_core = cores()
        upstream = stack.enter_context(_serve_upstream(folder, seed, client_core))
        planned_rows, planned_usd = _plan(folder, upstream)
        targets = {"upstream": Target(upstream, "small")}
        notes = []
        environment = {"GATEWAY_KEY": "k"}
        for label, words in ((OURS, "{folder}/runs/plain"), (KEYED, "{folder}/runs/keys")):
            peer = Peer(label, (*SERVE, words, "--port", "{port}"), "", ready="/health")
            port, process = stack.enter_context(started(peer, server_core, environment, folder / f"{label}.log"))
            targets[label] = Target(port, "auto", process)
        targets[PASSED] = Target(targets[OURS].port, "small", targets[OURS].process)
        relay_command = ("{python}", "-m", "benchmarks.peers.chat_relay", "{port}", f"http://127.0.0.1:{upstream}")
        relay = Peer(RELAY, relay_command, "", ready="/health")
        port, process = stack.enter_context(started(relay, server_core, {}, folder / "relay.log"))
        targets[RELAY] = Target(port, "small", process)
        try:
            port, process = stack.enter_context(started(PROXY, server_core, {}, folder / "litellm.log"))
            targets[PROXY.name] = Target(port, "auto", process)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            notes.append(f"LiteLLM cannot be measured: {str(error)[-300:]}")
        with _pin(client_core):
            loads = _measure_loads(targets, 90 if quick else 240, 2 if quick else 3, notes)
            faults = {
                # the proxy waits longer at faults: a quarter of the requests bounds the run to minutes
                label: _run_faults(target, upstream, count if label == KEYED else count // 4, label)
                for label, target in targets.items()
                if label in (KEYED, PROXY.name)
            }
            repeats = _run_repeats(targets[KEYED], upstream)
            billed_usd = _replay(targets[KEYED], planned_rows)
    return _summarize(loads, faults, repeats, abs(billed_usd / planned_usd - 1.0), notes)


def _plan(folder: Path, upstream: int) -> tuple[Sequence[int], float]:
    """Plan with and without keys; return the rows that the planned cost counts, and that cost of all of them."""
    from unfold_cascade.language_models.build import build_routing_problem
    from unfold_cascade.schema.cascade import CascadeSpec
    from unfoldkit.engines.local import LocalEngine
    from unfoldkit.run_context import Run
    from unfoldkit.run_directory import RunDir
    from unfoldkit.spec.validate import validate
    from unfoldkit.spec.yaml_reader import read_document

    url = f"http://127.0.0.1:{upstream}/v1"
    keys = ", keys: [{name: client, key_env: GATEWAY_KEY, budget: 1000}]"
    for name, text in (("plain", ""), ("keys", keys)):
        (folder / f"{name}.yaml").write_text(SPEC.format(url=url, keys=text))
        words = [sys.executable, "-m", "unfoldkit", "plan", f"{name}.yaml", "--run", f"runs/{name}"]
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (folder / "litellm.yaml").write_text(LITELLM.format(url=url))
    spec = validate(CascadeSpec, read_document(str(folder / "plain.yaml")))
    run = Run(directory=RunDir(folder / "unused"), engine=LocalEngine(1), base=folder)
    parts = build_routing_problem(spec, run).parts
    rows = np.concatenate([parts.certify, parts.test]).tolist()
    expected = json.loads((folder / "runs/plain/report.json").read_text())["decision"]["expected"]["cost_usd"]
    return rows, expected * len(rows)


@contextmanager
def _serve_upstream(folder: Path, seed: int, core: int) -> Iterator[int]:
    """Write the log and serve the upstream that answers by it."""
    answers = _write_log(folder / "log.csv", np.random.default_rng(seed))
    (folder / "answers.json").write_text(json.dumps(answers))
    words = ("{python}", "-m", "benchmarks.peers.chat_upstream", "{port}", "{folder}/answers.json")
    peer = Peer("upstream", words, "", ready="/calls")
    with started(peer, core, {}, folder / "upstream.log") as (port, _):
        yield port


def _write_log(path: Path, rng: np.random.Generator) -> dict[str, list[list[float]]]:
    """Write a log with informative confidences and uneven lengths; return the answers by model."""
    skill = {"small": 0.80, "large": 0.90}
    hardness = rng.uniform(size=ROWS)
    fields: dict[str, list[Any]] = {"prompt": [f"row={k}" for k in range(ROWS)]}
    prompt_tokens = rng.integers(20, 2000, ROWS)
    answers = {}
    for name in MODELS:
        is_correct = hardness + rng.normal(0, 0.05, ROWS) < skill[name]
        logprob = -np.exp(rng.normal(np.where(is_correct, -4.0, -1.0), 1.0))
        completion = rng.lognormal(4.0, 0.8, ROWS).astype(int) + 1
        columns = {"correct": is_correct.astype(int), "logprob": logprob, "in": prompt_tokens, "out": completion}
        fields |= {f"{name}|{key}": values.tolist() for key, values in columns.items()}
        answers[name] = [[*row] for row in zip(*(columns[k].tolist() for k in ("in", "out", "logprob")), strict=True)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows(zip(*fields.values(), strict=True))
    return answers


@contextmanager
def _pin(core: int) -> Iterator[None]:
    """Keep this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _requests(target: Target, texts: Sequence[str], *, stream: bool, **headers: str) -> list[bytes]:
    return [
        format_request(
            target.port,
            {"model": target.model, "messages": [{"role": "user", "content": text}], "stream": stream},
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        for text in texts
    ]


def _measure_loads(
    targets: dict[str, Target], count: int, rounds: int, notes: list[str]
) -> dict[tuple[str, bool], Load]:
    """Drive each server in turn, first request by request, then with many connections; drop a peer that fails."""
    loads = {(label, stream): Load() for label in targets for stream in (False, True)}
    for _, (label, stream) in itertools.product(range(rounds), list(loads)):
        if label not in targets:
            continue
        requests = _requests(targets[label], ["hello"] * count, stream=stream)
        try:
            _drive(targets[label], loads[label, stream], requests)
        except RuntimeError as error:
            if label != PROXY.name:
                raise
            notes.append(f"LiteLLM gave up under load: {error}")
            del targets[label], loads[label, False], loads[label, True]
    return loads


def _drive(target: Target, load: Load, requests: Sequence[bytes]) -> None:
    """Send some requests one after the other, then all over many connections."""
    _send(target, requests[:20], 4)
    load.seconds += [reply.seconds for reply in _send(target, requests[: len(requests) // 3], 1)]
    if target.process:
        before = processor_s(target.process)
        _send(target, requests, CONNECTIONS)
        load.per_core.append(len(requests) / (processor_s(target.process) - before))


def _send(target: Target, requests: Sequence[bytes], connections: int) -> list[Reply]:
    """Send requests without faults.

    Raises:
        RuntimeError: one has no whole answer.
    """
    replies = asyncio.run(send_all(target.port, requests, connections))
    bad = [reply for reply in replies if not reply.is_whole]
    if bad:
        raise RuntimeError(f"port {target.port}: {bad[0].status} {bad[0].body[:300]!r}")
    return replies


def _run_faults(target: Target, upstream: int, count: int, label: str) -> dict[str, float]:
    """Send requests under every fault, half of them streamed, and count lost and doubled answers."""
    kinds = [f"small={fault}" for fault in FAULTS] + [
        f"small=429 large={fault}-once" for fault in ("429", "500", "reset")
    ]
    texts = [f"id={label.replace(' ', '')}-{k} {kinds[k // 2 % len(kinds)]}" for k in range(count)]
    halves = [_requests(target, texts, stream=stream) for stream in (False, True)]
    requests = [halves[k % 2][k] for k in range(count)]
    replies = asyncio.run(send_all(target.port, requests, 2 * CONNECTIONS))
    lost = [text for text, reply in zip(texts, replies, strict=True) if not reply.is_whole]
    by_kind = {kind: sum(text.endswith(kind) for text in lost) for kind in kinds}
    sys.stderr.write(f"gateway: {label}: lost {by_kind}\n")
    twice = _count_twice(upstream, {text.split()[0].removeprefix("id=") for text in texts})
    return {"lost": len(lost), "twice": twice}


def _count_twice(upstream: int, ids: set[str]) -> int:
    """Count the requests which one model answered in full more than once."""
    with urllib.request.urlopen(f"http://127.0.0.1:{upstream}/calls", timeout=30) as reply:
        return len({name for name, _, times in json.load(reply)["whole"] if times > 1 and name in ids})


def _run_repeats(target: Target, upstream: int) -> int:
    """Send 100 requests twice at the same time under one idempotency key, and count those which were billed twice."""
    texts = [f"id=repeat-{k}" for k in range(100) for _ in range(2)]
    requests = [_requests(target, [text], stream=False, idempotency_key=text)[0] for text in texts]
    _send(target, requests, CONNECTIONS)
    return _count_twice(upstream, {text.removeprefix("id=") for text in texts})


def _replay(target: Target, rows: Sequence[int]) -> float:
    """Send rows of the log again and return what the headers bill."""
    replies = _send(target, _requests(target, [f"row={row}" for row in rows], stream=False), CONNECTIONS)
    return sum(float(reply.headers["x-unfold-cost-usd"]) for reply in replies)


def _summarize(
    loads: Mapping[tuple[str, bool], Load],
    faults: Mapping[str, Mapping[str, float]],
    repeats: int,
    cost_error: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {}
    for label in (OURS, PASSED, KEYED, RELAY, PROXY.name):
        figures[label] = {}
        for stream, suffix in ((False, ""), (True, "_stream")):
            load, direct = loads.get((label, stream)), loads["upstream", stream]
            if load is None:
                continue
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                added = np.quantile(load.seconds, share) - np.quantile(direct.seconds, share)
                figures[label][f"overhead_{name}_ms{suffix}"] = 1000 * float(added)
            figures[label][f"requests_per_core_s{suffix}"] = statistics.median(load.per_core)
    metrics = figures.pop(OURS)
    peers = {label: values for label, values in figures.items() if values}
    if PROXY.name in peers:
        for suffix in ("", "_stream"):
            name = f"requests_per_core_s{suffix}"
            metrics[f"litellm_ratio{suffix}"] = metrics[name] / peers[PROXY.name][name]
        peers[PROXY.name] |= {"lost": faults[PROXY.name]["lost"], "billed_twice": faults[PROXY.name]["twice"]}
    metrics |= {
        "lost": faults[KEYED]["lost"],
        "billed_twice": faults[KEYED]["twice"],
        "repeats_billed_twice": repeats,
        "billing_error_percent": 100 * cost_error,
    }
    aims = {
        "overhead_p50_ms": "≤ 2", "overhead_p99_ms": "≤ 10", "litellm_ratio": "≥ 5", "litellm_ratio_stream": "≥ 5",
        "lost": "0", "billed_twice": "0", "repeats_billed_twice": "0", "billing_error_percent": "≤ 1",
    }  # fmt: skip
    versions = {"httpx": importlib.metadata.version("httpx"), "uvicorn": importlib.metadata.version("uvicorn")}
    return {"metrics": metrics, "peers": peers, "aims": aims, "versions": versions, "notes": list(notes)}
