"""The first screen of help: commands grouped by task, and the exit codes.

Its text is stored in ``help.txt``, so that ``unfold --help`` needs no command-line library. ``python -m docs.generate``
writes the file, and a test compares it with the help of the application.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

EXIT_CODES = (
    ("0", "it ran, and the answer is yes"),
    ("1", "it ran, and the answer is no: infeasible, target missed, plan drifted"),
    ("2", "spec, flag, file or a missing extra at fault"),
    ("3", "unfold or a plugin at fault"),
    ("130", "Ctrl-C"),
    ("141", "the reader of stdout closed it"),
)
GROUPS = {
    "Answer a question": ("profile", "train", "plan", "serve"),
    "Write specs": ("init", "check", "schema"),
    "Look around": ("report", "catalog", "plugins", "doctor"),
}


def read_help() -> str:
    """Return the stored help of ``unfold``."""
    return (Path(__file__).parent / "help.txt").read_text(encoding="utf-8")


def build_root_class() -> type[Any]:
    """Build the class of the root command; without rich, Typer has no option to group commands."""
    from typer.core import TyperGroup

    class RootCommand(TyperGroup):
        """The root command with one section per group."""

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

    return RootCommand


def _write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
