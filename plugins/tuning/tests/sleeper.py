"""A trainable of the test's own: it sleeps, counts, and writes down every iteration that it runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LOADED = time.time()


def train(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Return a metric that grows with iterations towards the configuration's own ceiling."""
    done = json.loads(state)["done"] if state else 0
    with open(os.environ["SLEEPER_LOG"], "a") as log:  # noqa: PTH123
        for step in range(done, done + iters):
            log.write(f"{config['ceiling']:.9f} {step}\n")
            log.flush()
            time.sleep(0.05 / accelerators)
    done += iters
    return config["ceiling"] * (1 - 0.5**done), json.dumps({"done": done}).encode()


def dated(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Write down when this process had loaded the trainable, once for each trial."""
    if state is None:
        with open(os.environ["SLEEPER_LOG"] + ".loaded", "a") as log:  # noqa: PTH123
            log.write(f"{LOADED}\n")
    return train(config, state, iters, accelerators, seed)


def returning_twice(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Fork, and return from both processes."""
    os.fork()
    return float(iters), b""


def broken(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Fail for every configuration with a ceiling below a half."""
    if config["ceiling"] < 0.5:
        raise RuntimeError("too low")
    return train(config, state, iters, accelerators, seed)


def suicidal(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Kill the process, once in the life of the log's folder."""
    mark = os.environ["SLEEPER_LOG"] + ".dead"
    if state is not None and not os.path.exists(mark):  # noqa: PTH110
        with open(mark, "w"):  # noqa: PTH123
            pass
        os.kill(os.getpid(), 9)
    return train(config, state, iters, accelerators, seed)


def murderous(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Kill the raylet that this worker belongs to, once in the life of the log's folder."""
    mark = os.environ["SLEEPER_LOG"] + ".dead"
    if state is not None and not os.path.exists(mark):  # noqa: PTH110
        with open(mark, "w"):  # noqa: PTH123
            pass
        os.kill(os.getppid(), 9)
        time.sleep(60)
    return train(config, state, iters, accelerators, seed)


def mortal(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Kill the process once at every checkpoint."""
    done = json.loads(state)["done"] if state else 0
    mark = f"{os.environ['SLEEPER_LOG']}.dead-{done}"
    if done and not os.path.exists(mark):  # noqa: PTH110
        with open(mark, "w"):  # noqa: PTH123
            pass
        os.kill(os.getpid(), 9)
    return train(config, state, iters, accelerators, seed)


def diverging(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Return nan or inf for every configuration with a ceiling below a half."""
    metric, state = train(config, state, iters, accelerators, seed)
    ceiling = config["ceiling"]
    return (metric if ceiling >= 0.5 else float("nan") if ceiling < 0.25 else float("inf")), state


def deadly(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Kill the process for every configuration with a ceiling above 0.9, while the others take their time."""
    if config["ceiling"] > 0.9:
        time.sleep(0.1)
        os.kill(os.getpid(), 9)
    time.sleep(0.0 if state else 1.0)
    return train(config, state, iters, accelerators, seed)


def talking(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Print, as training scripts do."""
    print("epoch 1")  # noqa: T201
    return train(config, state, iters, accelerators, seed)


def changing(
    config: dict[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Empty the configuration and change the working directory, as training scripts do."""
    ceiling = config.pop("ceiling")
    os.chdir("/")
    return train({"ceiling": ceiling}, state, iters, accelerators, seed)


def forking(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Start a process that outlives the call, and end abruptly after the first checkpoint, once."""
    child = get_context("fork").Process(target=time.sleep, args=(600.0,), daemon=True)
    child.start()
    with open(os.environ["SLEEPER_LOG"] + ".children", "a") as log:  # noqa: PTH123
        log.write(f"{child.pid}\n")
    return suicidal(config, state, iters, accelerators, seed)


def detaching(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Start two processes in sessions of their own, one executed and one forked twice, as daemons are."""
    executed = subprocess.Popen(["sleep", "600"], start_new_session=True)  # noqa: S607 - a program of any system
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        forked = os.fork()
        if forked == 0:
            time.sleep(600.0)
        os.write(writer, f"{forked}".encode())
        os._exit(0)
    with open(os.environ["SLEEPER_LOG"] + ".children", "a") as log:  # noqa: PTH123
        log.write(f"{executed.pid}\n{os.read(reader, 20).decode()}\n")
    return suicidal(config, state, iters, accelerators, seed)


def orphaning(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Start a process in a session of its own and leave it running."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)  # noqa: S607 - a program of any system
    with open(os.environ["SLEEPER_LOG"] + ".children", "a") as log:  # noqa: PTH123
        log.write(f"{child.pid}\n")
    return train(config, state, iters, accelerators, seed)


def solving(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Return a loss that is zero from the second iteration on."""
    _, state = train(config, state, iters, accelerators, seed)
    return float(json.loads(state)["done"] < 2), state


def silent(config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int) -> None:
    """Return nothing, as a function with a forgotten last line does."""


def leaving(config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int) -> None:
    """End the process, as scripts do that were made a function."""
    sys.exit("no data")


class PanicError(BaseException):
    """What libraries in Rust raise, such as Polars: no :class:`Exception`."""


def panicking(config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int) -> None:
    """Panic."""
    raise PanicError("index out of bounds")


def hanging(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Hang for ever after the first checkpoint of every configuration with a ceiling above 0.9."""
    if state is not None and config["ceiling"] > 0.9:
        time.sleep(10_000)
    return train(config, state, iters, accelerators, seed)


def failing(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Raise after six iterations of every configuration with a ceiling above 0.9."""
    if state is not None and json.loads(state)["done"] >= 6 and config["ceiling"] > 0.9:
        raise RuntimeError("too late")
    return train(config, state, iters, accelerators, seed)


def mended(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Raise for every configuration, as long as the environment says that it is wrong."""
    if "SLEEPER_WRONG" in os.environ:
        raise RuntimeError("wrong")
    return train(config, state, iters, accelerators, seed)


def straggling(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Take two seconds longer for every configuration with a ceiling above 0.9."""
    if config["ceiling"] > 0.9:
        time.sleep(2.0)
    return train(config, state, iters, accelerators, seed)


def forgetful(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Remove every checkpoint beside the log and kill the process, once in the life of the log's folder."""
    log = Path(os.environ["SLEEPER_LOG"])
    if state is not None and not log.with_suffix(".gone").exists():
        log.with_suffix(".gone").touch()
        for file in log.parent.rglob("*.state"):
            file.unlink()
        os.kill(os.getpid(), 9)
    return train(config, state, iters, accelerators, seed)


def losing(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Return a loss instead of a gain."""
    metric, state = train(config, state, iters, accelerators, seed)
    return 1 - metric, state


def reducing(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Sum the ranks of a spanning trial by ``torch.distributed`` or by sockets; the last one kills its node once."""
    rank = int(os.environ["RANK"])
    total = _reduce_by_torch(rank + 1.0) if config["by"] == "torch" else _reduce_by_sockets(rank + 1.0)
    done = json.loads(state)["done"] if state else 0
    log = Path(os.environ["SLEEPER_LOG"])
    with log.open("a") as lines:
        variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "UNFOLD_HOSTS")
        lines.write(" ".join([str(done), *(os.environ[name] for name in variables)]) + "\n")
    if done == 2 and rank == accelerators - 1 and not log.with_suffix(".dead").exists():
        log.with_suffix(".dead").touch()
        # the node of a local trial is its process, that of one on Ray is the raylet
        os.kill(os.getpid() if config["by"] == "torch" else os.getppid(), 9)
        time.sleep(60)
    return total, json.dumps({"done": done + iters}).encode()


def _reduce_by_torch(value: float) -> float:
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    total = torch.tensor([value])
    distributed.all_reduce(total)
    return float(total)


def _reduce_by_sockets(value: float) -> float:
    """Sum over two ranks: the first one listens at the rendezvous."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if os.environ["RANK"] == "0":
        with socket.create_server(address) as server, server.accept()[0] as peer:
            total = value + float(peer.recv(64))
            peer.sendall(str(total).encode())
            return total
    while True:
        try:
            with socket.create_connection(address, timeout=60) as peer:
                peer.sendall(str(value).encode())
                if total := peer.recv(64):
                    return float(total)
        except ConnectionError:
            pass
        # the first rank does not listen yet, or still closes the socket of the last step
        time.sleep(0.05)


def crawling(
    config: Mapping[str, Any], state: bytes | None, iters: int, accelerators: int, seed: int
) -> tuple[float, bytes]:
    """Take ten minutes an iteration for every configuration with a ceiling above 0.9."""
    if config["ceiling"] > 0.9:
        time.sleep(600.0 * iters)
    return train(config, state, iters, accelerators, seed)
