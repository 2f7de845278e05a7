"""Reflectors: each passes the objects of a list, and their later changes, to a handler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from unfoldkit.kubernetes.api import GONE, Api, ApiError, Body, UnreachableError

PAUSE_S = 1.0
"""Pause after an interrupted watch."""
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
    """

    api: Api
    path: str
    handle: Handler
    find_missing: Callable[[set[ObjectKey]], Iterable[Body]]
    query: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> threading.Thread:
        """Read the list, and follow it in a new thread."""
        thread = threading.Thread(target=self._follow, args=(self._read_list(),), daemon=True)
        thread.start()
        return thread

    def _read_list(self) -> str:
        """Pass the whole list to the handler and return its resource version."""
        listed = self.api.get(self.path, **self.query)
        existing = {(body["metadata"].get("namespace"), body["metadata"]["name"]) for body in listed["items"]}
        # pods that run come first: others of their workload replace some of its pods
        for body in sorted(listed["items"], key=lambda body: bool(body.get("spec", {}).get("schedulingGates"))):
            self._pass_object(body)
        for body in self.find_missing(existing):
            self._pass_object(body, is_gone=True)
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        while not self.api.closed:
            try:
                version = version or self._read_list()
                for event in self.api.watch(self.path, version, **self.query):
                    if event.kind != "BOOKMARK":
                        self._pass_object(event.body, is_gone=event.kind == "DELETED")
                    # of an object that the handler could not process yet, the next watch sends the event again
                    version = event.body["metadata"]["resourceVersion"]
            except ApiError as error:
                version = "" if error.status == GONE else version
                time.sleep(PAUSE_S)
            except Exception as error:  # noqa: BLE001 - if this thread ended, no change would arrive any more
                if not self.api.closed:
                    logging.getLogger("unfoldkit").info("watch of %s was cut: %s", self.path, error)
                    time.sleep(PAUSE_S)

    def _pass_object(self, body: Body, *, is_gone: bool = False) -> None:
        """Pass an object to the handler; one that it cannot process is logged, so that it blocks no other.

        Raises:
            ApiError: the server refused a request of the handler for the moment.
            UnreachableError: the server did not answer the handler.
        """
        try:
            self.handle(body, is_gone=is_gone)
        except UnreachableError:
            raise
        except Exception as error:
            if isinstance(error, ApiError) and error.is_temporary:
                raise
            meta = body.get("metadata") or {}
            name = "/".join(filter(None, (meta.get("namespace"), meta.get("name"))))
            logging.getLogger("unfoldkit").warning("%s of %s is left out: %s", name, self.path, error)
