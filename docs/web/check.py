"""Look through the built site: ``python -m docs.web.check FOLDER``. Links lead somewhere; nothing is from elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
NOT_LOADED = {"canonical", "next", "prev"}
CSS = re.compile(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)")


@dataclass(slots=True)
class Seen:
    """What a page names: places in it, links from it, and what a browser loads for it."""

    places: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    """Collects what a page names; the standard parser is used by inheritance only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.seen.places.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and "href" in given:
            self.seen.links.append(given["href"])
        for name, value in given.items():
            if (tag, name) in LOADED and given.get("rel") not in NOT_LOADED:
                self.seen.loaded.append(value)


def read(path: Path) -> Seen:
    """Return what an HTML file names."""
    reader = _Reader()
    reader.feed(path.read_text("utf-8"))
    return reader.seen


def check(folder: Path) -> Iterator[str]:
    """Yield a line for each link that leads nowhere and for each thing that a page would load from elsewhere."""
    pages = {path.resolve(): read(path) for path in sorted(folder.rglob("*.html"))}
    for path, seen in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        yield from (f"{name}: {why}" for why in _wrong(path, seen, pages))
    for path in sorted(folder.rglob("*.css")):
        yield from (f"{path.name}: loads {found}" for found in CSS.findall(path.read_text("utf-8")))


def _wrong(path: Path, seen: Seen, pages: Mapping[Path, Seen]) -> Iterator[str]:
    if path.name == "404.html":
        return  # its links begin at the root of a server
    for target in (*seen.links, *seen.loaded):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            if target in seen.loaded and parts.scheme != "data":
                yield f"loads {target}"
            continue
        there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        there = there / "index.html" if there.is_dir() else there
        if not there.is_file():
            yield f"no such file: {target}"
        elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].places:
            yield f"no such place: {target}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if the site holds together, else 1."""
    (folder,) = [Path(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    found = list(check(folder))
    print("".join(f"{line}\n" for line in found) + f"{folder}: {len(found)} mistakes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
