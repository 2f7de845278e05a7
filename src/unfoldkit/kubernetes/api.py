"""A Kubernetes API server: requests and watches, for every controller of this project.

The official client logs in; requests are plain JSON, as its models are slow.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from unfoldkit.errors import Diagnostic, UnfoldError, require_packages, user_error

PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
MAX_CONNECTIONS, MAX_CALLS = 128, 16
"""Connections that are kept, and calls that are made at a time."""
SEND_TRIES, FIRST_PAUSE_S = 4, 0.1
CONNECT_TIMEOUT_S = 10
LEASES, LEASE_TIMEOUT_S = "/apis/coordination.k8s.io/", 5
"""Requests of elections, and how long the server may be silent: a later answer is about a term that has passed."""
WATCH_TIMEOUT_S = 150
"""A watch that is silent for so long is cut and begun again; the server sends a bookmark every minute."""
MAX_RETRY_AFTER_S = 10.0
"""Longest pause that an overloaded server may ask for before a request is sent again."""
CLOCK_TOLERANCE_S = 2.0
"""How much the clock of this machine may differ from the server's; its responses state whole seconds."""
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, INVALID = 401, 403, 404, 409, 410, 422
TOO_MANY_REQUESTS, BAD_GATEWAY = 429, 502
BROKEN = frozenset({500, BAD_GATEWAY, 503, 504})
"""Statuses of a server that may answer the same request soon; one that is repeatable is sent again at once."""
FIRST_ERROR, FIRST_CLIENT_ERROR, FIRST_SERVER_ERROR = 300, 400, 500
"""A redirection is an error: it is that of a proxy, to a page where users sign in."""
KEY = "cluster.kubernetes"
Body = dict[str, Any]
"""An object as decoded JSON."""


class ApiError(Exception):
    """The server refused a request: ``status`` is that of HTTP, ``reason`` and ``message`` are the server's."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message

    @property
    def is_absent(self) -> bool:
        """Whether the object does not exist."""
        return self.status == NOT_FOUND

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later: a conflict, too many requests, or a failure of the server."""
        return self.status in {CONFLICT, TOO_MANY_REQUESTS} or self.status >= FIRST_SERVER_ERROR

    @property
    def is_refusal(self) -> bool:
        """Whether the server does not allow the request: by rights, a quota or an admission policy."""
        return self.status in {FIRST_CLIENT_ERROR, FORBIDDEN, INVALID}

    @property
    def is_conflict(self) -> bool:
        """Whether another writer was faster: a failed ``test`` of a JSON patch, or an outdated version."""
        return self.status in {CONFLICT, INVALID}


class UnreachableError(UnfoldError):
    """The server did not answer a request."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """An event of a watch: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object."""

    kind: str
    body: Body


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits for a server.

    Attributes:
        read_s: Seconds of silence after which it fails.
        tries: How often it is sent to a server that is overloaded or fails.
    """

    read_s: float
    tries: int


DEFAULT_PATIENCE = Patience(read_s=60.0, tries=5)


@dataclass(slots=True)
class Api:
    """A server and the identity used there; safe to use from several threads.

    Attributes:
        client: The official client.
        namespace: The namespace of the pods.
        streams: Open watches.
        closed: Set by ``close``.
        key: The key of a spec that names the server, for messages.
        awaited: Requests without an answer yet, in order of sending.
        patience: How long a request waits for a server that is silent, fails or is overloaded.
        clock_offset_s: Unix time by the server's clock, less the monotonic clock of this process.
    """

    client: Any
    namespace: str
    streams: list[Any] = field(default_factory=list)
    closed: bool = False
    key: str = KEY
    awaited: dict[object, str] = field(default_factory=dict)
    patience: Patience = DEFAULT_PATIENCE
    clock_offset_s: float = field(default_factory=lambda: time.time() - time.monotonic())

    def now(self) -> float:
        """Return the Unix time (s) by the server's clock, which its timestamps and all its clients share."""
        return time.monotonic() + self.clock_offset_s

    def describe_wait(self) -> str:
        """Return the request that has waited longest for an answer; empty for none."""
        return next(iter(list(self.awaited.values())), "")

    def get(self, path: str, **query: str) -> Body:
        """Return an object or a list.

        Raises:
            ApiError: The server refused.
        """
        return self.call("GET", _with_query(path, query))

    def post(self, path: str, body: Body, **query: str) -> Body:
        """Create an object."""
        return self.call("POST", _with_query(path, query), body)

    def ensure(self, path: str, body: Body) -> Body:
        """Create an object unless it exists, and return the server's.

        The request is sent again while the server fails: it may have taken effect before.

        Raises:
            ApiError: The server refused.
            UnfoldError: It cannot be reached.
        """
        try:
            return self.call("POST", path, body, is_repeatable=True)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            return self.get(f"{path}/{body['metadata']['name']}")

    def put(self, path: str, body: Body) -> Body:
        """Replace an object; ``metadata.resourceVersion`` in the body is compared first."""
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Any, kind: str = PATCH) -> Body:
        """Change an object by a merge patch, or a JSON patch (RFC 6902) with ``test`` operations that compare first."""
        return self.call("PATCH", path, body, kind=kind)

    def delete(self, path: str, body: Body | None = None) -> Body:
        """Delete an object."""
        return self.call("DELETE", path, body)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        tries: int | None = None,
        is_repeatable: bool = False,
    ) -> Body:
        """Send a request, again while the server is overloaded or fails, and return the decoded response.

        Args:
            method: Method of HTTP.
            path: Path and query.
            body: What is sent as JSON.
            kind: Content type of the body.
            tries: How often it is sent at most; by default as often as the patience allows.
            is_repeatable: Whether it is sent again after a failure that may follow its effect; a GET always is.

        Raises:
            ApiError: The server refused.
            UnfoldError: It cannot be reached.
        """
        data = None if body is None else msgspec.json.encode(body)
        is_repeatable |= method == "GET"
        tries = tries or self.patience.tries
        for attempt in range(tries):
            sent_s = time.monotonic()
            response = self._send(method, path, data, kind, is_repeatable=is_repeatable)
            self._follow_clock(response.headers.get("Date", ""), sent_s)
            is_overloaded = response.status == TOO_MANY_REQUESTS
            if attempt == tries - 1 or not (is_overloaded or (is_repeatable and response.status in BROKEN)):
                break
            usual_s = 1.0 if is_overloaded else FIRST_PAUSE_S * 2**attempt
            time.sleep(_read_retry_after_s(response.headers.get("Retry-After", ""), usual_s))
        if response.status >= FIRST_ERROR:
            raise _parse_error(response.status, response.data, f"{method} {path.partition('?')[0]}")
        return _parse_body(response.data, f"{method} {path.partition('?')[0]}")

    def watch(self, path: str, version: str, **query: str) -> Iterator[WatchEvent]:
        """Yield changes after a resource version, until the server ends the stream or ``close`` is called.

        Raises:
            ApiError: With status 410 the version is too old; list again.
        """
        watch_query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", **query}
        response = self._send(
            "GET", _with_query(path, watch_query), None, "application/json", is_repeatable=True, stream=True
        )
        if response.status >= FIRST_ERROR:
            raise _parse_error(response.status, response.read(), f"watch of {path}")
        self.streams.append(response)
        try:
            yield from map(_parse_event, _iter_lines(response))
        except ApiError:
            raise
        except Exception as error:
            # a stream that is closed under its reader raises many kinds of errors
            if not self.closed:
                raise user_error(f"the watch of {path} was cut: {error}", key=self.key) from error
        finally:
            self.streams.remove(response)
            response.close()

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        for response in list(self.streams):
            with contextlib.suppress(Exception):
                response.shutdown()

    def _follow_clock(self, date: str, sent_s: float) -> None:
        """Correct the clock where the date of a response shows that it differs by seconds.

        The offset is set and not changed by a difference: responses of several threads may show the same one.
        """
        with contextlib.suppress(ValueError):
            stated_at = parsedate_to_datetime(date).timestamp() + 0.5
            least_s, most_s = stated_at - time.monotonic(), stated_at - sent_s
            if not least_s - CLOCK_TOLERANCE_S <= self.clock_offset_s <= most_s + CLOCK_TOLERANCE_S:
                self.clock_offset_s = min(max(self.clock_offset_s, least_s), most_s)

    def _send(
        self, method: str, path: str, data: bytes | None, kind: str, *, is_repeatable: bool, stream: bool = False
    ) -> Any:
        import urllib3

        config = self.client.configuration
        headers = {"Accept": "application/json", **({"Content-Type": kind} if data is not None else {})}
        for setting in config.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        usual_s = LEASE_TIMEOUT_S if path.startswith(LEASES) else self.patience.read_s
        read_s = WATCH_TIMEOUT_S if stream else usual_s
        timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, read_s), read=read_s)
        request = partial(self.client.rest_client.pool_manager.request, method, config.host + path)
        attempt, token = 0, object()
        while True:
            self.awaited[token] = f"{config.host} has not answered {method} {path.partition('?')[0]}"
            try:
                return request(
                    body=data,
                    headers=headers,
                    preload_content=not stream,
                    timeout=timeout,
                    retries=False,
                    redirect=False,
                )
            except urllib3.exceptions.HTTPError as error:
                attempt += 1
                if attempt == SEND_TRIES or not _may_repeat(error, is_repeatable=is_repeatable):
                    message = f"{config.host} did not answer {method} {path.partition('?')[0]}: {error}"
                    raise UnreachableError(Diagnostic(message, key=self.key)) from error
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            finally:
                del self.awaited[token]


def connect_api(
    context: str = "",
    *,
    kubeconfig: str = "",
    namespace: str = "",
    key: str = KEY,
    patience: Patience = DEFAULT_PATIENCE,
) -> Api:
    """Connect to the server of a kubeconfig context; inside a pod, to its own cluster unless a context is named.

    Raises:
        UnfoldError: The extra is not installed, or there is no such context or file.
    """
    require_packages("Kubernetes", "kubernetes")
    from kubernetes import client, config

    configuration = client.Configuration()
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    try:
        if not context and not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            return Api(client.ApiClient(configuration), namespace or _own_namespace(), key=key, patience=patience)
        config.load_kube_config(kubeconfig or None, context or None, client_configuration=configuration)
        selected = _find_context(config, kubeconfig, context)
    except (config.ConfigException, OSError) as error:
        raise _context_error(error, key) from error
    namespace = namespace or selected.get("namespace", "default")
    return Api(client.ApiClient(configuration), namespace, key=key, patience=patience)


def call_all(calls: Sequence[Any], workers: int = MAX_CALLS) -> list[Any]:
    """Make calls concurrently; return their results or ``ApiError``, in order.

    Raises:
        UnfoldError: The server cannot be reached.
    """
    if len(calls) == 1:
        return [_result_or_error(calls[0])]
    with ThreadPoolExecutor(min(workers, len(calls)) or 1) as pool:
        return list(pool.map(_result_or_error, calls))


def _result_or_error(call: Any) -> Any:
    try:
        return call()
    except ApiError as error:
        return error


def _find_context(config: Any, kubeconfig: str, context: str) -> Body:
    contexts, current = config.list_kube_config_contexts(kubeconfig or None)
    entry = next((entry for entry in contexts if entry["name"] == context), current)
    settings: Body = entry.get("context", {})
    return settings


def _context_error(error: Exception, key: str) -> UnfoldError:
    hint = "kubectl config get-contexts lists them"
    return user_error(f"cannot connect to the cluster: {error}", key=f"{key}.context", hint=hint)


def _own_namespace() -> str:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text("utf-8").strip()


def _with_query(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _may_repeat(error: Exception, *, is_repeatable: bool) -> bool:
    """Return whether to send a request again: it was not sent, or it is repeatable and its connection broke.

    A server that was silent for the whole time limit would only hold its caller for another.
    """
    from urllib3 import exceptions

    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.NewConnectionError)):
        return True
    return is_repeatable and not isinstance(error, exceptions.ReadTimeoutError)


def _iter_lines(response: Any) -> Iterator[bytes]:
    """Yield the complete lines of a stream."""
    incomplete = b""
    for chunk in response.stream(amt=None):
        *lines, incomplete = (incomplete + chunk).split(b"\n")
        yield from (line for line in lines if line)


def _read_retry_after_s(text: str, usual_s: float) -> float:
    """Return the seconds of a ``Retry-After``, within bounds; ``usual_s`` for none or for a date."""
    try:
        return min(max(float(text), FIRST_PAUSE_S), MAX_RETRY_AFTER_S)
    except ValueError:
        return usual_s


def _parse_event(line: bytes) -> WatchEvent:
    event = msgspec.json.decode(line)
    if event["type"] == "ERROR":
        status = event["object"]
        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
    return WatchEvent(event["type"], msgspec.convert(event["object"], Body))


def _parse_body(data: bytes, request: str) -> Body:
    """Decode an object; what is none, such as the page of a proxy, is a failure of the server."""
    try:
        return msgspec.json.decode(data, type=Body)
    except msgspec.MsgspecError as error:
        text = data[:80].decode(errors="replace")
        raise ApiError(BAD_GATEWAY, "BadAnswer", f"{request} was answered with no object: {text!r}") from error


def _parse_error(status: int, data: bytes, request: str) -> ApiError:
    with contextlib.suppress(msgspec.DecodeError):
        body = msgspec.json.decode(data)
        if isinstance(body, dict) and body.get("message"):
            return ApiError(status, body.get("reason", ""), body["message"])
    return ApiError(status, "", f"{request}: {data[:200].decode(errors='replace')}")
