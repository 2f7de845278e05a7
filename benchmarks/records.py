"""Where the hourly records of intensive care lie in the shared data."""

from __future__ import annotations

from pathlib import Path

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tar.xz", ".tgz")


def records(data: Path) -> Path:
    """Return the archive of psv files in ``physionet2019``, the first by name; without one the folder itself."""
    folder = data / "physionet2019"
    return next((path for path in sorted(folder.iterdir()) if path.name.endswith(ARCHIVES)), folder)
