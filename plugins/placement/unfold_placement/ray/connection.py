"""Starting a policy's coordinator on Ray, and calls to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from unfold_placement.core.types import Node
from unfold_placement.ray.coordinator import RESERVATION_TIMEOUT_S, Coordinator
from unfoldkit.api import Diagnostic, UnfoldError, user_error

SPACE = "unfold"
"""Ray namespace of the coordinators."""
MAX_CONCURRENT_CALLS = 64
"""Calls that a coordinator serves at once: each client and each controller waits in one or two."""


CALL_TIMEOUT_S = 60.0
"""How long the coordinator may take to answer, beyond the time for which a call waits by itself."""
WAITING_CALLS = frozenset({"watch", "wait_for_offers"})
"""Methods with a last argument that says for how many seconds they wait."""


class CoordinatorTimeoutError(UnfoldError):
    """The coordinator did not answer in time; it may still carry the call out."""


class CoordinatorDiedError(UnfoldError):
    """The coordinator's process has ended, and its records with it."""


def start_coordinator(
    name: str,
    described: Sequence[Node] = (),
    *,
    clock: Callable[[], float] = time.monotonic,
    reservation_timeout_s: float = RESERVATION_TIMEOUT_S,
) -> Any:
    """Return the coordinator of a policy, started if there is none; it outlives this process.

    All arguments but ``name`` only apply to a coordinator that this call starts.
    """
    import ray

    actor = ray.remote(num_cpus=0, max_concurrency=MAX_CONCURRENT_CALLS, max_restarts=-1)(Coordinator)
    named = actor.options(name=f"steward-{name}", lifetime="detached", get_if_exists=True)
    return named.remote(described, clock, reservation_timeout_s)


def call_coordinator(coordinator: Any, method: str, *args: Any) -> Any:
    """Call a method of a coordinator and return its result.

    Raises:
        UnfoldError: The method raised it, or Ray failed.
        CoordinatorDiedError: The coordinator is being restarted.
        CoordinatorTimeoutError: There was no answer in time.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

    timeout_s = CALL_TIMEOUT_S + (float(args[-1]) if method in WAITING_CALLS else 0.0)
    try:
        return ray.get(getattr(coordinator, method).remote(*args), timeout=timeout_s)
    except GetTimeoutError as error:
        message = f"the coordinator did not answer {method} within {timeout_s:g} s"
        raise CoordinatorTimeoutError(Diagnostic(message, hint="ray status shows what the cluster lacks")) from error
    except RayTaskError as error:
        if isinstance(error.cause, UnfoldError):
            raise error.cause from None
        raise user_error(f"the coordinator failed in {method}: {error.cause}", hint="see its log in Ray") from error
    except RayActorError as error:
        message = "the coordinator of the cluster has died"
        raise CoordinatorDiedError(Diagnostic(message, hint="Ray restarts it")) from error
    except RayError as error:
        raise user_error(f"Ray could not deliver {method} to the coordinator: {error}") from error
