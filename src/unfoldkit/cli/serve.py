"""`unfold serve`: the host of a kind's service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unfoldkit.cli import console, plugins
from unfoldkit.cli.drift import read_plan
from unfoldkit.cli.request import Request
from unfoldkit.cli.run import perform, run_folder, store_spec, surroundings, verb_of
from unfoldkit.context import Run
from unfoldkit.errors import ExitCode
from unfoldkit.kinds import resolve
from unfoldkit.serving.host import Address, is_loopback, listen
from unfoldkit.serving.host import host as run_server
from unfoldkit.serving.service import Service
from unfoldkit.spec.load import RUN_PLAN, Loaded, load


def plan_of(run: Run, loaded: Loaded) -> Mapping[str, Any]:
    """Return the plan to serve: the file that was named, or the one that the run holds; empty if there is none.

    Raises:
        UnfoldError: the plan of the run was changed.
    """
    if loaded.plan or not run.directory.has(RUN_PLAN):
        return loaded.plan
    run.directory.read(RUN_PLAN)
    return read_plan(run.directory.path / RUN_PLAN)


def serve(request: Request, *, host: str, port: int, token: str = "", stdin: str = "") -> ExitCode:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UnfoldError: the spec, the address or the run are at fault.
    """
    if request.dry_run or request.options.get("replay"):
        # a replay comes to an end, and what it leaves is a report like that of any other verb
        return perform(request, stdin)
    registry = plugins.registry(builtin_only=request.builtin_only)
    loaded = load(request.spec, registry.kinds, settings=request.settings, stdin=stdin, find_kind=registry.kind)
    function = verb_of(loaded.kind, "serve")
    run = surroundings(request, loaded)
    with run.directory.locked(), listen(Address(host, port, token)) as bound:
        run = replace(run, options={**run.options, "plan": plan_of(run, loaded)})
        with loaded.telling():
            service: Service = resolve(function, extra=loaded.kind.extra)(loaded.spec, run)
        if loaded.run is None:
            store_spec(run, loaded.spec)
        place = f"http://{host}:{bound.getsockname()[1]}"
        console.say(
            f"{service.name} · {loaded.kind.name} on {place} · run {run_folder(request, loaded)} · Ctrl-C ends it"
        )
        width = max((len(title) for title, _ in service.lines), default=0)
        told = [f"  {title:<{width}}   {text}" for title, text in service.lines]
        page = [f"  {place}/ to watch it"] if service.watch else []
        console.say("\n".join([*told, *page, *(f"  {place}{path}" for path in service.paths)]))
        run_server(service, bound, token="" if is_loopback(host) and not token else token)
    return ExitCode.YES
