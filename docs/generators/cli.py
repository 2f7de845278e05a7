"""The page of the command line, and the first screen that ``unfold --help`` prints without Typer."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import typer

from docs.generators.markdown import code, table
from unfoldkit.cli.app import build_app
from unfoldkit.plugin_descriptors import VERBS

INTRO = """# Command line

One command, `unfold`. Reports go to stdout, everything else to stderr. Every command ends with one of
[eight exit codes](exit-codes.md). `unfold --help` and `unfold COMMAND --help` say the same as this page.
[Environment](environment.md) lists the environment variables.

"""


def first_screen() -> str:
    """Return what the application itself prints for ``unfold --help``, 100 columns wide."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        build_app()(args=["--help"], prog_name="unfold")
    return stream.getvalue()


def page() -> str:
    """Return the reference of every command."""
    found = dict(commands(typer.main.get_command(build_app()), "unfold"))
    shared = _shared([found[f"unfold {verb}"] for verb in VERBS])
    parts = [_command(name, command, shared) for name, command in found.items()]
    common = [item for item in found["unfold plan"].params if item.name in shared]
    text = "## Options of profile, train, plan and serve\n\n" + _options(common)
    return INTRO + "\n".join([text, *parts])


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and those below it, by full name."""
    yield name, command
    for below, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {below}")


def _shared(verbs: list[Any]) -> set[str]:
    names = [{item.name for item in verb.params if item.param_type_name == "option"} for verb in verbs]
    return set.intersection(*names)


def _command(name: str, command: Any, shared: set[str]) -> str:
    own = [item for item in command.params if item.name not in shared or name.rsplit(maxsplit=1)[-1] not in VERBS]
    arguments = [item for item in own if item.param_type_name == "argument"]
    options = [item for item in own if item.param_type_name == "option"]
    words = " ".join(
        [
            name,
            "[OPTIONS]",
            *(_word(item) for item in arguments),
            *(["COMMAND"] if hasattr(command, "commands") else []),
        ]
    )
    heads = [f"## {name}", command.help, code(words)]
    tables = [_arguments(arguments)] if arguments else []
    tables += [_options(options)] if options else []
    more = ["It also takes the options of every verb, above."] if name.rsplit(maxsplit=1)[-1] in VERBS else []
    return "\n\n".join([*heads, *(text.rstrip("\n") for text in tables), *more]) + "\n"


def _word(argument: Any) -> str:
    several = "..." if argument.nargs == -1 else ""
    return f"{argument.metavar}{several}" if argument.required else f"[{argument.metavar}{several}]"


def _arguments(items: list[Any]) -> str:
    return table(("argument", "meaning"), [(code(item.metavar), item.help or "") for item in items])


def _options(items: list[Any]) -> str:
    rows = [(_names(item), item.help or "", _default(item)) for item in items]
    return table(("option", "meaning", "default"), rows)


def _names(option: Any) -> str:
    ending = f" {option.metavar}" if option.metavar and not option.is_flag else ""
    return code(", ".join([*option.opts, *option.secondary_opts]) + ending)


def _default(option: Any) -> str:
    wanted = option.default if isinstance(option.default, (str, int)) and not isinstance(option.default, bool) else ""
    return code(str(wanted))
