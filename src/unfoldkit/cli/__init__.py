"""The command ``unfold``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _stand_in()
    try:
        _started(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except SystemExit:
        # typer ends with 1 when its reader went away, and leaves this wrapper behind
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            sys.exit(141)
        raise
    except BrokenPipeError:
        from unfoldkit.cli.console import close_quietly

        close_quietly()
        sys.exit(141)
    except OSError as error:
        # a full disk behind stdout; an uncaught exception would end with 1, which is an answer
        sys.stderr.write(f"cannot write: {error.strerror}\n")
        sys.exit(3)


def _stand_in() -> None:
    """Put nothing in the place of standard streams that were closed: a file or a socket would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _started(words: list[str]) -> None:
    if words in (["--version"], ["-V"]):
        from unfoldkit import __version__

        sys.stdout.write(f"unfold {__version__}\n")
    elif words in ([], ["--help"], ["-h"]):
        from unfoldkit.cli.help_layout import text

        sys.stdout.write(text())
    else:
        from unfoldkit.cli.app import run

        run(words)
