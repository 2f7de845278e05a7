"""What is wrong with text that is not YAML, in a user's words and at the place where the mistake was made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from unfoldkit.errors import Diagnostic

# the characters that YAML 1.2 allows (section 5.1)
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = "a control character, which YAML does not allow"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parser gave up, and where that began (lines and columns from 0)."""

    text: str
    problem: tuple[int, int]
    context: tuple[int, int]

    @property
    def before(self) -> str:
        """The line up to where the parser gave up."""
        return self._line()[: self.problem[1]]

    @property
    def letter(self) -> str:
        """The character at which the parser gave up; empty at the end of a line."""
        return self._line()[self.problem[1] : self.problem[1] + 1]

    @property
    def opened(self) -> str:
        """The character at which it began."""
        return self._line(self.context[0])[self.context[1] : self.context[1] + 1]

    def _line(self, index: int | None = None) -> str:
        lines = self.text.split("\n")
        number = self.problem[0] if index is None else index
        return lines[number] if number < len(lines) else ""


Told = tuple[str, str, tuple[int, int]]


def explain(error: yaml.YAMLError, text: str, file: str) -> Diagnostic:
    """Return the diagnostic for what the parser says about ``text``."""
    found = _FORBIDDEN.search(text)
    if found:
        line, column = text.count("\n", 0, found.start()), found.start() - text.rfind("\n", 0, found.start()) - 1
        return Diagnostic(_CONTROL, file, line + 1, column + 1, hint='write it as "\\x07", in double quotes')
    place = Place(text, *_marks(error))
    problem = str(getattr(error, "problem", None) or "not YAML")
    teller = next((tell for part, tell in _TELLERS if part in problem), None)
    message, hint, mark = teller(place) if teller else (f"not YAML: {problem}", "", place.problem)
    return Diagnostic(message, file, mark[0] + 1, mark[1] + 1, hint=hint)


def _marks(error: yaml.YAMLError) -> tuple[tuple[int, int], tuple[int, int]]:
    problem: Any = getattr(error, "problem_mark", None)
    context = getattr(error, "context_mark", None) or problem
    problem = problem or context
    return ((problem.line, problem.column), (context.line, context.column)) if problem else ((0, 0), (0, 0))


def _start(place: Place) -> Told:
    if place.letter == "\t":
        return _tab(place)
    return f"{place.letter!r} cannot begin a value", "put the value in quotes", place.problem


def _colon(place: Place) -> Told:
    if ":" in place.before.split(" #")[0]:
        return 'a second ": " in one line', "put the value in quotes", place.problem
    indent = len(place.before) - len(place.before.lstrip())
    message = "this key is indented deeper than the one above, which has a value already"
    return message, "keys of one mapping begin at the same column", (place.problem[0], indent)


def _bracket(place: Place) -> Told:
    closing = {"[": "]", "{": "}"}.get(place.opened, "")
    if place.problem[0] != place.context[0] or not place.letter:
        return f'this "{place.opened}" is never closed', f'"{closing}" is missing', place.context
    hint = f'the "{place.opened}" of column {place.context[1] + 1} is open'
    return f'expected "," or "{closing}"', hint, place.problem


def _item(place: Place) -> Told:
    hint = 'items of a list begin with "- " at the same column, and the keys of an item stand below its first key'
    return 'expected "- " or the end of the list', hint, place.problem


def _key(place: Place) -> Told:
    hint = "keys of one mapping, and items of one list, begin at the same column; special characters need quotes"
    return "expected a key", hint, place.problem


def _value(place: Place) -> Told:
    return "expected a key with a value", 'write "key: value", with a space after the colon', place.context


def _quote(place: Place) -> Told:
    return "this quote is never closed", "", place.context


def _alias(place: Place) -> Told:
    return "there is no anchor of this name above", "text that begins with * needs quotes", place.problem


def _name(place: Place) -> Told:
    return f'this is no name of an anchor after "{place.opened}"', "put the value in quotes", place.context


def _content(place: Place) -> Told:
    return "expected a value", "a comma too many, or a bracket that is not closed?", place.problem


def _tab(place: Place) -> Told:
    return "a tab cannot indent", "use spaces", place.problem


def _escape(place: Place) -> Told:
    hint = "in double quotes a backslash begins an escape; in single quotes it is a backslash"
    return "no such escape", hint, place.problem


_TELLERS: tuple[tuple[str, Callable[[Place], Told]], ...] = (
    ("cannot start any token", _start),
    ("mapping values are not allowed", _colon),
    ("expected ',' or", _bracket),
    ("expected '-' indicator", _item),
    ("did not find expected key", _key),
    ("could not find expected ':'", _value),
    ("found unexpected end of stream", _quote),
    ("found undefined alias", _alias),
    ("alphabetic or numeric", _name),
    ("tab character", _tab),
    ("node content", _content),
    ("escape c", _escape),
)
