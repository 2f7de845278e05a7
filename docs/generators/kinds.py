"""One page a kind: what it is for, its verbs, every key of its spec, and its smallest example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from docs.generators.markdown import code, fenced, table
from unfoldkit.cli.commands.authoring import read_examples
from unfoldkit.plugin_descriptors import Kind, resolve
from unfoldkit.registry import open_registry
from unfoldkit.spec.schema import build_schema
from unfoldkit.spec.units import BYTES, HERTZ, PER, SECONDS

Schema = Mapping[str, Any]
NUMBERS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minLength": "≥", "minItems": "≥", "maxLength": "≤", "maxItems": "≤"}


def pages() -> dict[str, str]:
    """Return the page of every kind that loads, by name."""
    return {name: page(kind) for name, kind in open_registry().kinds.items()}


def page(kind: Kind) -> str:
    """Return the page of one kind."""
    schema = build_schema(resolve(kind.spec), kind.name)
    verbs = ", ".join(code(f"unfold {verb}") for verb in kind.verbs)
    needs = f"\n\nIt needs the extra `{kind.extra}`: `pip install '.[{kind.extra}]'`." if kind.extra else ""
    head = f"# {kind.name}\n\n`{kind.name}` {kind.summary}. Verbs: {verbs}.{needs}\n"
    return "\n".join([head, *_example(kind), *_keys(schema)])


def _example(kind: Kind) -> list[str]:
    texts = read_examples(kind)
    if not texts:
        return []
    text = next(iter(texts.values()))
    return [f"## Smallest example\n\n`unfold init {kind.name}` prints it.\n\n{fenced(text, 'yaml')}"]


def _keys(schema: Schema) -> list[str]:
    definitions = schema.get("definitions", {})
    parts = [f"## Keys\n\n{_rows(schema, definitions)}"]
    for name, inner in sorted(definitions.items()):
        about = inner.get("description", "").replace("``", "`").strip()
        body = _rows(inner, definitions) if inner.get("properties") else f"{shape(inner)}\n"
        parts.append("\n\n".join(part for part in (f"### {name}", about, body) if part))
    return parts


def _rows(schema: Schema, definitions: Schema) -> str:
    needed = schema.get("required", [])
    rows = [
        (code(name), shape(item), _default(item, name in needed), _meaning(name, item, definitions))
        for name, item in schema.get("properties", {}).items()
    ]
    return table(("key", "type", "default", "meaning"), rows)


def _meaning(name: str, item: Schema, definitions: Schema) -> str:
    # a kind narrows `kind` to its own name, which drops what the envelope says about it
    known = "which plugin answers" if name == "kind" and "const" in item else _describe_section(item, definitions)
    return str(item.get("description", known)).replace("``", "`")


def _describe_section(item: Schema, definitions: Schema) -> str:
    """Return the first sentence about the only section that a key may hold; empty if it may hold several."""
    sections = [part["$ref"].rpartition("/")[2] for part in (item, *item.get("anyOf", [])) if "$ref" in part]
    if len(sections) != 1:
        return ""
    about = str(definitions.get(sections[0], {}).get("description", "")).partition("\n")[0].rstrip(".")
    is_acronym = about[1:2].isupper()
    return about if is_acronym else about[:1].lower() + about[1:]


def shape(item: Schema) -> str:
    """Return the type of a value in words: ``integer, ≥ 1``, ``list of Voice``, ``quantity, such as $3.06``."""
    if "$ref" in item:
        name = item["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in item:
            shared = {"examples": item["examples"]} if "examples" in item else {}
            return " or ".join(dict.fromkeys(shape({**shared, **part}) for part in item[key]))
    if "allOf" in item and len(item["allOf"]) == 1:
        return shape(item["allOf"][0])
    if "const" in item or "enum" in item:
        return " or ".join(code(str(value)) for value in item.get("enum", [item.get("const")]))
    return _plain(item)


def _plain(item: Schema) -> str:
    kind = item.get("type", "any value")
    if kind == "string" and is_quantity(item):
        return f"[quantity](../units.md), such as {code(str(item.get('examples', ['150 ms'])[0]))}"
    if kind == "array":
        return _array(item)
    if kind == "object":
        inner = item.get("additionalProperties")
        return f"mapping to {shape(inner)}" if isinstance(inner, Mapping) and inner else "mapping"
    word: str = {"string": "text", "boolean": "true or false", "null": "nothing"}.get(str(kind), str(kind))
    return ", ".join([word, *_limits(item)])


def _array(item: Schema) -> str:
    if "prefixItems" in item or isinstance(item.get("items"), list):
        return "list of " + ", ".join(shape(part) for part in item.get("prefixItems") or item["items"])
    inner = f" of {shape(item['items'])}" if item.get("items") else ""
    return ", ".join([f"list{inner}", *_limits(item)])


def _limits(item: Schema) -> list[str]:
    found = [f"{sign} {item[key]}" for key, sign in NUMBERS.items() if key in item]
    what = "items" if item.get("type") == "array" else "characters"
    return found + [f"{sign} {item[key]} {what}" for key, sign in LENGTHS.items() if key in item]


def is_quantity(item: Schema) -> bool:
    """Whether the pattern is that of a quantity: it names units."""
    pattern = str(item.get("pattern", ""))
    named = any("|".join(units) in pattern for units in (SECONDS, BYTES, HERTZ, PER))
    return named or pattern.startswith(r"^\s*\$") or pattern.endswith(r"%\s*$")


def _default(item: Schema, needed: bool) -> str:
    if needed:
        return "required"
    value = item.get("default")
    return "none" if value is None else code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
