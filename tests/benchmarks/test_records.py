"""The benchmarks on intensive care take the records that are there."""

from __future__ import annotations

from pathlib import Path

from benchmarks.records import records


def test_records_are_an_archive_of_any_name_or_a_folder(tmp_path: Path) -> None:
    """An archive of another hospital is taken as that of the first, and a folder of files where there is none."""
    folder = tmp_path / "physionet2019"
    folder.mkdir()
    (folder / "README.md").touch()
    (folder / "p000001.psv").touch()
    assert records(tmp_path) == folder
    (folder / "training_setB.zip").touch()
    assert records(tmp_path) == folder / "training_setB.zip"
