"""Explain YAML syntax errors in a user's words, at the position of the mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from unfoldkit.errors import Diagnostic

# all but the characters that YAML 1.2 allows (YAML 1.2.2, section 5.1)
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = "a control character, which YAML does not allow"


@dataclass(frozen=True, slots=True)
class ErrorPosition:
    """Where the parser stopped, and where the construct began (lines and columns from 0)."""

    text: str
    problem: tuple[int, int]
    context: tuple[int, int]

    @property
    def text_before(self) -> str:
        """The line up to where the parser stopped."""
        return self._line()[: self.problem[1]]

    @property
    def letter(self) -> str:
        """The character at which the parser stopped; empty at the end of a line."""
        return self._line()[self.problem[1] : self.problem[1] + 1]

    @property
    def opening(self) -> str:
        """The character at which the construct began."""
        return self._line(self.context[0])[self.context[1] : self.context[1] + 1]

    def _line(self, index: int | None = None) -> str:
        lines = self.text.split("\n")
        number = self.problem[0] if index is None else index
        return lines[number] if number < len(lines) else ""


Explanation = tuple[str, str, tuple[int, int]]


def explain(error: yaml.YAMLError, text: str, file: str) -> Diagnostic:
    """Make the diagnostic for an error of the parser in ``text``."""
    match = _FORBIDDEN.search(text)
    if match:
        start = match.start()
        line, column = text.count("\n", 0, start), start - text.rfind("\n", 0, start) - 1
        return Diagnostic(_CONTROL, file, line + 1, column + 1, hint='write it as "\\x07", in double quotes')
    position = ErrorPosition(text, *_marks(error))
    problem = str(getattr(error, "problem", None) or "not YAML")
    explanation = next((function for part, function in _EXPLANATIONS if part in problem), None)
    message, hint, mark = explanation(position) if explanation else (f"not YAML: {problem}", "", position.problem)
    return Diagnostic(message, file, mark[0] + 1, mark[1] + 1, hint=hint)


def _marks(error: yaml.YAMLError) -> tuple[tuple[int, int], tuple[int, int]]:
    problem: Any = getattr(error, "problem_mark", None)
    context = getattr(error, "context_mark", None) or problem
    problem = problem or context
    return ((problem.line, problem.column), (context.line, context.column)) if problem else ((0, 0), (0, 0))


def _explain_start(position: ErrorPosition) -> Explanation:
    if position.letter == "\t":
        return _explain_tab(position)
    return f"{position.letter!r} cannot begin a value", "put the value in quotes", position.problem


def _explain_colon(position: ErrorPosition) -> Explanation:
    if ":" in position.text_before.split(" #")[0]:
        return 'a second ": " in one line', "put the value in quotes", position.problem
    indent = len(position.text_before) - len(position.text_before.lstrip())
    message = "this key is indented deeper than the one above, which already has a value"
    return message, "keys of one mapping begin at the same column", (position.problem[0], indent)


def _explain_bracket(position: ErrorPosition) -> Explanation:
    closing = {"[": "]", "{": "}"}.get(position.opening, "")
    if position.problem[0] != position.context[0] or not position.letter:
        return f'this "{position.opening}" is not closed', f'"{closing}" is missing', position.context
    hint = f'the "{position.opening}" of column {position.context[1] + 1} is open'
    return f'expected "," or "{closing}"', hint, position.problem


def _explain_item(position: ErrorPosition) -> Explanation:
    hint = 'items of a list begin with "- " at the same column, and the keys of an item stand below its first key'
    return 'expected "- " or the end of the list', hint, position.problem


def _explain_key(position: ErrorPosition) -> Explanation:
    hint = "keys of one mapping, and items of one list, begin at the same column; special characters need quotes"
    return "expected a key", hint, position.problem


def _explain_value(position: ErrorPosition) -> Explanation:
    return "expected a key with a value", 'write "key: value", with a space after the colon', position.context


def _explain_quote(position: ErrorPosition) -> Explanation:
    return "this quote is not closed", "", position.context


def _explain_alias(position: ErrorPosition) -> Explanation:
    return "no anchor of this name is defined above", "text that begins with * needs quotes", position.problem


def _explain_name(position: ErrorPosition) -> Explanation:
    return f'not a valid name of an anchor after "{position.opening}"', "put the value in quotes", position.context


def _explain_content(position: ErrorPosition) -> Explanation:
    return "expected a value", "a comma too many, or a bracket that is not closed?", position.problem


def _explain_tab(position: ErrorPosition) -> Explanation:
    return "a tab cannot indent", "use spaces", position.problem


def _explain_escape(position: ErrorPosition) -> Explanation:
    hint = "in double quotes a backslash begins an escape; in single quotes it is a backslash"
    return "no such escape", hint, position.problem


_EXPLANATIONS: tuple[tuple[str, Callable[[ErrorPosition], Explanation]], ...] = (
    ("cannot start any token", _explain_start),
    ("mapping values are not allowed", _explain_colon),
    ("expected ',' or", _explain_bracket),
    ("expected '-' indicator", _explain_item),
    ("did not find expected key", _explain_key),
    ("could not find expected ':'", _explain_value),
    ("found unexpected end of stream", _explain_quote),
    ("found undefined alias", _explain_alias),
    ("alphabetic or numeric", _explain_name),
    ("tab character", _explain_tab),
    ("node content", _explain_content),
    ("escape c", _explain_escape),
)
