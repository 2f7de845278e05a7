"""`unfold serve`: the host of a kind's service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT
from tempfile import TemporaryDirectory
from typing import Any

from unfoldkit.cli import console, plugin_registry
from unfoldkit.cli.commands.run import of_its_kind, opened, perform, run_folder, store_spec, surroundings, verb_of
from unfoldkit.cli.plan_check import read_plan
from unfoldkit.cli.request import Request
from unfoldkit.descriptors import resolve
from unfoldkit.errors import ExitCode, user_error
from unfoldkit.run_context import Run
from unfoldkit.serving.http.host import Address, Beat, Terms, bind, is_heard, listen
from unfoldkit.serving.http.host import host as run_server
from unfoldkit.serving.http.workers import Crew
from unfoldkit.serving.observability.access_log import JsonLines, Observer, lines, together, tracing
from unfoldkit.serving.service import Service, well
from unfoldkit.spec.resolve import RUN_PLAN, Loaded


def plan_of(run: Run, loaded: Loaded) -> Mapping[str, Any]:
    """Return the plan to serve: the file that was named, or the one that the run holds; empty if there is none.

    Raises:
        UnfoldError: the plan of the run was changed.
    """
    if loaded.plan or not run.directory.has(RUN_PLAN):
        return loaded.plan
    run.directory.read(RUN_PLAN)
    return read_plan(run.directory.path / RUN_PLAN)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process needs to serve: the request, where to listen, the text of a spec that came by stdin."""

    request: Request
    address: Address
    stdin: str = ""
    log_json: bool = False
    folder: Path = field(default_factory=Path)

    def __call__(self, number: int, beat: Beat) -> None:
        """Serve as one of several processes; the first tells the user what there is."""
        raise SystemExit(console.guarded(lambda: self._serve(number, beat)))

    def _serve(self, number: int, beat: Beat) -> int:
        loaded = opened(self.request, plugin_registry.registry(builtin_only=self.request.builtin_only), self.stdin)
        service = _service(loaded, _surroundings(self.request, loaded, json=self.log_json))
        keep = service.share(self.folder) if service.share else well

        def both() -> None:
            keep()
            beat()

        # not before all is ready: the kernel would hand connections to a process that does not hear them yet
        with listen(self.address, many=True) as bound:
            if number == 0:
                _tell(service, f"http://{self.address.place}", _voice(json=self.log_json), page=False)
            terms = Terms(self.address.token, beat=both, observer=_observer(json=self.log_json), logs=self.log_json)
            run_server(replace(service, watch=None), bound, terms)
        return ExitCode.YES


def serve(
    request: Request,
    *,
    host: str,
    port: int,
    token: str = "",
    stdin: str = "",
    processes: int = 1,
    log_json: bool = False,
) -> ExitCode:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UnfoldError: the spec, the address or the run are at fault.
    """
    if request.dry_run or request.replay:
        # a replay comes to an end, and what it leaves is a report like that of any other verb
        return perform(request, stdin)
    _no_report(request)
    loaded = opened(request, plugin_registry.registry(builtin_only=request.builtin_only), stdin)
    run = _surroundings(request, loaded, json=log_json)
    address = Address(host, port, token)
    if processes > 1:
        return _several(Serving(request, address, stdin, log_json), loaded, run, processes)
    with run.directory.locked(), listen(address) as bound:
        of_its_kind(run, loaded.kind)
        service = _service(loaded, run)
        if loaded.run is None:
            store_spec(run, loaded.spec)
        address = replace(address, port=bound.getsockname()[1])
        place, say = f"http://{address.place}", _voice(json=log_json)
        say(_title(service.name, loaded, place, run_folder(request, loaded)))
        _tell(service, place, say, page=service.watch is not None)
        with loaded.telling():
            run_server(service, bound, Terms(token, observer=_observer(json=log_json), logs=log_json))
    return ExitCode.YES


def _no_report(request: Request) -> None:
    for flag, given in (("--out", request.out), ("--format", request.format)):
        if given is not None:
            raise user_error(f"{flag} {given}: a service leaves no report", hint="with --replay TRACE it does")


def _several(serving: Serving, loaded: Loaded, run: Run, processes: int) -> ExitCode:
    """Serve by several processes; this one holds the run and the port, and replaces who dies or hangs."""
    verb_of(loaded.kind, "serve")
    if not loaded.kind.many:
        raise user_error(f"kind {loaded.kind.name} serves by one process", hint="leave --processes out")
    beside = is_heard(serving.address)
    with run.directory.locked(), bind(serving.address, many=True) as held, TemporaryDirectory() as folder:
        of_its_kind(run, loaded.kind)
        if loaded.run is None:
            store_spec(run, loaded.spec)
        address = replace(serving.address, port=held.getsockname()[1])
        place = f"http://{address.place}"
        say = _voice(json=serving.log_json)
        say(_title(loaded.spec.name, loaded, place, run_folder(serving.request, loaded)))
        if beside:
            say("  another service listens there too: each new connection goes to one of the two until one ends")
        crew = Crew(replace(serving, address=address, folder=Path(folder)), processes, say)
        if crew.run() == SIGINT:
            raise KeyboardInterrupt
    # the process that found the mistake has told of it
    return ExitCode.USAGE if crew.refused else ExitCode.YES


def _service(loaded: Loaded, run: Run) -> Service:
    function = verb_of(loaded.kind, "serve")
    run = replace(run, options={**run.options, "plan": plan_of(run, loaded)})
    with loaded.telling():
        service: Service = resolve(function, extra=loaded.kind.extra)(loaded.spec, run)
    return service


def _surroundings(request: Request, loaded: Loaded, *, json: bool) -> Run:
    run = surroundings(request, loaded)
    for handler in run.log.handlers if json else ():
        handler.setFormatter(JsonLines())
    if json:
        # what libraries say, such as the server's, is no exception
        logging.basicConfig(handlers=run.log.handlers, level=logging.WARNING)
    return run


def _observer(*, json: bool) -> Observer | None:
    """Return who is told of every request: the log, if it is asked for, and OpenTelemetry, if it is set up."""
    found = [lines(_json_log())] if json else []
    return together([*found, *([traced] if (traced := tracing()) else [])])


def _json_log() -> logging.Logger:
    log = console.logger(verbose=True)
    log.handlers[0].setFormatter(JsonLines())
    return log


def _voice(*, json: bool) -> Callable[[str], None]:
    """Return what says a text: as it is, or, where each line of stderr is JSON, each of its lines as such."""
    if not json:
        return console.say
    log = _json_log()

    def say(text: str) -> None:
        for line in text.splitlines():
            log.info("%s", line.strip())

    return say


def _title(name: str, loaded: Loaded, place: str, folder: Path) -> str:
    return f"{name} · {loaded.kind.name} on {place} · run {folder} · Ctrl-C ends it"


def _tell(service: Service, place: str, say: Callable[[str], None], *, page: bool) -> None:
    width = max((len(title) for title, _ in service.lines), default=0)
    told = [f"  {title:<{width}}   {text}" for title, text in service.lines]
    watch = [f"  {place}/ to watch it"] if page else []
    say("\n".join([*told, *watch, *(f"  {place}{path}" for path in service.paths)]))
