"""The command ``unfold``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        from unfoldkit import __version__

        sys.stdout.write(f"unfold {__version__}\n")
        return
    if words in ([], ["--help"], ["-h"]):
        from unfoldkit.cli.help import text

        sys.stdout.write(text())
        return
    from unfoldkit.cli.app import run

    run(words)
