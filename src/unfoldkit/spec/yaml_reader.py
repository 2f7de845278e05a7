"""Read YAML 1.2 core: `no` is text, duplicate keys are errors, and every key and value has its position."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unfoldkit.errors import Diagnostic, UnfoldError
from unfoldkit.io.yaml12 import scalar
from unfoldkit.safe_io.files import open_regular
from unfoldkit.spec.yaml_errors import explain

PathKey = tuple[str | int, ...]
Mark = tuple[int, int]
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 60
MAX_NODES = 200_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = "?"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Composes nodes without resolving tags: the meaning of plain scalars follows YAML 1.2, not PyYAML's 1.1."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        del kind, value, implicit
        return _PLAIN


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data, and the position of each key and value (lines and columns from 1).

    ``origins`` holds, by path, the ``--set`` flag that wrote a value.
    """

    data: Any
    file: str
    keys: dict[PathKey, Mark] = field(default_factory=dict)
    values: dict[PathKey, Mark] = field(default_factory=dict)
    origins: dict[PathKey, str] = field(default_factory=dict)


def read_document(path: str, stdin: str = "") -> Document:
    """Parse the file at ``path``, or the text of ``stdin`` for ``-``.

    Raises:
        UnfoldError: The file cannot be read or is not YAML 1.2 core; every mistake with its position.
    """
    return parse(stdin, "<stdin>") if path == "-" else parse(decode_text(_read_bytes(Path(path)), path), path)


def decode_text(data: bytes, file: str) -> str:
    """Decode the text of a file.

    Raises:
        UnfoldError: It is too large for a spec, or not UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise UnfoldError(Diagnostic(f"larger than {MAX_BYTES // 1024**2} MiB", file, hint="not a spec?"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode()) + 1
        raise UnfoldError(Diagnostic("not UTF-8 text", file, line, column, hint="save the file as UTF-8")) from error


def parse(text: str, file: str = "<text>") -> Document:
    """Parse YAML text.

    Raises:
        UnfoldError: Syntax errors, duplicate keys, tags or several documents; or it is too deep or too large.
    """
    _check_text(text, file)
    _check_size(text, file)
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
        self._count(node, len(path))
        self.document.values[path] = _mark(node)
        if node.tag != _PLAIN:
            tag = node.tag.replace(_TAG, "!!")
            self._mistake(
                node, f"the tag {tag} is not allowed", key=dotted(path), hint="leave it out; quotes make text"
            )
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: PathKey) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key == "<<" and not key_node.style:
                hint = "write the keys out; an alias may stand for a whole value"
                self._mistake(key_node, "YAML 1.2 has no merge keys", key=dotted((*path, key)), hint=hint)
                continue
            if key in result:
                first = self.document.keys[*path, key][0]
                self._mistake(key_node, "duplicate key", key=dotted((*path, key)), hint=f"the first is in line {first}")
            self.document.keys[(*path, key)] = _mark(key_node)
            result[key] = self.build(value_node, (*path, key))
        return result

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._mistake(node, "a key must be a word or a number, not a list or mapping")
            return f"<{len(self.mistakes)}>"
        if node.tag != _PLAIN:
            self._mistake(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed", hint="leave it out")
        return str(node.value)

    def _scalar(self, node: yaml.Node) -> Any:
        quoted = getattr(node, "style", None) in ("'", '"', "|", ">")
        return node.value if quoted else scalar(node.value)

    def _count(self, node: yaml.Node, depth: int) -> None:
        # anchors can expand a short file to many values, or to one that contains itself
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise UnfoldError(_limit_error(self.document.file, node.start_mark, deep=depth > MAX_DEPTH))

    def _mistake(self, node: yaml.Node, message: str, *, key: str = "", hint: str = "") -> None:
        line, column = _mark(node)
        self.mistakes.append(Diagnostic(message, self.document.file, line, column, key, hint))


def _mark(node: yaml.Node) -> Mark:
    mark: Any = node.start_mark
    return mark.line + 1, mark.column + 1


def dotted(path: Iterable[str | int]) -> str:
    """Format a path: ``a.b[0].c`` for ``("a", "b", 0, "c")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _read_bytes(path: Path) -> bytes:
    # a path may be too long to look at, which the next call reports
    with contextlib.suppress(OSError):
        if path.is_fifo():
            raise UnfoldError(Diagnostic("cannot read: a pipe", str(path), hint="- reads a spec from stdin"))
    with open_regular(path) as stream:
        try:
            return stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise UnfoldError(Diagnostic(f"cannot read: {error.strerror}", str(path))) from error


def _check_text(text: str, file: str) -> None:
    # command-line arguments that are not UTF-8 arrive as lone surrogates
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfoldError(Diagnostic("not UTF-8 text", file)) from error


def _limit_error(file: str, mark: Any, *, deep: bool) -> Diagnostic:
    message = f"nested deeper than {MAX_DEPTH}" if deep else f"more than {MAX_NODES:,} values"
    return Diagnostic(message, file, mark.line + 1, mark.column + 1)


def _check_size(text: str, file: str) -> None:
    depth = documents = values = 0
    try:
        for event in yaml.parse(text, Loader=_Base):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            values += isinstance(event, yaml.NodeEvent)
            if depth > MAX_DEPTH or values > MAX_NODES:
                raise UnfoldError(_limit_error(file, event.start_mark, deep=depth > MAX_DEPTH))
            if documents > 1:
                mark: Any = event.start_mark
                hint = "one spec a file"
                raise UnfoldError(Diagnostic("more than one document", file, mark.line + 1, mark.column + 1, hint=hint))
    except yaml.YAMLError as error:
        raise UnfoldError(explain(error, text, file)) from error


def _compose(text: str, file: str) -> yaml.Node:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.YAMLError as error:
        raise UnfoldError(explain(error, text, file)) from error
    finally:
        loader.dispose()
    if node is None:
        raise UnfoldError(
            Diagnostic("the file is empty", file, 1, 1, hint="unfold init KIND writes a spec to start from")
        )
    return node
