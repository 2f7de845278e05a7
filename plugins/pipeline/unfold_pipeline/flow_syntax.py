"""How a spec names tensors of other stages, and the conditions on them that decide which flows a query follows.

The grammar of a condition is closed, so a spec that is loaded or served never executes code::

    condition  = term {"or" term}
    term       = factor {"and" factor}
    factor     = "not" factor | "(" condition ")" | value [comparison value | ["not"] "in" list]
    comparison = "==" | "!=" | "<" | "<=" | ">" | ">="
    value      = number | "text" | true | false | tensor ["[" number {"," number} "]"] | function "(" tensor ")"
    function   = "max" | "min" | "argmax"
    list       = "[" value {"," value} "]"
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

REQUEST = "request"
"""The source that stands for the row of the request."""
MAX_DEPTH = 32
MAX_CHARACTERS = 1000
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FUNCTIONS = ("max", "min", "argmax")
"""Functions of NumPy that make one value of a tensor."""
CONSTANTS = {"true": True, "false": False}
WORDS = ("and", "or", "not", "in")
TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>"(?:[^"\\]|\\.)*"|'[^']*')
    | (?P<quoted>`[^`]+`)
    | (?P<name>[^\W\d][\w./:]*|/[\w./:]+)
    | (?P<symbol>==|!=|<=|>=|[<>()\[\],])
    )""",
    re.VERBOSE,
)


class ConditionError(ValueError):
    """A condition that is no sentence of the grammar, or that an output cannot be tested with."""


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor of an output, an element of it, or a function of it.

    Attributes:
        tensor: Its name.
        index: Position of the element, one number per dimension; empty for the tensor.
        function: ``max``, ``min`` or ``argmax``; empty for the value itself.
    """

    tensor: str
    index: tuple[int, ...] = ()
    function: str = ""


Value = TensorValue | float | str | bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test of two values; ``comparison`` is an operator of the grammar, or ``in`` for any of several values."""

    comparison: str
    left: Value
    right: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Connective:
    """Conditions under ``and``, ``or`` or ``not``."""

    word: str
    parts: tuple[Test, ...]


Test = Comparison | Connective


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition with its text."""

    text: str
    test: Test

    def holds(self, tensors: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether an output meets the condition.

        Args:
            tensors: The output of one query by name; ``output`` also stands for the first one.

        Raises:
            ConditionError: A tensor is missing, is not a single value, or cannot be compared.
        """
        return _evaluate(self.test, tensors)

    def list_values(self) -> Iterator[tuple[TensorValue, Value | None]]:
        """Yield each tensor that is tested, with a constant that it is compared to, if there is one."""
        yield from _list_values(self.test)


def parse_condition(text: str) -> Condition:
    """Parse the text under ``when``; nothing of it is executed.

    Raises:
        ConditionError: The text is no sentence of the grammar; names the position.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConditionError(f"is longer than {MAX_CHARACTERS} characters")
    parser = _Parser(text, list(_split_tokens(text)))
    test = parser.parse_any()
    if parser.peek() != ("end", ""):
        raise parser.reject("expected the end")
    return Condition(text, test)


def split_source(source: str, stages: Iterable[str]) -> tuple[str, str]:
    """Return the stage and the tensor that a source names; the tensor is empty for the whole output.

    The longest stage name that fits is meant, because names of stages and tensors may contain dots. The stage is empty
    if none fits.
    """
    names = [name for name in stages if source == name or source.startswith(f"{name}.")]
    name = max(names, key=len, default="")
    return name, source[len(name) + 1 :]


def find_tensor(tensors: Mapping[str, Any], name: str) -> Any:
    """Return a tensor by name; ``output`` stands for the first one if no tensor has that name.

    Raises:
        ConditionError: No tensor has the name.
    """
    if name in tensors:
        return tensors[name]
    if name == "output" and tensors:
        return next(iter(tensors.values()))
    raise ConditionError(f"the output has no tensor {name}")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass(slots=True)
class _Parser:
    """A recursive-descent parser over the tokens of a condition."""

    text: str
    tokens: list[_Token]
    next_token: int = 0
    depth: int = 0

    def peek(self) -> tuple[str, str]:
        token = self.tokens[self.next_token]
        return token.kind, token.text

    def take(self) -> _Token:
        token = self.tokens[self.next_token]
        self.next_token += token.kind != "end"
        return token

    def accept(self, *symbols: str) -> str:
        """Take a symbol or word if it comes next; return it, or nothing."""
        kind, text = self.peek()
        return self.take().text if kind in ("symbol", "word") and text in symbols else ""

    def expect(self, symbol: str) -> None:
        if not self.accept(symbol):
            raise self.reject(f"expected {symbol}")

    def reject(self, reason: str) -> ConditionError:
        token = self.tokens[self.next_token]
        shown = f'"{token.text}"' if token.text else "the end"
        return ConditionError(f"{reason} at character {token.position + 1}, not {shown}")

    def parse_any(self) -> Test:
        """Parse conditions that ``or`` connects."""
        return self._parse_connected("or", self._parse_all)

    def _parse_all(self) -> Test:
        return self._parse_connected("and", self._parse_factor)

    def _parse_connected(self, word: str, parse_part: Callable[[], Test]) -> Test:
        parts = [parse_part()]
        while self.accept(word):
            parts.append(parse_part())
        return parts[0] if len(parts) == 1 else Connective(word, tuple(parts))

    def _parse_factor(self) -> Test:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.reject("is nested too deeply")
        try:
            if self.accept("not"):
                return Connective("not", (self._parse_factor(),))
            if self.accept("("):
                test = self.parse_any()
                self.expect(")")
                return test
            return self._parse_comparison()
        finally:
            self.depth -= 1

    def _parse_comparison(self) -> Test:
        left = self._parse_value()
        if comparison := self.accept(*COMPARISONS):
            return Comparison(comparison, left, (self._parse_value(),))
        is_negated = bool(self.accept("not"))
        if self.accept("in"):
            test = Comparison("in", left, self._parse_list())
            return Connective("not", (test,)) if is_negated else test
        if is_negated or not isinstance(left, (TensorValue, bool)):
            raise self.reject("expected a comparison")
        return Comparison("==", left, (True,))

    def _parse_list(self) -> tuple[Value, ...]:
        self.expect("[")
        values = [self._parse_value()]
        while self.accept(","):
            values.append(self._parse_value())
        self.expect("]")
        return tuple(values)

    def _parse_value(self) -> Value:
        token = self.take()
        if token.kind == "number":
            return float(token.text)
        if token.kind == "text":
            return _unquote(token)
        if token.kind == "name" and token.text in CONSTANTS:
            return CONSTANTS[token.text]
        if token.kind == "name" and token.text in FUNCTIONS and self.accept("("):
            value = self._parse_value()
            if not isinstance(value, TensorValue) or value.index or value.function:
                raise self.reject(f"{token.text} takes a tensor")
            self.expect(")")
            return TensorValue(value.tensor, function=token.text)
        if token.kind in ("name", "quoted"):
            return TensorValue(token.text.strip("`"), self._parse_index())
        self.next_token -= token.kind != "end"
        raise self.reject("expected a value")

    def _parse_index(self) -> tuple[int, ...]:
        if not self.accept("["):
            return ()
        index = [self._parse_position()]
        while self.accept(","):
            index.append(self._parse_position())
        self.expect("]")
        return tuple(index)

    def _parse_position(self) -> int:
        if self.peek()[0] != "number" or not re.fullmatch(r"-?\d{1,9}", self.peek()[1]):
            raise self.reject("expected an index")
        return int(self.take().text)


def _split_tokens(text: str) -> Iterator[_Token]:
    position = 0
    while text[position:].strip():
        match = TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise ConditionError(f'cannot read "{text[start : start + 10]}" at character {start + 1}')
        kind = str(match.lastgroup)
        token = match.group(kind)
        yield _Token("word" if token in WORDS else kind, token, match.start(kind))
        position = match.end()
    yield _Token("end", "", len(text))


def _unquote(token: _Token) -> str:
    if token.text.startswith("'"):
        return token.text[1:-1]
    try:
        return str(json.loads(token.text))
    except ValueError as error:
        raise ConditionError(f"cannot read the text at character {token.position + 1}") from error


def _evaluate(test: Test, tensors: Mapping[str, NDArray[Any]]) -> bool:
    if isinstance(test, Connective):
        if test.word == "not":
            return not _evaluate(test.parts[0], tensors)
        combine = any if test.word == "or" else all
        return combine(_evaluate(part, tensors) for part in test.parts)
    left = _read_value(test.left, tensors)
    if test.comparison == "in":
        return any(_is_equal(left, _read_value(value, tensors)) for value in test.right)
    right = _read_value(test.right[0], tensors)
    if test.comparison in ("==", "!="):
        return _is_equal(left, right) == (test.comparison == "==")
    try:
        return bool(COMPARISONS[test.comparison](left, right))
    except TypeError as error:
        raise ConditionError(f"cannot order {left!r} and {right!r}") from error


def _is_equal(left: Any, right: Any) -> bool:
    return isinstance(left, str) == isinstance(right, str) and bool(left == right)


def _read_value(value: Value, tensors: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(value, TensorValue):
        return value
    # a spec is checked without numpy
    import numpy as np

    tensor = np.asarray(find_tensor(tensors, value.tensor))
    try:
        selected = getattr(np, value.function)(tensor) if value.function else tensor[value.index]
    except (IndexError, ValueError, TypeError) as error:
        raise ConditionError(f"{value.tensor} of shape {list(tensor.shape)}: {error}") from error
    if np.size(selected) != 1:
        shape = list(np.shape(selected))
        raise ConditionError(f"{value.tensor} has shape {shape}, not one value: {value.tensor}[0], or max(...)")
    scalar = np.asarray(selected).reshape(()).item()
    return scalar.decode("utf-8", "replace") if isinstance(scalar, bytes) else scalar


def _list_values(test: Test) -> Iterator[tuple[TensorValue, Value | None]]:
    if isinstance(test, Connective):
        for part in test.parts:
            yield from _list_values(part)
        return
    for value in (test.left, *test.right):
        if isinstance(value, TensorValue):
            others = [other for other in (test.left, *test.right) if not isinstance(other, TensorValue)]
            yield value, others[0] if others else None
