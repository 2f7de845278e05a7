"""A Kubernetes API server: the official client finds it and logs in; requests are bare JSON, as its models are slow."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from unfoldkit.api import UnfoldError, fail

PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
CONNECTIONS = 32
TRIES = 5
GONE = 410
Body = dict[str, Any]


class ApiError(Exception):
    """The server said no: ``status`` is that of HTTP, ``reason`` and ``message`` are its words."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message

    @property
    def is_absent(self) -> bool:
        """Whether the object is not there."""
        return self.status == 404

    @property
    def is_conflict(self) -> bool:
        """Whether somebody else was faster: a failed test of a JSON patch, or a version that is no longer current."""
        return self.status in {409, 422}


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object."""

    kind: str
    item: Body


@dataclass(slots=True)
class Api:
    """A server and who we are there; safe to use from several threads."""

    client: Any
    namespace: str
    streams: list[Any] = field(default_factory=list)
    closed: bool = False

    def get(self, path: str, **query: str) -> Body:
        """Return an object or a list.

        Raises:
            Refused: the server said no.
        """
        return self.call("GET", _with(path, query))

    def post(self, path: str, body: Body, **query: str) -> Body:
        """Create an object."""
        return self.call("POST", _with(path, query), body)

    def put(self, path: str, body: Body) -> Body:
        """Replace an object; ``metadata.resourceVersion`` in the body is compared first."""
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Any, kind: str = PATCH) -> Body:
        """Change an object by a JSON patch (RFC 6902), whose ``test`` operations compare first."""
        return self.call("PATCH", path, body, kind=kind)

    def delete(self, path: str, body: Body | None = None) -> Body:
        """Delete an object."""
        return self.call("DELETE", path, body)

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Body:
        """Ask once, and again while the server is too busy to answer.

        Raises:
            Refused: the server said no.
            UnfoldError: it cannot be reached.
        """
        sent = None if body is None else msgspec.json.encode(body)
        for attempt in range(TRIES):
            answer = self._once(method, path, sent, kind)
            if answer.status != 429 or attempt == TRIES - 1:
                break
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        if answer.status >= 400:
            raise _refused(answer.status, answer.data)
        found: Body = msgspec.json.decode(answer.data)
        return found

    def watch(self, path: str, version: str, **query: str) -> Iterator[Change]:
        """Yield what changes after a resource version, until the server ends the stream or ``close`` does.

        Raises:
            Refused: 410 where the version is too old; list again.
        """
        more = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", **query}
        answer = self._once("GET", _with(path, more), None, "application/json", stream=True)
        if answer.status >= 400:
            raise _refused(answer.status, answer.read())
        self.streams.append(answer)
        try:
            yield from map(_change, _lines(answer))
        except ApiError:
            raise
        except Exception as error:
            # a stream that is closed under its reader ends in many ways, none of which means anything
            if not self.closed:
                raise fail(f"the watch of {path} was cut: {error}", key="cluster.kubernetes") from error
        finally:
            self.streams.remove(answer)
            answer.close()

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        for answer in list(self.streams):
            with contextlib.suppress(Exception):
                answer.shutdown()

    def _once(self, method: str, path: str, body: bytes | None, kind: str, *, stream: bool = False) -> Any:
        import urllib3

        config = self.client.configuration
        headers = {"Accept": "application/json", **({"Content-Type": kind} if body is not None else {})}
        for setting in config.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        limit = urllib3.Timeout(connect=10, read=None if stream else 60)
        pool = self.client.rest_client.pool_manager
        try:
            return pool.request(
                method, config.host + path, body=body, headers=headers, preload_content=not stream, timeout=limit,
                retries=urllib3.Retry(3, redirect=False, status=0, backoff_factor=0.1, allowed_methods={"GET"}),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise fail(f"{config.host} does not answer: {error}", key="cluster.kubernetes") from error


def connect_api(context: str = "", *, kubeconfig: str = "", namespace: str = "") -> Api:
    """Return the server of a context of the kubeconfig; of the pod that we run in, if there is one and none is named.

    Raises:
        UnfoldError: the extra is not installed, or there is no such context or file.
    """
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        hint = "pip install 'unfoldkit[kubernetes]'"
        raise fail("Kubernetes needs the package 'kubernetes', which is not installed", hint=hint) from error
    made = client.Configuration()
    made.connection_pool_maxsize = CONNECTIONS
    try:
        if not context and not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=made)
            return Api(client.ApiClient(made), namespace or _own_namespace())
        config.load_kube_config(kubeconfig or None, context or None, client_configuration=made)
        chosen = _context(config, kubeconfig, context)
    except (config.ConfigException, OSError) as error:
        raise _no_context(error) from error
    return Api(client.ApiClient(made), namespace or chosen.get("namespace", "default"))


def call_all(calls: Sequence[Any], workers: int = CONNECTIONS // 2) -> list[Any]:
    """Make some calls at once; return results and what the server refused, in order.

    Raises:
        UnfoldError: the server cannot be reached.
    """
    if len(calls) == 1:
        return [_tried(calls[0])]
    with ThreadPoolExecutor(min(workers, len(calls)) or 1) as pool:
        return list(pool.map(_tried, calls))


def _tried(call: Any) -> Any:
    try:
        return call()
    except ApiError as refused:
        return refused


def _context(config: Any, kubeconfig: str, context: str) -> Body:
    contexts, current = config.list_kube_config_contexts(kubeconfig or None)
    found = next((item for item in contexts if item["name"] == context), current)
    chosen: Body = found.get("context", {})
    return chosen


def _no_context(error: Exception) -> UnfoldError:
    hint = "kubectl config get-contexts lists them"
    return fail(f"no way to the cluster: {error}", key="cluster.kubernetes.context", hint=hint)


def _own_namespace() -> str:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text("utf-8").strip()


def _with(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _lines(answer: Any) -> Iterator[bytes]:
    """Yield whole lines of a stream."""
    rest = b""
    for chunk in answer.stream(amt=None):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)


def _change(line: bytes) -> Change:
    found = msgspec.json.decode(line)
    if found["type"] == "ERROR":
        status = found["object"]
        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
    return Change(found["type"], found["object"])


def _refused(status: int, data: bytes) -> ApiError:
    with contextlib.suppress(msgspec.DecodeError):
        told = msgspec.json.decode(data)
        if isinstance(told, dict):
            return ApiError(status, told.get("reason", ""), told.get("message", ""))
    return ApiError(status, "", data[:200].decode(errors="replace"))
