"""Run the command line as ``python -m unfoldkit``."""

from unfoldkit.cli import main

if __name__ == "__main__":
    main()
