"""Options of the command line that several commands share, each declared once."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer


def complete_kind(incomplete: str) -> list[str]:
    """Complete the name of a kind, for a shell."""
    from unfoldkit.registry import open_registry

    return [name for name in open_registry().kinds if name.startswith(incomplete)]


def complete_format(incomplete: str) -> list[str]:
    """Complete the name of a format, for a shell."""
    from unfoldkit.cli.output import list_renderers
    from unfoldkit.registry import open_registry

    names = {renderer.name for renderer in list_renderers(open_registry())}
    return sorted(name for name in names if name.startswith(incomplete))


SPEC_HELP = "a spec, a plan, the folder of a run, or - for stdin"
SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help=SPEC_HELP)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a key of the spec; may be repeated"),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="text, json, md, html, github, junit, plan or a plugin's",
        autocompletion=complete_format,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="write the report to FILE; its suffix selects the format"),
]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="exit 0 even if the answer is no")]
NoPlugins = Annotated[bool, typer.Option("--no-plugins", help="load the built-in plugins only")]
Region = Annotated[str, typer.Option("--region", metavar="NAME", help="region of the cloud")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """The options that every verb has, in the order of its help."""

    settings: Settings = None
    form: Format = None
    out: Out = None
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="seed of every random choice")
    ] = 0
    run_folder: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="folder of the run; default runs/NAME")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="validate and show what would run; write nothing")] = False
    exit_zero: ExitZero = False
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="where work runs: local or ray")] = "local"
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="processes of the local engine; default one per core"),
    ] = None
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", metavar="ADDRESS", help="address of a running Ray cluster")
    ] = None
    allow_code: Annotated[bool, typer.Option("--allow-code", help="let the spec name code (module:function)")] = False
    no_plugins: NoPlugins = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log progress to stderr")] = False


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`SharedOptions`, which it receives as its argument ``shared``."""
    names = [item.name for item in fields(SharedOptions)]

    @wraps(command)
    def wrapped(**values: Any) -> None:
        shared = SharedOptions(**{name: values.pop(name) for name in names})
        command(**values, shared=shared)

    hints = typing.get_type_hints(command, include_extras=True)
    shared_hints = typing.get_type_hints(SharedOptions, include_extras=True)
    kept = [item for item in inspect.signature(command).parameters.values() if item.name != "shared"]
    parameters = [item.replace(annotation=hints[item.name]) for item in kept]
    parameters += [
        inspect.Parameter(item.name, item.kind, default=item.default, annotation=shared_hints[item.name])
        for item in inspect.signature(SharedOptions).parameters.values()
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [item.replace(kind=keyword) for item in parameters]
    )
    wrapped.__annotations__ = {item.name: item.annotation for item in parameters}
    return wrapped
