"""Responses per second of the served cascade over HTTP, next to the baseline model served by FastAPI and joblib.

All servers run at once on one core and are driven in turn from another, over loopback, by 64 keep-alive connections
that send the next row as soon as the answer is there. Every answer of ours holds the whole route.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "configs" / "cascade" / "digits.yaml"
# the candidate that wins anyway; the others only cost time in a quick run
QUICK = (
    "baseline.candidates=[{estimator: svc, params: {C: 10, gamma: 0.001}, scale: false}]",
    "gates.folds=2",
    "gates.bins=32",
)
OURS, SAME, PEER, ASYNC = "cascade", "monolith, same server", "FastAPI + joblib", "FastAPI + joblib, async def"


@dataclass(frozen=True, slots=True)
class Target:
    """A server to drive: the process that answers, where, and a file with one body a line."""

    process: int
    url: str
    bodies: Path


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Train the shipped spec, serve it and its peers, and drive them in turn.

    Args:
        quick: Fewer and shorter rounds, and no other monolithic candidate is fitted.
        seed: Seed of the split.
        data: Not used.
    """
    del data
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        cascade = folder / "cascade"
        _unfold("train", SPEC, "--run", cascade, "--seed", seed, *(_settings(QUICK) if quick else ()))
        cores = sorted(os.sched_getaffinity(0))
        targets = _targets(stack, folder, cascade, seed, core=cores[0])
        same = _agreement(targets)
        rounds = [_round(targets, cores[-1], 1.0 if quick else 5.0) for _ in range(2 if quick else 5)]
    return _summary(rounds) | {"notes": _notes(same, cores)}


def _settings(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def _without_cascade(cascade: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Return a copy of the run with the baseline as its plan, and the baseline as a joblib file."""
    import joblib

    from unfold_cascade.learners.estimators import from_bytes

    shutil.copytree(cascade, folder)
    # no number of cases certifies a loss of nothing, so this plan is the monolith
    _unfold("plan", folder, "--seed", seed, *_settings(["goal.max_loss=0%"]))
    plan = json.loads((folder / "report.json").read_text())["decision"]
    if plan["cascade"] is not None:
        raise RuntimeError("a cascade was certified to lose nothing: there is no monolith to compare with")
    stored = next((folder / "models" / "baseline" / "all").glob(f"{plan['baseline']}.*"))
    model = folder / "model.joblib"
    joblib.dump(from_bytes(stored.read_bytes(), ubjson=stored.suffix == ".ubj", file=str(stored)), model)
    return folder, model


def _unfold(*words: object) -> None:
    text = [sys.executable, "-m", "unfoldkit", *map(str, words), "--exit-zero"]
    subprocess.run(text, check=True, stdout=subprocess.DEVNULL)


def _targets(stack: ExitStack, folder: Path, cascade: Path, seed: int, core: int) -> dict[str, Target]:
    serve = [sys.executable, "-m", "unfoldkit", "serve"]
    first, one = stack.enter_context(_server([*serve, str(cascade)], "/v2/health/ready", core))
    # copied with the models that the first server converted
    monolith, model = _without_cascade(cascade, folder / "monolith", seed)
    second, two = stack.enter_context(_server([*serve, str(monolith)], "/v2/health/ready", core))
    peer = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.fastapi_app:create", "--no-access-log"]
    third, three = stack.enter_context(_server(peer, "/docs", core, {"PEER_MODEL": str(model)}))
    ours, theirs = _bodies(cascade, folder)
    path = "/v2/models/digits/infer"
    return {
        PEER: Target(three, f"{third}/predict", theirs),
        ASYNC: Target(three, f"{third}/predict-async", theirs),
        SAME: Target(two, f"{second}{path}", ours),
        OURS: Target(one, f"{first}{path}", ours),
    }


def _bodies(cascade: Path, folder: Path) -> tuple[Path, Path]:
    """Write the rows that no model was fitted on as requests of both servers."""
    rows = np.load(cascade / "serving" / "probe.npz")["x"]
    ours, theirs = folder / "ours", folder / "theirs"
    ours.write_text("\n".join(json.dumps({"inputs": [_tensor(row)]}) for row in rows))
    theirs.write_text("\n".join(json.dumps({"features": row.tolist()}) for row in rows))
    return ours, theirs


def _tensor(row: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, len(row)], "datatype": "FP64", "data": row.tolist()}


@contextmanager
def _server(
    command: list[str], ready: str, core: int, more: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Start a server on one core and a free port; give its address and process."""
    port = _free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    words = [*command, "--port", str(port)]
    started = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(started.pid, {core})
    try:
        _wait(f"http://127.0.0.1:{port}{ready}", started)
        yield f"http://127.0.0.1:{port}", started.pid
    finally:
        started.terminate()
        started.wait(30)


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(f"a server ended with {process.returncode} before {url} answered")
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - our own address
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{url} does not answer")


def _agreement(targets: Mapping[str, Target]) -> dict[str, float]:
    """Return on which share of the rows each server's label is that of the peer."""
    labels = {name: [_label(target.url, body) for body in _lines(target)[:128]] for name, target in targets.items()}
    return {
        name: statistics.fmean(a == b for a, b in zip(found, labels[PEER], strict=True))
        for name, found in labels.items()
    }


def _lines(target: Target) -> list[bytes]:
    return target.bodies.read_bytes().splitlines()


def _label(url: str, body: bytes) -> str:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        found = json.load(answer)
    return str(found["outputs"][0]["data"][0] if "outputs" in found else found["label"])


def _round(targets: Mapping[str, Target], core: int, seconds: float) -> dict[str, dict[str, float]]:
    return {name: _driven(target, core, seconds) for name, target in targets.items()}


def _driven(target: Target, core: int, seconds: float) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.load", target.url, str(target.bodies), "--seconds", str(seconds)]
    before = _cpu_seconds(target.process)
    driver = subprocess.Popen([*words, "--warm", "0.2", "--connections", "64"], cwd=ROOT, stdout=subprocess.PIPE)
    os.sched_setaffinity(driver.pid, {core})
    output, _ = driver.communicate(timeout=seconds + 60)
    used = _cpu_seconds(target.process) - before
    found = json.loads(output)
    if driver.returncode or found["broken"] or set(found["answers"]) != {"200"}:
        raise RuntimeError(f"{target.url}: {found}")
    sys.stderr.write(f"cascade-serve: {target.url} {found['requests_per_s']:.0f} answers a second\n")
    each = 1e6 * used / found["all_answers"]
    return {name: found[name] for name in ("requests_per_s", "p50_ms", "p99_ms", "driver_busy")} | {"cpu_us": each}


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    middle = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }
    rows = [{"round": n, "server": name, **one[name]} for n, one in enumerate(rounds, 1) for name in one]
    best = max((PEER, ASYNC), key=lambda name: middle[name]["requests_per_s"])
    ours, theirs = middle[OURS], middle[best]
    return {
        "metrics": {
            "requests_per_s": ours["requests_per_s"],
            "baseline_requests_per_s": theirs["requests_per_s"],
            "ratio": ours["requests_per_s"] / theirs["requests_per_s"],
            "ratio_min": min(one[OURS]["requests_per_s"] / one[best]["requests_per_s"] for one in rounds),
            "ratio_max": max(one[OURS]["requests_per_s"] / one[best]["requests_per_s"] for one in rounds),
            "same_server_monolith_ratio": middle[SAME]["requests_per_s"] / theirs["requests_per_s"],
            "cpu_us": ours["cpu_us"],
            "baseline_cpu_us": theirs["cpu_us"],
            "cpu_ratio": theirs["cpu_us"] / ours["cpu_us"],
            "p50_ms": ours["p50_ms"],
            "p99_ms": ours["p99_ms"],
            "baseline_p99_ms": theirs["p99_ms"],
            "driver_busy": ours["driver_busy"],
        },
        "peers": {name: middle[name] for name in middle if name != OURS},
        "tables": {"rounds": rows},
        "aims": {"ratio": "≥ 10"},
    }


def _notes(same: Mapping[str, float], cores: list[int]) -> list[str]:
    agree = ", ".join(f"{name} {share:.1%}" for name, share in same.items())
    where = "one core for the servers, another for the driver" if len(cores) > 1 else "one core for servers and driver"
    return [
        "medians of interleaved rounds; the baseline is the faster of FastAPI's def and async def endpoints",
        f"{where}; cpu_us is processor time of the server per answer, which other work on the machine disturbs least",
        "driver_busy: share of a core that the driver used against ours; near 1 it bounds the figure, not the server",
        f"same label as the monolith behind FastAPI: {agree}",
        "same_server_monolith_ratio: the monolith behind our server, so what the server earns without the cascade",
    ]
