"""Write, or check, every page that is made from the code: ``python -m docs.generate [--check]``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.generators import ablation, benchmarks, cli, contract, kinds, scale, units, verification

ROOT = Path(__file__).parents[1]
MARK = "<!-- made by `python -m docs.generate`; change the code, not this page -->\n\n"


def pages(root: Path = ROOT) -> dict[str, str]:
    """Return the text of every generated file by its path from the root."""
    made = {
        "docs/reference/cli.md": cli.page(),
        "docs/reference/hooks.md": contract.hooks(),
        "docs/reference/exit-codes.md": contract.exit_codes(),
        "docs/reference/formats.md": contract.formats(),
        "docs/reference/units.md": units.page(),
        **benchmarks.pages(root / "benchmarks"),
        verification.PAGE: verification.page(root / "benchmarks"),
        "docs/explanation/scale.md": scale.page(root / "benchmarks"),
        **{f"docs/reference/kinds/{name}.md": text for name, text in kinds.pages().items()},
    }
    marked = {path: MARK + text.rstrip("\n") + "\n" for path, text in made.items()}
    return marked | {"src/unfoldkit/cli/help.txt": cli.first_screen(), ablation.PAGE: ablation.page(root)}


def stale(made: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Return a diff for every file that is not what the code would write, and a line for every one too many."""
    found = {}
    for path, text in made.items():
        there = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else ""
        if there != text:
            lines = difflib.unified_diff(there.splitlines(), text.splitlines(), path, "what the code says", lineterm="")
            found[path] = "\n".join(lines)
    return found | dict.fromkeys(orphans(made, root), "no kind makes this page any more")


def orphans(made: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return the pages of kinds that are gone."""
    there = [path.relative_to(root).as_posix() for path in sorted((root / "docs/reference/kinds").glob("*.md"))]
    return [path for path in there if path not in made]


def write(made: Mapping[str, str], root: Path = ROOT) -> None:
    """Write the files and remove the pages of kinds that are gone."""
    for path, text in made.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for path in orphans(made, root):
        (root / path).unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every page is current or was written, 1 if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    made = pages()
    if not parser.parse_args(arguments).check:
        write(made)
        print(f"{len(made)} files are current")
        return 0
    found = stale(made)
    for path, why in found.items():
        print(f"stale: {path}\n{why}")
    print(f"{len(found)} of {len(made)} generated files are stale" if found else f"{len(made)} files are current")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
