"""Jobs as Ray tasks, on a running cluster or on one that is started here on loopback."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from unfoldkit.errors import UnfoldError, internal_error, require_packages, user_error

CONNECT_TIMEOUT_S = 10.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Runs jobs on Ray; ``address`` is that of a running cluster, and ``None`` starts one on this machine."""

    address: str | None = None
    name: str = "ray"

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """See :class:`~unfoldkit.engines.Engine`."""
        ray = connect_ray(self.address)
        task = ray.remote(num_cpus=1)(function)
        waiting = {task.remote(item): index for index, item in enumerate(items)}
        results: dict[int, Any] = {}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(done[0])
            results[index] = _result(ray, done[0])
            if on_result:
                on_result(index, results[index])
        return [results[index] for index in range(len(items))]


def connect_ray(address: str | None) -> ModuleType:
    """Return the module ``ray``, connected to the cluster at ``address`` or to one started on this machine.

    Raises:
        UnfoldError: Ray is not installed, or no cluster responds.
    """
    require_packages("--engine ray", "ray")
    import ray

    if not ray.is_initialized():
        try:
            require_listener(address or "")
            with keeping_signal_handlers():
                # without an address, Ray would look for the last cluster of this machine, which may have ended
                ray.init(
                    address=address or "local", log_to_driver=False, logging_level="ERROR", include_dashboard=False
                )
        except ConnectionError as error:
            hint = "ray start --head, or leave --ray-address out; for a cluster with a token, set RAY_AUTH_MODE=token"
            raise user_error(f"no Ray cluster responds at {address}", hint=hint) from error
        except Exception as error:  # Ray has no exception class for a node that does not start in time
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise internal_error(f"Ray does not start on this machine: {reason}", hint="is it too busy?") from error
    return ray  # type: ignore[no-any-return]


def require_listener(address: str) -> None:
    """Require that something listens at the address of a head: Ray itself would try for ten minutes.

    Raises:
        ConnectionError: Nothing does. Addresses without a port, such as ``auto``, are not checked.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from error


@contextmanager
def keeping_signal_handlers() -> Iterator[None]:
    """Keep the signal handlers of this process while Ray connects: Ray would end it at SIGTERM without cleaning up."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {which: signal.getsignal(which) for which in SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)


def _result(ray: ModuleType, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, UnfoldError) else None
        raise cause or internal_error(f"a Ray task failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        raise internal_error(
            f"a Ray worker or node was lost: {type(error).__name__}", hint="run again: it resumes"
        ) from error
