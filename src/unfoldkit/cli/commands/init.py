"""`unfold init KIND`: a commented spec to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from unfoldkit.cli import console, plugin_registry
from unfoldkit.descriptors import Kind
from unfoldkit.errors import ExitCode, user_error
from unfoldkit.run_directory import write_atomically


def init(kind: str | None, out: Path | None = None) -> ExitCode:
    """Print the first example of a kind, or write it to a new file.

    Raises:
        UnfoldError: no kind was named, or one that is not there, or the file is there already.
    """
    registry = plugin_registry.registry()
    if kind is None:
        raise user_error("which kind?", hint=f"one of: {', '.join(sorted(registry.kinds))}")
    text = starter(registry.kind(kind))
    if out is None:
        console.write_report(text)
        return ExitCode.YES
    if out.exists():
        raise user_error("the file is there already; nothing was changed", file=str(out))
    write_atomically(out, text.encode())
    console.say(f"wrote {out}\nnext: unfold check {out}")
    return ExitCode.YES


def starter(kind: Kind) -> str:
    """Return the smallest example of a kind, with a line that tells editors its schema."""
    texts = examples(kind)
    if not texts:
        raise user_error(f"kind {kind.name} ships no example", hint=f"unfold schema {kind.name} shows its keys")
    schema = f"{kind.name}.schema.json"
    modeline = f"# yaml-language-server: $schema={schema}\n# (unfold schema {kind.name} -o {schema} makes that file)\n"
    return modeline + next(iter(texts.values()))


def examples(kind: Kind) -> dict[str, str]:
    """Return the texts of a kind's examples by file name, in order."""
    if kind.examples is None:
        return {}
    package, _, folder = kind.examples.partition(":")
    found = [item for item in files(package).joinpath(folder).iterdir() if item.name.endswith(".yaml")]
    return {item.name: item.read_text(encoding="utf-8") for item in sorted(found, key=lambda item: item.name)}
