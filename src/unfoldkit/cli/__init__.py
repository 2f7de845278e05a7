"""The command ``unfold``. ``--help`` and ``--version`` import neither the command-line library nor any plugin."""

from __future__ import annotations

import os
import sys

COMPLETION = "_UNFOLD_COMPLETE"
"""The variable with which a shell requests completions, of a call without words."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        _replace_closed_streams()
        _run(words, is_process=arguments is None)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except SystemExit:
        # typer exits with 1 when the reader of stdout has closed it, and leaves this wrapper behind
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            sys.exit(141)
        raise
    except BrokenPipeError:
        from unfoldkit.cli.console import discard

        discard(sys.stdout)
        sys.exit(141)
    except OSError as error:
        # a full disk behind stdout or stderr; an uncaught exception would exit with 1, which means "no"
        from unfoldkit.cli.console import print_message

        print_message(f"cannot write: {error.strerror}")
        sys.exit(3)


def _replace_closed_streams() -> None:
    """Open the null device for closed standard streams; otherwise a file or socket would get their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _run(words: list[str], *, is_process: bool) -> None:
    if COMPLETION in os.environ:
        from unfoldkit.cli.app import run

        run(words)
    elif words in (["--version"], ["-V"]):
        from unfoldkit import __version__

        sys.stdout.write(f"unfold {__version__}\n")
    elif words in ([], ["--help"], ["-h"]):
        from unfoldkit.cli.help_layout import read_help

        sys.stdout.write(read_help())
    else:
        from unfoldkit.cli.interruption import handling_stops

        with handling_stops(is_process=is_process):
            from unfoldkit.cli.app import run

            run(words)
