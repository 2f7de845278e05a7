"""Requests as objects with named fields: JSON lines, JSON documents with a list of objects, or Parquet.

Spans as OpenTelemetry exports them (OTLP/JSON) or its SDK prints them are objects too: those that state the tokens of
a model call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.api import Diagnostic, UnfoldError, user_error
from unfoldkit.arrivals.readers.detect import detect_form
from unfoldkit.arrivals.readers.json_document import is_sdk_span
from unfoldkit.io.tables import open_text, read_parquet_rows
from unfoldkit.safe_io.files import parse_values

MAX_FIRST_LINE = 1 << 20
USAGE_PREFIX = "gen_ai.usage."
OTHER_OPERATIONS = frozenset({"create_agent", "embeddings", "execute_tool", "invoke_agent", "invoke_workflow"})
"""Operations of spans with the tokens of the model calls below them, or of no engine."""
MAX_DEPTH = 4
"""Levels of nested objects with named fields: ``response.body.usage.prompt_tokens`` is on the fourth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestObject:
    """A request of a trace.

    Attributes:
        path: The trace.
        number: Of the line, row or entry, from 1 on.
        unit: What is numbered: ``line``, ``row`` or ``entry``.
        text: All of it as text, which ``arrivals.match`` searches.
        fields: Values by name; those of nested objects have dotted names.
    """

    path: Path
    number: int
    unit: str
    text: str
    fields: Mapping[str, Any]

    def wrong(self, message: str, key: str = "", hint: str = "") -> UnfoldError:
        """Make an error about this request."""
        if self.unit == "line":
            return UnfoldError(Diagnostic(message, str(self.path), self.number, 1, key, hint))
        return user_error(f"{self.unit} {self.number}: {message}", file=str(self.path), key=key, hint=hint)


def holds_objects(path: Path) -> bool:
    """Return whether a trace is JSON lines, a JSON document or Parquet, by its name or its beginning."""
    if any(suffix in (".jsonl", ".ndjson") for suffix in path.suffixes):
        return True
    if not path.is_file():
        return False
    return _begins_with_object(path) or detect_form(path) in ("document", "parquet")


def iter_objects(path: Path) -> Iterator[RequestObject]:
    """Yield the requests of a trace in the order of the file.

    Raises:
        UnfoldError: The file is damaged, or holds no objects.
    """
    form = "log" if _begins_with_object(path) else detect_form(path)
    if form == "parquet":
        yield from _iter_parquet(path)
    elif form == "document":
        yield from _iter_document(path)
    else:
        yield from _iter_lines(path)


def _begins_with_object(path: Path) -> bool:
    """Return whether the first line is a request, rather than a document of many."""
    try:
        with open_text(path, errors="replace") as stream:
            first = json.loads(stream.readline(MAX_FIRST_LINE))
            return isinstance(first, dict) and not is_sdk_span(first) and _find_objects(first) is None
    except (ValueError, RecursionError, OSError, EOFError):
        return False


def _iter_lines(path: Path) -> Iterator[RequestObject]:
    try:
        with open_text(path) as stream:
            for number, text in enumerate(stream, 1):
                if text.strip():
                    row = _parse_line(text, number, path)
                    if not isinstance(row, dict):
                        raise UnfoldError(Diagnostic("the line is not a JSON object", str(path), number, 1))
                    yield RequestObject(path=path, number=number, unit="line", text=text, fields=_flatten(row))
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise user_error(f"not a file of JSON lines: {error}", file=str(path)) from error


def _parse_line(text: str, number: int, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"not a JSON object: {getattr(error, 'msg', error)}"
        column = getattr(error, "colno", 1)
        raise UnfoldError(Diagnostic(message, str(path), number, column, hint="a complete line")) from error


def _iter_document(path: Path) -> Iterator[RequestObject]:
    try:
        with open_text(path) as stream:
            entries = _list_entries(list(parse_values(stream.read())))
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise user_error(f"the document breaks off or is not JSON: {error}", file=str(path)) from error
    if entries == []:
        hint = "spans of model calls, with gen_ai.usage.input_tokens and gen_ai.usage.output_tokens"
        raise user_error("no span of the export states tokens", file=str(path), hint=hint)
    if entries is None:
        raise user_error("the document has no list of requests", file=str(path), hint="a list of objects")
    for number, entry in enumerate(entries, 1):
        text = json.dumps(entry, ensure_ascii=False)
        yield RequestObject(path=path, number=number, unit="entry", text=text, fields=_flatten(entry))


def _list_entries(documents: Sequence[Any]) -> list[dict[str, Any]] | None:
    """Return the objects of documents that follow one another, such as the exports of spans; ``None`` without any."""
    if any(isinstance(document, dict) and "resourceSpans" in document for document in documents):
        return [span for document in documents for span in _list_spans(document)]
    if any(map(is_sdk_span, documents)):
        return [span for span in documents if is_sdk_span(span) and _is_model_call(span.get("attributes") or {})]
    found = [entries for document in documents if (entries := _find_objects(document)) is not None]
    return [entry for entries in found for entry in entries] or None


def _list_spans(document: Any) -> Iterator[dict[str, Any]]:
    """Yield the spans of model calls of an export in OTLP/JSON, with their attributes as an object.

    Source: OpenTelemetry semantic conventions for generative AI, ``gen_ai.usage.input_tokens`` and ``output_tokens``.
    """
    for resource in _list_objects(document, "resourceSpans"):
        for scope in _list_objects(resource, "scopeSpans"):
            for span in _list_objects(scope, "spans"):
                attributes = {
                    str(item.get("key")): next(iter(item["value"].values()), None)
                    for item in _list_objects(span, "attributes")
                    if isinstance(item.get("value"), dict)
                }
                if _is_model_call(attributes):
                    yield {**span, "attributes": attributes}


def _is_model_call(attributes: Mapping[str, Any]) -> bool:
    """Return whether the attributes of a span state tokens that an engine has generated."""
    is_call = attributes.get("gen_ai.operation.name") not in OTHER_OPERATIONS
    return is_call and any(name.startswith(USAGE_PREFIX) for name in attributes)


def _list_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the objects of a list in an object; none where there is no such list."""
    items = value.get(name) if isinstance(value, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _find_objects(value: Any) -> list[dict[str, Any]] | None:
    """Return the outermost list of objects."""
    if isinstance(value, list):
        return value if value and all(isinstance(entry, dict) for entry in value) else None
    parts = value.values() if isinstance(value, dict) else ()
    return next((found for part in parts if (found := _find_objects(part)) is not None), None)


def _iter_parquet(path: Path) -> Iterator[RequestObject]:
    names, rows = read_parquet_rows(path)
    for number, cells in enumerate(rows, 1):
        fields = dict(zip(names, cells, strict=True))
        yield RequestObject(path=path, number=number, unit="row", text=",".join(cells), fields=fields)


def _flatten(row: dict[str, Any], depth: int = 1) -> dict[str, Any]:
    """Return the fields of an object, with those of objects in it under dotted names."""
    if depth == MAX_DEPTH or not any(isinstance(value, dict) for value in row.values()):
        return row
    flat = dict(row)
    for name, value in row.items():
        if isinstance(value, dict):
            nested = _flatten(value, depth + 1)
            flat.update({f"{name}.{inner}": each for inner, each in nested.items()})
    return flat
