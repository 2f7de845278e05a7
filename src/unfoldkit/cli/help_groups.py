"""The first screen of help: verbs by what they are for, and the exit codes as a list."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

EXIT_CODES = (
    ("0", "it ran, and the answer is yes"),
    ("1", "it ran, and the answer is no: infeasible, target missed, plan drifted"),
    ("2", "spec, flag, file or a missing extra at fault"),
    ("3", "unfold or a plugin at fault"),
    ("130", "Ctrl-C"),
    ("141", "the reader of stdout went away"),
)
GROUPS = {
    "Answer a question": ("profile", "train", "plan", "serve"),
    "Write specs": ("init", "check", "schema"),
    "Look around": ("report", "catalog", "plugins", "doctor"),
}


class Grouped(TyperGroup):
    """The root command; without rich, Typer offers no other place to say which commands belong together."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group, then whatever command no group names."""
        named = {name for names in GROUPS.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in named)
        for title, names in {**GROUPS, "More": rest}.items():
            rows = [(name, self.commands[name].get_short_help_str(80)) for name in names if name in self.commands]
            _section(formatter, title, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature of the library
        """Write the exit codes."""
        _section(formatter, "Exit codes", list(EXIT_CODES))


def _section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
