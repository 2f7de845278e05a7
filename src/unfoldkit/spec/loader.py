"""YAML 1.2 core: `no` is text, duplicate keys are errors, every key and value remembers its line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unfoldkit.errors import Diagnostic, UnfoldError
from unfoldkit.yaml12 import scalar

PathKey = tuple[str | int, ...]
Mark = tuple[int, int]
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 60
MAX_NODES = 200_000

_TAG = "tag:yaml.org,2002:"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data, and where each key and value stands (lines and columns from 1)."""

    data: Any
    file: str
    keys: dict[PathKey, Mark] = field(default_factory=dict)
    values: dict[PathKey, Mark] = field(default_factory=dict)
    origins: dict[PathKey, str] = field(default_factory=dict)


def read_document(path: str, stdin: str = "") -> Document:
    """Parse the file at ``path``; ``-`` stands for the text given as ``stdin``.

    Raises:
        UnfoldError: the file cannot be read, or is not YAML 1.2 core; every mistake with its place.
    """
    return parse(stdin, "<stdin>") if path == "-" else parse(_text(Path(path)), path)


def parse(text: str, file: str = "<text>") -> Document:
    """Parse YAML text.

    Raises:
        UnfoldError: syntax, duplicate keys, tags, several documents, too deep or too large.
    """
    _guard_depth(text, file)
    node = _compose(text, file)
    document = Document(None, file)
    builder = _Builder(document, [])
    data = builder.build(node, ())
    if builder.mistakes:
        raise UnfoldError(*builder.mistakes)
    return Document(data, file, document.keys, document.values)


@dataclass(slots=True)
class _Builder:
    document: Document
    mistakes: list[Diagnostic]
    nodes: int = 0

    def build(self, node: yaml.Node, path: PathKey) -> Any:
        self._count(node)
        self.document.values[path] = _mark(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: PathKey) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in result:
                self._mistake(key_node, "duplicate key", key=_dotted((*path, key)))
            self.document.keys[(*path, key)] = _mark(key_node)
            result[key] = self.build(value_node, (*path, key))
        return result

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._mistake(node, "a key must be a word or a number")
            return f"<{len(self.mistakes)}>"
        return str(node.value)

    def _scalar(self, node: yaml.Node) -> Any:
        if node.tag not in (f"{_TAG}str", "?", "!", None):
            self._mistake(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed", hint="only plain values")
            return None
        quoted = getattr(node, "style", None) in ("'", '"', "|", ">")
        return node.value if quoted else scalar(node.value)

    def _count(self, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            line, column = _mark(node)
            raise UnfoldError(Diagnostic(f"more than {MAX_NODES:,} values", self.document.file, line, column))

    def _mistake(self, node: yaml.Node, message: str, *, key: str = "", hint: str = "") -> None:
        line, column = _mark(node)
        self.mistakes.append(Diagnostic(message, self.document.file, line, column, key, hint))


def _mark(node: yaml.Node) -> Mark:
    mark: Any = node.start_mark
    return mark.line + 1, mark.column + 1


def _dotted(path: PathKey) -> str:
    return ".".join(str(part) for part in path)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "a run folder has spec.yaml inside" if path.is_dir() else ""
        raise UnfoldError(Diagnostic(f"cannot read: {error.strerror}", str(path), hint=hint)) from error
    if len(data) > MAX_BYTES:
        raise UnfoldError(Diagnostic(f"larger than {MAX_BYTES // 1024**2} MiB", str(path), hint="not a spec?"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UnfoldError(Diagnostic("not UTF-8 text", str(path), line, 1)) from error


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=_Base)


def _guard_depth(text: str, file: str) -> None:
    depth = 0
    documents = 0
    try:
        for event in _events(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > MAX_DEPTH or documents > 1:
                message = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "more than one document"
                mark: Any = event.start_mark
                raise UnfoldError(Diagnostic(message, file, mark.line + 1, mark.column + 1))
    except yaml.YAMLError as error:
        raise UnfoldError(_syntax(error, file)) from error


def _compose(text: str, file: str) -> yaml.Node:
    loader = _Base(text)
    loader.yaml_implicit_resolvers = {}
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.YAMLError as error:
        raise UnfoldError(_syntax(error, file)) from error
    finally:
        loader.dispose()
    if node is None:
        raise UnfoldError(
            Diagnostic("the file is empty", file, 1, 1, hint="unfold init KIND writes a spec to start from")
        )
    return node


def _syntax(error: yaml.YAMLError, file: str) -> Diagnostic:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Diagnostic(f"not YAML: {problem}", file, line, column)
