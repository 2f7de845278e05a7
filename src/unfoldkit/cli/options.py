"""The options that verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SPEC_HELP = "a spec, a plan, the folder of a run, or - for stdin"
SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help=SPEC_HELP)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a key of the spec; may be repeated"),
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="text, json, md, html, github, junit, plan or a plugin's"),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="write the report to FILE; its ending picks the format"),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="seed of every random choice")]
RunFolder = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="folder of the run; default runs/NAME")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="validate and tell what would run; write nothing")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="exit 0 also when the answer is no")]
EngineName = Annotated[str, typer.Option("--engine", metavar="NAME", help="where work runs: local or ray")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, help="processes of the local engine; default one a core")
]
RayAddress = Annotated[str | None, typer.Option("--ray-address", metavar="ADDRESS", help="a running Ray cluster")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="let the spec name code (module:function)")]
NoPlugins = Annotated[bool, typer.Option("--no-plugins", help="load the built-in plugins only")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="log to stderr what is being done")]
Region = Annotated[str, typer.Option("--region", metavar="NAME", help="region of the cloud")]
