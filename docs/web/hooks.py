"""What MkDocs does differently for these pages: their order, links that leave the folder, files above code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
SECTIONS = {
    "Tutorials": "tutorials",
    "How-to": "how-to",
    "Reference": "reference",
    "Explanation": "explanation",
    "Benchmarks": "benchmarks",
}
FILE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Make the navigation: the parts of Diátaxis, and in each the pages as the start page names them."""
    config["nav"] = navigation(DOCS)
    return config


def on_page_markdown(markdown: str, *, page: Any, **_rest: Any) -> str:
    """Return a page as MkDocs reads it."""
    return adapted(markdown, DOCS / page.file.src_uri)


def navigation(folder: Path) -> list[Any]:
    """Return the pages of each part; none is left out, whether the start page names it or not."""
    start = {"Start": ["index.md", "gallery.md"]}
    return [start, *({title: _part(folder, name)} for title, name in SECTIONS.items())]


def adapted(markdown: str, path: Path) -> str:
    """Return the text with file names as titles of code, and with links out of the docs as plain names of files."""
    return LINK.sub(lambda found: _link(found, path), FILE.sub(r'```\1 title="\2"', markdown))


def _part(folder: Path, name: str) -> list[Any]:
    there = sorted(path.relative_to(folder).as_posix() for path in (folder / name).rglob("*.md"))
    text = (folder / "index.md").read_text("utf-8")
    kinds = [page for page in there if page.startswith(f"{name}/kinds/")]
    flat = _titled(folder, _ordered([page for page in there if page not in kinds], text))
    return [*flat, {"Kinds": _titled(folder, _ordered(kinds, text))}] if kinds else flat


def _titled(folder: Path, pages: Sequence[str]) -> list[Any]:
    # MkDocs would make a title of the file's name where a comment stands before the heading
    return [{_heading((folder / page).read_text("utf-8")).replace("`", ""): page} for page in pages]


def _heading(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")


def _ordered(pages: Sequence[str], text: str) -> list[str]:
    return sorted(pages, key=lambda page: (text.find(f"({page})") < 0, text.find(f"({page})"), page))


def _link(found: re.Match[str], path: Path) -> str:
    label, target = found.groups()
    away = not re.match(r"[a-z]+:|#", target) and not (path.parent / target).resolve().is_relative_to(DOCS)
    return (label if label.startswith("`") else f"{label} (`{Path(target).name}`)") if away else found[0]
