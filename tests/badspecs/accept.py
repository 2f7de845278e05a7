"""Bad specs and what ``unfold check`` says of each, word for word.

A spec in this folder is checked with the plugin ``echo`` alone; one in a folder ``KIND/`` with that plugin beside it.
``python -m tests.badspecs.accept`` writes the ``.expected`` files anew; read the difference before you commit it.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from tests.support import ROOT, Outcome, call

FOLDER = Path(__file__).parent


def specs() -> list[Path]:
    """Return every bad spec, relative to the checkout."""
    return [path.relative_to(ROOT) for path in sorted(FOLDER.rglob("*.yaml"))]


def others(spec: Path) -> str:
    """Return the names of the plugins that are switched off for ``spec``, as UNFOLD_DISABLE_PLUGINS takes them."""
    wanted = {"echo", spec.parent.name}
    names = {point.name for point in importlib.metadata.entry_points(group="unfoldkit")}
    return ",".join(sorted(names - wanted))


def checked(spec: Path) -> Outcome:
    """Return what ``unfold check`` says of ``spec``, called in the root of the checkout."""
    return call(["check", spec.as_posix()])


def accept() -> None:
    """Write what is said now as what is expected."""
    os.chdir(ROOT)
    for spec in specs():
        os.environ["UNFOLD_DISABLE_PLUGINS"] = others(spec)
        spec.with_suffix(".expected").write_text(checked(spec).out, encoding="utf-8")
    sys.stderr.write(f"wrote {len(specs())} files; see git diff\n")


if __name__ == "__main__":
    accept()
