"""The commands, each a thin skin over a function that can be tested without it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unfoldkit.cli import console, options
from unfoldkit.cli.help_groups import Grouped
from unfoldkit.cli.request import Request

HELP_WIDTH = 100
EPILOG = (
    "Exit codes: 0 yes; 1 the answer is no; 2 spec, flag or file at fault; 3 internal; 130 Ctrl-C; 141 closed pipe."
)


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, run the command and exit."""
    application(min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 24)).columns))(
        args=list(arguments), prog_name="unfold"
    )


def application(width: int = HELP_WIDTH) -> typer.Typer:
    """Return a fresh application with every command; its help is ``width`` letters wide."""
    app = typer.Typer(
        name="unfold",
        help="Keep machine learning inside a budget of money, latency and accuracy.",
        cls=Grouped,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": width,
            "terminal_width": width,
        },
    )
    app.callback()(_root)
    for command in (profile, train, plan, serve, check, schema, init, doctor, report):
        app.command(epilog=EPILOG)(command)
    group = typer.Typer(
        help="List the plugins, or start a new one.", rich_markup_mode=None, invoke_without_command=True
    )
    group.callback(epilog=EPILOG)(plugins)
    group.command("new", epilog=EPILOG)(new)
    app.add_typer(group, name="plugins")
    prices = typer.Typer(
        help="List instance types and prices, or ask AWS for new ones.",
        rich_markup_mode=None,
        invoke_without_command=True,
    )
    prices.callback(epilog=EPILOG)(catalog)
    prices.command("refresh", epilog=EPILOG)(refresh)
    app.add_typer(prices, name="catalog")
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", "-V", help="print the version")] = False,
) -> None:
    if version:
        from unfoldkit import __version__

        typer.echo(f"unfold {__version__}")
        raise typer.Exit


def profile(
    spec: options.SpecPath,
    settings: options.Settings = None,
    form: options.Format = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    run_folder: options.RunFolder = None,
    dry_run: options.DryRun = False,
    exit_zero: options.ExitZero = False,
    engine: options.EngineName = "local",
    jobs: options.Jobs = None,
    ray_address: options.RayAddress = None,
    allow_code: options.AllowCode = False,
    no_plugins: options.NoPlugins = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure what a plan needs: latency by batch size, iteration times, costs."""
    _verb("profile", locals())


def train(
    spec: options.SpecPath,
    plan_file: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="carry out this plan")] = None,
    settings: options.Settings = None,
    form: options.Format = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    run_folder: options.RunFolder = None,
    dry_run: options.DryRun = False,
    exit_zero: options.ExitZero = False,
    engine: options.EngineName = "local",
    jobs: options.Jobs = None,
    ray_address: options.RayAddress = None,
    allow_code: options.AllowCode = False,
    no_plugins: options.NoPlugins = False,
    verbose: options.Verbose = False,
) -> None:
    """Fit, tune and save what the spec describes; a killed run goes on where it was."""
    _verb("train", locals())


def plan(
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC", help=options.SPEC_HELP + "; several are planned in turn; that of --check if left out"
        ),
    ] = None,
    check_file: Annotated[
        Path | None,
        typer.Option("--check", metavar="PLAN", help="compare with a committed plan; exit 1 on drift"),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="TRACE", help="play a trace through the plan")
    ] = None,
    settings: options.Settings = None,
    form: options.Format = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    run_folder: options.RunFolder = None,
    dry_run: options.DryRun = False,
    exit_zero: options.ExitZero = False,
    engine: options.EngineName = "local",
    jobs: options.Jobs = None,
    ray_address: options.RayAddress = None,
    allow_code: options.AllowCode = False,
    no_plugins: options.NoPlugins = False,
    verbose: options.Verbose = False,
) -> None:
    """Search the plan that meets the goal, and what it gives up."""
    from unfoldkit.cli.batch import perform_all

    words = specs or ([str(check_file)] if check_file else [])
    if not words:
        raise typer.BadParameter("give a SPEC, or --check PLAN, which holds one")
    request = _request("plan", {**locals(), "spec": words[0]})
    _end(lambda: perform_all(request, words, _stdin(*words)))


def serve(
    spec: options.SpecPath,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="address to listen on; others than loopback need UNFOLD_TOKEN"),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="port to listen on; 0 takes a free one")
    ] = 8080,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=256, help="how many processes share the port")
    ] = 1,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="log to stderr as JSON, a line for every request")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="TRACE", help="play a trace against the service")
    ] = None,
    settings: options.Settings = None,
    form: options.Format = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    run_folder: options.RunFolder = None,
    dry_run: options.DryRun = False,
    exit_zero: options.ExitZero = False,
    engine: options.EngineName = "local",
    jobs: options.Jobs = None,
    ray_address: options.RayAddress = None,
    allow_code: options.AllowCode = False,
    no_plugins: options.NoPlugins = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the plan as a service until SIGTERM or Ctrl-C."""
    from unfoldkit.cli.commands.serve import serve as action

    request = _request("serve", locals())
    # files of secrets end with the end of a line
    token = os.environ.get("UNFOLD_TOKEN", "").strip()
    given: dict[str, Any] = {"request": request, "host": host, "port": port, "token": token, "log_json": log_json}
    _end(lambda: action(**given, stdin=_stdin(spec), processes=processes))


def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="specs and plans")],
    settings: options.Settings = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="text, json, github or junit")] = "text",
    data: Annotated[bool, typer.Option("--data", help="also open the traces and tables that specs name")] = False,
    no_plugins: options.NoPlugins = False,
) -> None:
    """Validate specs and plans; every mistake at once, one line each."""
    from unfoldkit.cli.commands.check import check as action

    given: dict[str, Any] = {"settings": settings or (), "builtin_only": no_plugins, "data": data}
    _end(lambda: action(files, form, **given, stdin=_stdin(*files)))


def schema(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="one kind; all if left out")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="write to FILE")] = None,
) -> None:
    """Print the JSON Schema of a kind, for editors."""
    from unfoldkit.cli.commands.schema import schema as action

    _end(lambda: action(kind, out))


def init(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="needed; without it the kinds are named")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write to FILE, which must be new")
    ] = None,
) -> None:
    """Print a commented spec to start from."""
    from unfoldkit.cli.commands.init import init as action

    _end(lambda: action(kind, out))


def plugins(
    context: typer.Context,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="text or json")] = "text",
) -> None:
    """List the plugins, or start a new one."""
    if context.invoked_subcommand is None:
        from unfoldkit.cli.commands.show import plugins as action

        _end(lambda: action(form))


def new(name: Annotated[str, typer.Argument(metavar="NAME", help="the kind that it will offer")]) -> None:
    """Start a plugin: makes unfold-NAME/, which installs as it is."""
    from unfoldkit.cli.commands.scaffold import scaffold

    _end(lambda: scaffold(name, Path()))


def catalog(
    context: typer.Context,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="only with this GPU, such as A10G")] = "",
    min_gpus: Annotated[int, typer.Option("--min-gpus", min=0, help="GPUs at least")] = 0,
    min_vcpus: Annotated[int, typer.Option("--min-vcpus", min=0, help="vCPUs at least")] = 0,
    min_memory: Annotated[float, typer.Option("--min-memory", min=0, metavar="GIB", help="memory at least")] = 0.0,
    max_price: Annotated[str | None, typer.Option("--max-price", metavar="PRICE", help="at most, such as $5/h")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="by spot price")] = False,
    region: options.Region = "us-east-1",
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="a price list, CSV or JSON, asked first")
    ] = None,
    form: options.Format = None,
    out: options.Out = None,
) -> None:
    """List instance types and prices, or ask AWS for new ones."""
    if context.invoked_subcommand is None:
        from unfoldkit.catalog.instances import Wanted
        from unfoldkit.cli.commands.catalog import listing, price_option

        def action() -> int:
            wanted = Wanted(gpu, min_gpus, min_vcpus, min_memory, price_option(max_price), spot)
            return listing(wanted, region, prices, form, out)

        _end(action)


def refresh(region: options.Region = "us-east-1") -> None:
    """Ask AWS for today's prices (needs credentials) and keep them with their date."""
    import datetime as dt

    from unfoldkit.cli.commands.catalog import renew

    _end(lambda: renew(region, dt.datetime.now(dt.UTC)))


def doctor(
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="text or json")] = "text",
) -> None:
    """Say whether everything that the tool needs is there."""
    from unfoldkit.cli.commands.doctor import doctor as action

    _end(lambda: action(form))


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    form: options.Format = None,
    out: options.Out = None,
    exit_zero: options.ExitZero = False,
) -> None:
    """Render the report of a finished run again."""
    from unfoldkit.cli.commands.show import report as action

    _end(lambda: action(run_folder, form, out, exit_zero=exit_zero))


def _verb(verb: str, given: dict[str, Any]) -> None:
    from unfoldkit.cli.commands.run import perform

    request = _request(verb, given)
    _end(lambda: perform(request, _stdin(request.spec)))


def _request(verb: str, given: dict[str, Any]) -> Request:
    return Request(
        verb=verb,
        spec=given["spec"],
        settings=tuple(given["settings"] or ()),
        format=given["form"],
        out=given["out"],
        seed=given["seed"],
        run=given["run_folder"],
        dry_run=given["dry_run"],
        exit_zero=given["exit_zero"],
        engine=given["engine"],
        jobs=given["jobs"],
        ray_address=given["ray_address"],
        allow_code=given["allow_code"],
        builtin_only=given["no_plugins"],
        verbose=given["verbose"],
        check=given.get("check_file"),
        plan=given.get("plan_file"),
        replay=given.get("replay"),
    )


def _stdin(*specs: str) -> str:
    if "-" not in specs:
        return ""
    from unfoldkit.spec.yaml_reader import decoded

    return decoded(sys.stdin.buffer.read(), "<stdin>")


def _end(action: Callable[[], int]) -> None:
    raise typer.Exit(console.guarded(action))
