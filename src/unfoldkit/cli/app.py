"""The commands of ``unfold``: each parses its options and calls a function that works without the command line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unfoldkit.cli import console, options
from unfoldkit.cli.help_layout import EXIT_CODES, GROUPS
from unfoldkit.cli.options import SharedOptions, with_shared_options
from unfoldkit.cli.request import Request

HELP_WIDTH = 100
EPILOG = (
    "Exit codes: 0 yes; 1 the answer is no; 2 spec, flag or file at fault; 3 internal; 129 hangup;"
    " 130 Ctrl-C; 141 closed pipe; 143 SIGTERM."
)
ReplayTrace = Annotated[Path | None, typer.Option("--replay", metavar="TRACE", help="replay a trace through the plan")]
TextOrJson = Annotated[str, typer.Option("--format", metavar="NAME", help="text or json")]


class RootCommand(TyperGroup):
    """The root command with its commands in groups; without rich, Typer has no option for that."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per group, then the commands that no group names."""
        grouped = {name for names in GROUPS.values() for name in names}
        remaining = tuple(name for name in self.list_commands(ctx) if name not in grouped)
        for title, names in {**GROUPS, "More": remaining}.items():
            rows = [(name, self.commands[name].get_short_help_str(80)) for name in names if name in self.commands]
            _write_section(formatter, title, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature of the library
        """Write the exit codes."""
        _write_section(formatter, "Exit codes", list(EXIT_CODES))


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, run the command and exit."""
    width = min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 24)).columns)
    build_app(width)(args=list(arguments), prog_name="unfold")


def build_app(width: int = HELP_WIDTH) -> typer.Typer:
    """Build a new application with every command; its help is ``width`` characters wide."""
    app = typer.Typer(
        name="unfold",
        help="Keep machine learning inside a budget of money, latency and accuracy.",
        cls=RootCommand,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": width,
            "terminal_width": width,
        },
    )
    app.callback()(root)
    for command in (profile, train, plan, validate, serve, export, check, schema, init, doctor, report):
        app.command(epilog=EPILOG)(command)
    app.add_typer(_group("List the plugins, or start a new one.", plugins, new=new), name="plugins")
    text = "List instance types and prices, or request current ones from AWS."
    app.add_typer(_group(text, catalog, refresh=refresh), name="catalog")
    return app


def root(
    version: Annotated[bool, typer.Option("--version", "-V", help="print the version")] = False,
) -> None:
    """Handle the options before a command."""
    if version:
        from unfoldkit import __version__

        typer.echo(f"unfold {__version__}")
        raise typer.Exit


@with_shared_options
def profile(
    spec: options.SpecPath,
    shared: SharedOptions,
    node: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="NODE", help="measure on this instance type of the spec, which is rented, or on ray"
        ),
    ] = None,
) -> None:
    """Measure what a plan needs: latency by batch size, iteration times, costs."""
    _perform("profile", spec, shared, on=node)


@with_shared_options
def train(
    spec: options.SpecPath,
    shared: SharedOptions,
    plan_file: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="execute this plan")] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="SYSTEM", help="where to run, such as aws; sets the spec's key")
    ] = None,
) -> None:
    """Fit, tune and save what the spec describes; a killed run resumes where it was."""
    _perform("train", spec, shared, plan=plan_file, target=target)


@with_shared_options
def plan(
    shared: SharedOptions,
    specs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC", help=options.SPEC_HELP + "; several are planned in turn; default: that of --check"
        ),
    ] = None,
    check_file: Annotated[
        Path | None,
        typer.Option("--check", metavar="PLAN", help="compare with a committed plan; exit 1 on drift"),
    ] = None,
    replay: ReplayTrace = None,
    recalibrate: Annotated[
        Path | None, typer.Option("--recalibrate", metavar="FILE", help="refit the thresholds of a run on local cases")
    ] = None,
) -> None:
    """Search for the plan that meets the goal, and show what it gives up."""
    from unfoldkit.cli.batch import perform_all

    words = specs or ([str(check_file)] if check_file else [])
    if not words:
        raise typer.BadParameter("give a SPEC, or --check PLAN, which holds one")
    request = replace(_request("plan", words[0], shared), check=check_file, replay=replay, recalibrate=recalibrate)
    _exit_with(lambda: perform_all(request, words, _read_stdin(*words)))


@with_shared_options
def validate(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="the folder of a run that has a plan")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="cases that the run has not seen")],
    shared: SharedOptions,
) -> None:
    """Compare the promises of a run with new data: kept, broken or undecided."""
    from unfoldkit.cli.execution import perform

    request = replace(_request("validate", folder, shared), data=data)
    _exit_with(lambda: perform(request))


@with_shared_options
def serve(
    spec: options.SpecPath,
    shared: SharedOptions,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="address to listen on; any but loopback needs UNFOLD_TOKEN"),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="port to listen on; 0 takes a free one")
    ] = 8080,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=256, help="how many processes share the port")
    ] = 1,
    fast_path: Annotated[
        bool, typer.Option("--fast-path/--no-fast-path", help="answer plain requests without ASGI or grpcio")
    ] = True,
    grpc_port: Annotated[
        int,
        typer.Option("--grpc-port", metavar="PORT", min=0, max=65535, help="also offer gRPC on this port; 0 for none"),
    ] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="certificate chain (PEM); SIGHUP reloads it")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="private key of the certificate (PEM)")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", metavar="FILE", help="require client certificates signed by these authorities"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="let the token cross the network in plain text, as to a proxy")
    ] = False,
    max_connections: Annotated[
        int,
        typer.Option(
            "--max-connections",
            metavar="N",
            min=0,
            help="open connections per process; 0 for as many as descriptors allow",
        ),
    ] = 0,
    model_control: Annotated[
        bool, typer.Option("--model-control", help="let clients unload models and load them again")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="log to stderr as JSON, one line per request")] = False,
    replay: Annotated[
        Path | None, typer.Option("--replay", metavar="TRACE", help="replay a trace against the service")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="SYSTEM", help="take charge of an existing deployment; --dry-run shows the change"
        ),
    ] = None,
) -> None:
    """Run the plan as a service until SIGTERM or Ctrl-C."""
    request = replace(_request("serve", spec, shared), replay=replay, target=target)

    def run() -> int:
        from unfoldkit.cli.commands.serve import ServeOptions, build_tls
        from unfoldkit.cli.commands.serve import serve as action

        serving = ServeOptions(
            host=host,
            port=port,
            # files that hold secrets end with a line break
            token=os.environ.get("UNFOLD_TOKEN", "").strip(),
            processes=processes,
            log_json=log_json,
            fast_path=fast_path,
            tls=build_tls(tls_cert, tls_key, tls_client_ca),
            is_insecure=insecure,
            max_connections=max_connections,
            grpc_port=grpc_port,
            model_control=model_control,
        )
        return action(request, serving, _read_stdin(spec))

    _exit_with(run)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="the folder of a trained run")],
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="onnx: one graph for any runtime")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write to FILE; default NAME.onnx")
    ] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="let the spec name code (module:function)")] = False,
    no_plugins: options.NoPlugins = False,
) -> None:
    """Write what a run serves as one file that other servers load."""
    from unfoldkit.cli.commands.export import export as action

    request = Request(verb="export", spec=run, allow_code=allow_code, builtin_only=no_plugins)
    _exit_with(lambda: action(request, form, out))


def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="specs and plans")],
    settings: options.Settings = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="text, json, github or junit; with --verify that of a report"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="with --verify: write the report to FILE, such as page.html"),
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="also open the traces and tables that specs name")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="also search for violations, to a stated bound")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="with --verify: let the spec name code (module:function)")
    ] = False,
    no_plugins: options.NoPlugins = False,
) -> None:
    """Validate specs and plans: every mistake at once, one per line."""
    from unfoldkit.cli.commands.check import check as action

    _exit_with(
        lambda: action(
            files,
            form,
            out=out,
            settings=settings or (),
            builtin_only=no_plugins,
            data=data,
            verify=verify,
            allow_code=allow_code,
            stdin=_read_stdin(*files),
        )
    )


def schema(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="one kind; default: all", autocompletion=options.complete_kind),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="write to FILE")] = None,
) -> None:
    """Print the JSON Schema of a kind, for editors."""
    from unfoldkit.cli.commands.authoring import write_schema

    _exit_with(lambda: write_schema(kind, out))


def init(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="required; without it the kinds are listed", autocompletion=options.complete_kind
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="write to FILE, which must be new")
    ] = None,
    example: Annotated[
        str | None, typer.Option("--example", metavar="NAME", help="another example, by its name or a part of it")
    ] = None,
) -> None:
    """Print a commented spec to start from."""
    from unfoldkit.cli.commands.authoring import write_starter

    _exit_with(lambda: write_starter(kind, out, example))


def plugins(context: typer.Context, form: TextOrJson = "text") -> None:
    """List the plugins, or start a new one."""
    if context.invoked_subcommand is None:
        from unfoldkit.cli.commands.show import list_plugins

        _exit_with(lambda: list_plugins(form))


def new(name: Annotated[str, typer.Argument(metavar="NAME", help="the kind that it will offer")]) -> None:
    """Start a plugin: create unfold-NAME/, which is ready to install."""
    from unfoldkit.cli.commands.scaffold import create_plugin

    _exit_with(lambda: create_plugin(name, Path()))


def catalog(
    context: typer.Context,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="only with this GPU, such as A10G")] = "",
    min_gpus: Annotated[int, typer.Option("--min-gpus", min=0, help="minimum GPUs")] = 0,
    min_vcpus: Annotated[int, typer.Option("--min-vcpus", min=0, help="minimum vCPUs")] = 0,
    min_memory: Annotated[float, typer.Option("--min-memory", min=0, metavar="GIB", help="minimum memory")] = 0.0,
    max_price: Annotated[
        str | None, typer.Option("--max-price", metavar="PRICE", help="maximum price, such as $5/h")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="sort and filter by spot price")] = False,
    region: options.Region = "us-east-1",
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="a price list (CSV or JSON) that takes precedence")
    ] = None,
    form: options.Format = None,
    out: options.Out = None,
) -> None:
    """List instance types and prices, or request current ones from AWS."""
    if context.invoked_subcommand is None:
        from unfoldkit.catalog.instances import InstanceFilter
        from unfoldkit.cli.commands.catalog import list_instances, parse_max_price

        def action() -> int:
            wanted = InstanceFilter(gpu, min_gpus, min_vcpus, min_memory, parse_max_price(max_price), spot)
            return list_instances(wanted, region, prices, form, out)

        _exit_with(action)


def refresh(region: options.Region = "us-east-1") -> None:
    """Request today's prices from AWS (needs credentials) and cache them with their date."""
    import datetime as dt

    from unfoldkit.cli.commands.catalog import refresh_prices

    _exit_with(lambda: refresh_prices(region, dt.datetime.now(dt.UTC)))


def doctor(
    form: TextOrJson = "text",
    target: Annotated[
        str | None, typer.Option("--target", metavar="SYSTEM", help="check that system instead, such as kubernetes")
    ] = None,
) -> None:
    """Check that what unfold needs is installed and works."""
    from unfoldkit.cli.commands.doctor import diagnose

    _exit_with(lambda: diagnose(form, target))


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run, or a plan")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="a second one: show what differs, exit 1 if anything does")
    ] = None,
    form: options.Format = None,
    out: options.Out = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="show the page in a browser, and follow a verb that still runs")
    ] = False,
    exit_zero: options.ExitZero = False,
) -> None:
    """Render the report of a run again, or compare two runs or plans."""
    from unfoldkit.cli.commands.show import ReportRequest, show_report

    request = ReportRequest(run_folder, other, form, out, open_page)
    _exit_with(lambda: show_report(request, exit_zero=exit_zero))


def _write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)


def _group(text: str, callback: Callable[..., None], **commands: Callable[..., None]) -> typer.Typer:
    group = typer.Typer(help=text, rich_markup_mode=None, invoke_without_command=True)
    group.callback(epilog=EPILOG)(callback)
    for name, command in commands.items():
        group.command(name, epilog=EPILOG)(command)
    return group


def _perform(
    verb: str,
    spec: str,
    shared: SharedOptions,
    *,
    plan: Path | None = None,
    on: str | None = None,
    target: str | None = None,
) -> None:
    from unfoldkit.cli.execution import perform

    request = replace(_request(verb, spec, shared), plan=plan, on=on, target=target)
    _exit_with(lambda: perform(request, _read_stdin(spec)))


def _request(
    verb: str,
    spec: str,
    shared: SharedOptions,
) -> Request:
    return Request(
        verb=verb,
        spec=spec,
        settings=tuple(shared.settings or ()),
        format=shared.form,
        out=shared.out,
        seed=shared.seed,
        run=shared.run_folder,
        dry_run=shared.dry_run,
        exit_zero=shared.exit_zero,
        engine=shared.engine,
        jobs=shared.jobs,
        ray_address=shared.ray_address,
        allow_code=shared.allow_code,
        builtin_only=shared.no_plugins,
        verbose=shared.verbose,
    )


def _read_stdin(*specs: str) -> str:
    if "-" not in specs:
        return ""
    from unfoldkit.spec.yaml_reader import decode_text

    return decode_text(sys.stdin.buffer.read(), "<stdin>")


def _exit_with(action: Callable[[], int]) -> None:
    raise typer.Exit(console.run_guarded(action))
