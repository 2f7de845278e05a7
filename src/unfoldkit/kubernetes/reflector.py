"""Reflectors: each passes the objects of a list, and their later changes, to a handler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from unfoldkit.kubernetes.api import FORBIDDEN, GONE, NOT_FOUND, Api, ApiError, Body, UnreachableError

PAUSE_S = 1.0
"""Pause after an interrupted watch, and least time between the beginnings of two watches."""
LOGGED_REFUSAL = 4
"""Of refusals in succession this one is logged: a server that starts denies everything until it has read its roles."""
ObjectKey = tuple[str | None, str]
"""Namespace (None for cluster-scoped objects) and name of an object."""


class Handler(Protocol):
    """Receives an object that exists or, with ``is_gone``, was deleted."""

    def __call__(self, body: Body, *, is_gone: bool = False) -> None:
        """Process the object."""


@dataclass(slots=True)
class Reflector:
    """Passes every object of a list, and its later changes, to a handler.

    Attributes:
        api: The server.
        path: Path of the list.
        handle: Receives objects.
        find_missing: Returns objects that the handler knows and that are not among the existing ones.
        query: Selectors of the list.
        absent_pause_s: Longest pause before a list that the server does not have, or denies, is read again.
        last_error: The last error that was logged; empty once the server answered.
        refusals: How often in succession the server did not have the list, or denied it.
    """

    api: Api
    path: str
    handle: Handler
    find_missing: Callable[[set[ObjectKey]], Iterable[Body]]
    query: Mapping[str, str] = field(default_factory=dict)
    absent_pause_s: float = PAUSE_S
    last_error: str = ""
    refusals: int = 0

    def start(self) -> threading.Thread:
        """Read the list, and follow it in a new thread."""
        return self._start_thread(self._read_list())

    def start_optional(self) -> threading.Thread:
        """Read the list, and follow it in a new thread; one that the server refuses is read once it does not."""
        try:
            return self.start()
        except ApiError as error:
            self.last_error = str(error)
            logging.getLogger("unfoldkit").info("%s is not followed yet: %s", self.path, error)
            return self._start_thread("")

    def _start_thread(self, version: str) -> threading.Thread:
        thread = threading.Thread(target=self._follow, args=(version,), daemon=True)
        thread.start()
        return thread

    def _read_list(self) -> str:
        """Pass the whole list to the handler and return its resource version."""
        listed = self.api.get(self.path, **self.query)
        bodies: list[Body] = listed.get("items") or []
        existing = {(meta.get("namespace"), meta.get("name", "")) for meta in map(_read_metadata, bodies)}
        # pods that run come first: others of their workload replace some of its pods
        for body in sorted(bodies, key=lambda body: bool((body.get("spec") or {}).get("schedulingGates"))):
            self._pass_object(body)
        for body in self.find_missing(existing):
            self._pass_object(body, is_gone=True)
        return str(_read_metadata(listed).get("resourceVersion") or "0")

    def _follow(self, version: str) -> None:
        while not self.api.closed:
            began_s = time.monotonic()
            try:
                version = version or self._read_list()
                for event in self.api.watch(self.path, version, **self.query):
                    if event.kind != "BOOKMARK":
                        self._pass_object(event.body, is_gone=event.kind == "DELETED")
                    # of an object that the handler could not process yet, the next watch sends the event again
                    version = _read_metadata(event.body).get("resourceVersion") or version
                    self.last_error, self.refusals = "", 0
            except ApiError as error:
                version = "" if error.status == GONE else version
                pause_s = self._choose_pause_s(error)
                if error.status != GONE and self.refusals in {0, LOGGED_REFUSAL}:
                    self._log_error(error)
                time.sleep(pause_s)
            except Exception as error:  # noqa: BLE001 - if this thread ended, no change would arrive any more
                self.refusals = 0
                if not self.api.closed:
                    logging.getLogger("unfoldkit").info("watch of %s was cut: %s", self.path, error)
                    time.sleep(PAUSE_S)
            # a server or proxy may end every watch at once
            time.sleep(max(0.0, began_s + PAUSE_S - time.monotonic()))

    def _choose_pause_s(self, error: ApiError) -> float:
        """Return the pause after an error; refusals in succession make it longer."""
        if error.status not in {FORBIDDEN, NOT_FOUND}:
            self.refusals = 0
            return PAUSE_S
        self.refusals += 1
        return min(self.absent_pause_s, PAUSE_S * 2.0 ** min(self.refusals - 1, 10))

    def _log_error(self, error: ApiError) -> None:
        """Log that the server refuses the list or its watch, once for each error."""
        if str(error) != self.last_error:
            logging.getLogger("unfoldkit").warning("%s cannot be followed: %s", self.path, error)
        self.last_error = str(error)

    def _pass_object(self, body: Body, *, is_gone: bool = False) -> None:
        """Pass an object to the handler; one that it cannot process is logged, so that it blocks no other.

        Raises:
            ApiError: The server refused a request of the handler for the moment.
            UnreachableError: The server did not answer the handler.
        """
        try:
            self.handle(body, is_gone=is_gone)
        except UnreachableError:
            raise
        except Exception as error:
            if isinstance(error, ApiError) and error.is_temporary:
                raise
            meta = _read_metadata(body)
            name = "/".join(filter(None, (meta.get("namespace"), meta.get("name")))) or "an object without a name"
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            logging.getLogger("unfoldkit").warning("%s of %s is left out: %s", name, self.path, reason)


def _read_metadata(body: Body) -> Body:
    return body.get("metadata") or {}
