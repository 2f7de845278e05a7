"""``unfold serve``: host the service of a kind in one process or in several."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from unfoldkit.cli import console
from unfoldkit.cli.execution import (
    build_run,
    check_run_kind,
    compare_with_spec,
    load_request,
    perform,
    reject_target,
    run_folder,
    store_spec,
    verb_reference,
)
from unfoldkit.cli.plan_check import read_plan
from unfoldkit.cli.progress import show_progress
from unfoldkit.cli.request import Request
from unfoldkit.errors import ExitCode, explain_missing_packages, user_error
from unfoldkit.plugin_descriptors import resolve
from unfoldkit.registry import open_registry
from unfoldkit.run_context import Run
from unfoldkit.serving.http.address import Address, bind_socket, is_listening, open_listener
from unfoldkit.serving.http.resource_limits import ResourceLimits
from unfoldkit.serving.http.tls import TlsFiles
from unfoldkit.serving.http.workers import Supervisor
from unfoldkit.serving.observability.access_log import (
    JsonLines,
    Observer,
    combine_observers,
    json_access_log,
)
from unfoldkit.serving.observability.tracing import find_instrumentation, request_tracer
from unfoldkit.serving.service import Service, is_always_healthy
from unfoldkit.spec.resolve import RUN_PLAN, LoadedSpec

if TYPE_CHECKING:
    # the HTTP stack belongs to an extra; what the kind itself lacks is reported first
    from unfoldkit.serving.http.server import Heartbeat, HostOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of ``unfold serve``.

    Args:
        host: The address to listen on.
        port: The port; 0 for a free one.
        token: The bearer token of the service; empty for none.
        processes: How many processes share the port.
        log_json: Log to stderr as JSON, with one line per request.
        fast_path: Answer plain requests without ASGI, and gRPC without grpcio.
        tls: The files of TLS; ``None`` for plain HTTP.
        is_insecure: A token may cross the network in plain text.
        max_connections: The bound of open connections per process; 0 for as many as the descriptors allow.
        grpc_port: The port of gRPC; 0 for HTTP only.
        model_control: Clients may unload models and load them again.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    processes: int = 1
    log_json: bool = False
    fast_path: bool = True
    tls: TlsFiles | None = None
    is_insecure: bool = False
    max_connections: int = 0
    grpc_port: int = 0
    model_control: bool = False

    @property
    def address(self) -> Address:
        """Where to listen."""
        return Address(
            # as it stands in a URL
            host=self.host.removeprefix("[").removesuffix("]"),
            port=self.port,
            token=self.token,
            is_encrypted=self.tls is not None,
            knows_clients=self.tls is not None and self.tls.client_ca is not None,
            is_insecure=self.is_insecure,
        )


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """Serves as one of several processes. It is pickled to each of them.

    Args:
        request: The call.
        options: The options of ``unfold serve``, with the port that is bound.
        stdin: The text of a spec that came from stdin.
        folder: The folder in which the processes share their metrics.
    """

    request: Request
    options: ServeOptions
    stdin: str = ""
    folder: Path = field(default_factory=Path)

    def __call__(self, number: int, heartbeat: Heartbeat) -> None:
        """Serve until the end; the first process prints what the service offers."""
        raise SystemExit(console.run_guarded(lambda: self._serve(number, heartbeat)))

    def _serve(self, number: int, heartbeat: Heartbeat) -> int:
        registry = open_registry(builtin_only=self.request.builtin_only)
        loaded = load_request(self.request, registry, self.stdin)
        service = _start_service(loaded, _build_run(self.request, loaded, log_json=self.options.log_json))
        store_metrics = service.share(self.folder) if service.share else is_always_healthy

        def beat() -> None:
            store_metrics()
            heartbeat()

        # only when all is ready: the kernel would assign connections to a process that does not accept them yet
        with open_listener(self.options.address, many=True) as listener:
            if number == 0:
                url = self.options.address.url
                _print_service(service, url, _message_printer(log_json=self.options.log_json))
            from unfoldkit.serving.http.server import run_service

            run_service(service, listener, _host_options(self.options, beat))
        return ExitCode.YES


def serve(request: Request, options: ServeOptions, stdin: str = "") -> ExitCode:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UnfoldError: The spec, the address or the run is at fault.
    """
    if request.dry_run or request.replay:
        # a replay ends, and leaves a report like that of any other verb
        return perform(request, stdin)
    _reject_report_options(request)
    if sys.platform == "win32":
        raise user_error("unfold serve does not run on Windows", hint="serve from Linux, macOS, WSL or a container")
    if options.tls is not None:
        # before a large model is loaded
        options.tls.build_context()
    registry = open_registry(builtin_only=request.builtin_only)
    loaded = load_request(request, registry, stdin)
    reject_target(request, loaded.kind)
    compare_with_spec(loaded)
    run = _build_run(request, loaded, log_json=options.log_json)
    if options.processes > 1:
        return _serve_processes(WorkerProcess(request, options, stdin), loaded, run)
    with run.directory.locked(), open_listener(options.address) as listener:
        check_run_kind(run, loaded.kind)
        service = _start_with_progress(loaded, run, log_json=options.log_json)
        if options.model_control:
            service = _offer_repository(service, lambda: _start_service(loaded, run))
        if loaded.run is None:
            store_spec(run, loaded.spec)
        options = replace(options, port=listener.getsockname()[1])
        url, print_message = options.address.url, _message_printer(log_json=options.log_json)
        print_message(_title(service.name, loaded, url, run_folder(request, loaded)))
        _print_service(service, url, print_message)
        from unfoldkit.serving.http.server import run_service

        with loaded.locate_errors(), noting_end():
            run_service(service, listener, _host_options(options))
    return ExitCode.YES


@contextmanager
def noting_end() -> Iterator[None]:
    """Note on the exception of Ctrl-C that the service has ended; a second call starts it again as it was."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note("the service has ended, after its last response")
        raise


def _start_with_progress(loaded: LoadedSpec, run: Run, *, log_json: bool) -> Service:
    """Start a service, and show what takes long, such as a large model; a log in JSON holds nothing else."""
    if log_json:
        return _start_service(loaded, run)
    with show_progress(f"start {loaded.spec.name}") as progress:
        return _start_service(loaded, replace(run, progress=progress))


def find_plan(run: Run, loaded: LoadedSpec) -> Mapping[str, Any]:
    """Return the plan to serve: the file that the request names, or that of the run; empty if there is none.

    Raises:
        UnfoldError: The plan of the run was changed.
    """
    if loaded.plan or not run.directory.has(RUN_PLAN):
        return loaded.plan
    run.directory.read(RUN_PLAN)
    return read_plan(run.directory.path / RUN_PLAN)


def _reject_report_options(request: Request) -> None:
    for flag, value in (("--out", request.out), ("--format", request.format)):
        if value is not None:
            raise user_error(f"{flag} {value}: a service writes no report", hint="with --replay TRACE it does")


def _serve_processes(worker: WorkerProcess, loaded: LoadedSpec, run: Run) -> ExitCode:
    """Serve by several processes; this one holds the run and the port, and replaces a process that dies or hangs."""
    verb_reference(loaded.kind, "serve")
    options = worker.options
    if options.model_control:
        raise user_error("--model-control: a client reaches one process", hint="leave --processes out")
    if not loaded.kind.many:
        raise user_error(f"kind {loaded.kind.name} serves from one process only", hint="leave --processes out")
    is_shared = is_listening(options.address)
    # the socket reserves the port; it does not listen
    with run.directory.locked(), bind_socket(options.address, many=True) as reserved, TemporaryDirectory() as folder:
        check_run_kind(run, loaded.kind)
        if loaded.run is None:
            store_spec(run, loaded.spec)
        options = replace(options, port=reserved.getsockname()[1])
        print_message = _message_printer(log_json=options.log_json)
        url = options.address.url
        print_message(_title(loaded.spec.name, loaded, url, run_folder(worker.request, loaded)))
        if is_shared:
            print_message("  another service listens on this port: each new connection goes to one of the two")
        supervisor = Supervisor(replace(worker, options=options, folder=Path(folder)), options.processes, print_message)
        supervisor.reloads = options.tls is not None
        with noting_end():
            if supervisor.run() == SIGINT:
                raise KeyboardInterrupt
    # the process that found the mistake has printed it
    return ExitCode.USAGE if supervisor.rejected else ExitCode.YES


def _start_service(loaded: LoadedSpec, run: Run) -> Service:
    function = verb_reference(loaded.kind, "serve")
    run = replace(run, options={**run.options, "plan": find_plan(run, loaded)})
    with loaded.locate_errors(), explain_missing_packages(loaded.kind.extra):
        service: Service = resolve(function, extra=loaded.kind.extra)(loaded.spec, run)
    return service


def _offer_repository(service: Service, start: Callable[[], Service]) -> Service:
    from unfoldkit.serving.oip.repository import offer_repository

    if not service.endpoints:
        raise user_error(f"{service.name} has no models to load and unload", hint="leave --model-control out")
    return offer_repository(service, start)


def _build_run(request: Request, loaded: LoadedSpec, *, log_json: bool) -> Run:
    run = build_run(request, loaded)
    for handler in run.log.handlers if log_json else ():
        handler.setFormatter(JsonLines())
    if log_json:
        # also the messages of libraries, such as the server's
        logging.basicConfig(handlers=run.log.handlers, level=logging.WARNING)
    return run


def _host_options(options: ServeOptions, heartbeat: Heartbeat | None = None) -> HostOptions:
    """Build the options of the host; the observers are the JSON log and OpenTelemetry, if they are set up."""
    from unfoldkit.serving.http.server import HostOptions

    observers = [json_access_log(_open_json_log())] if options.log_json else []
    instrumentation = find_instrumentation()
    tracer = request_tracer() if instrumentation is None else None
    observer: Observer | None = combine_observers([*observers, *([tracer] if tracer else [])])
    return HostOptions(
        token=options.token,
        heartbeat=heartbeat,
        observer=observer,
        instrumentation=instrumentation,
        own_log=options.log_json,
        fast_path=options.fast_path,
        limits=ResourceLimits(connections=options.max_connections),
        tls=options.tls,
        grpc_address=replace(options.address, port=options.grpc_port).place if options.grpc_port else "",
    )


def _open_json_log() -> logging.Logger:
    log = console.open_log(verbose=True)
    log.handlers[0].setFormatter(JsonLines())
    return log


def _message_printer(*, log_json: bool) -> Callable[[str], None]:
    """Return what prints messages: as plain text, or each line as JSON."""
    if not log_json:
        return console.print_message
    log = _open_json_log()

    def print_lines(text: str) -> None:
        for line in text.splitlines():
            log.info("%s", line.strip())

    return print_lines


def _title(name: str, loaded: LoadedSpec, url: str, folder: Path) -> str:
    return f"{name} · {loaded.kind.name} on {url} · run {folder} · Ctrl-C ends it"


def _print_service(service: Service, url: str, print_message: Callable[[str], None]) -> None:
    width = max((len(title) for title, _ in service.lines), default=0)
    facts = [f"  {title:<{width}}   {text}" for title, text in service.lines]
    page = [f"  {url}/ shows the live page"] if service.watch is not None else []
    print_message("\n".join([*facts, *page, *(f"  {url}{path}" for path in service.paths)]))


def build_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """Return the files of TLS, or ``None`` if no option names one.

    Raises:
        UnfoldError: The certificate or its key is missing.
    """
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise user_error("--tls-cert and --tls-key go together", hint="a chain and its key, both as PEM")
    return TlsFiles(certificate, key, client_ca)
