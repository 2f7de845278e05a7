"""Markdown by hand: tables, fenced blocks, and docstrings without their indent."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar inside a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """Return a fenced block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def code(text: str) -> str:
    """Return inline code, or nothing for nothing."""
    return f"`{text}`" if text else ""


def prose(documented: Any) -> str:
    """Return a docstring as a paragraph of Markdown: no roles, single back-ticks, no examples."""
    text = (inspect.getdoc(documented) or "").split("Example:")[0].strip()
    return re.sub(r":[a-z]+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")


def example(documented: Any) -> str:
    """Return the doctest of a docstring as plain code, or nothing."""
    _, found, text = (inspect.getdoc(documented) or "").partition("Example:\n")
    lines = [line.strip().removeprefix(">>> ").removeprefix("... ") for line in _dedented(text)]
    body = "\n".join(f"{line}\n\n" if " import " in line else line for line in lines)
    return fenced(body, "python") if found else ""


def fields(described: Any) -> str:
    """Return a table of the fields of a dataclass."""
    rows = [(code(item.name), code(str(item.type)), _default(item)) for item in dataclasses.fields(described)]
    return table(("field", "type", "default"), rows)


def _dedented(text: str) -> list[str]:
    return inspect.cleandoc(text).splitlines()


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        # a function's repr has its address, which is another each time
        return code(item.default.__name__ if inspect.isfunction(item.default) else repr(item.default))
    return "empty" if item.default_factory is not dataclasses.MISSING else "required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
