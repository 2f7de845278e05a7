"""Run folders: manifest, hashes, lock, and disks that fail."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unfoldkit.errors import ExitCode, UnfoldError
from unfoldkit.run_directory import MANIFEST, RunDir, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run with one file."""
    made = RunDir(tmp_path / "run")
    made.write("model.json", b"old", made_from="f1")
    return made


def full(*_: object) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_written_is_read_and_listed(run: RunDir) -> None:
    """A file reads back, is listed with its hash and what it was made from, and can be read by others."""
    assert run.read("model.json") == b"old"
    hashed = hashlib.sha256(b"old").hexdigest()
    assert run.files()["model.json"] == {"sha256": hashed, "bytes": 3, "made_from": "f1"}
    assert stat.S_IMODE((run.path / "model.json").stat().st_mode) == 0o644


def test_a_file_counts_for_what_it_was_made_from(run: RunDir) -> None:
    """``has`` asks for the fingerprint, ``once`` makes anew only when it is another."""
    assert run.has("model.json")
    assert run.has("model.json", made_from="f1")
    assert not run.has("model.json", made_from="f2")
    assert run.once("model.json", "f1", lambda: b"new") == b"old"
    assert run.once("model.json", "f2", lambda: b"new") == b"new"


def test_a_changed_file_is_refused_by_name(run: RunDir) -> None:
    """A file with a hash other than the manifest's is the caller's fault and is named."""
    (run.path / "model.json").write_bytes(b"evil")
    with pytest.raises(UnfoldError, match=r"model\.json: the file was changed") as caught:
        run.read("model.json")
    assert caught.value.code is ExitCode.USAGE
    # kinds without a training verb store files too
    assert caught.value.diagnostics[0].hint == "delete the file or the run, and repeat the verb that wrote it"


def test_a_file_that_is_not_listed_does_not_count(run: RunDir) -> None:
    """What a dying process left beside the manifest is not read."""
    (run.path / "other.json").write_bytes(b"half")
    assert not run.has("other.json")
    with pytest.raises(UnfoldError, match=r"no other\.json in this run"):
        run.read("other.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"files": []}',
        '{"schema": "unfoldkit.manifest/1", "files": [1]}',
        '{"schema": "unfoldkit.manifest/1", "files": {"a": 3}}',
        '{"schema": "unfoldkit.manifest/1", "files": {"a": {"sha256": "0"}}}',
    ],
)
def test_a_damaged_manifest_is_refused(run: RunDir, text: str) -> None:
    """A manifest that cannot be read is an error, never an empty run."""
    (run.path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(UnfoldError, match="the manifest is damaged"):
        run.files()


@pytest.mark.parametrize("rest", ["", ', "files": {}', ', "entries": []'])
def test_a_run_of_another_version_need_not_be_deleted(run: RunDir, rest: str) -> None:
    """A manifest of another schema is reported with both schemas: the run is intact, its own version reads it."""
    (run.path / MANIFEST).write_text(f'{{"schema": "unfoldkit.manifest/9"{rest}}}', encoding="utf-8")
    with pytest.raises(UnfoldError, match=r"the schema unfoldkit.manifest/9 \(this one reads"):
        run.files()


@pytest.mark.parametrize("name", ["../out.json", "a/../../out.json", "/etc/out.json"])
def test_a_name_stays_inside(run: RunDir, name: str) -> None:
    """No name is outside of the run."""
    with pytest.raises(UnfoldError, match="is outside of the run"):
        run.write(name, b"x")


def test_a_full_disk_keeps_the_old_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the old file and its entry stay, nothing of the new one does, and the code is 3."""
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnfoldError, match="No space left on device") as caught:
        run.write("model.json", b"new", made_from="f2")
    monkeypatch.undo()
    assert caught.value.code is ExitCode.INTERNAL
    assert run.read("model.json") == b"old"
    assert sorted(path.name for path in run.path.iterdir()) == [MANIFEST, "model.json"]


def test_a_full_disk_loses_nothing_that_is_stored_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that is stored already needs no room; a file that was changed meanwhile is written again."""
    run.write("model.json", b"old", made_from="f1")
    monkeypatch.setattr(os, "fsync", full)
    run.write("model.json", b"old", made_from="f1")
    monkeypatch.undo()
    (run.path / "model.json").write_bytes(b"bad")
    run.write("model.json", b"old", made_from="f1")
    assert run.read("model.json") == b"old"


def test_a_place_that_cannot_be_written_is_the_callers_fault(tmp_path: Path) -> None:
    """A file in place of a folder is an error with its name and exit code 2."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UnfoldError, match="cannot write") as caught:
        write_atomically(tmp_path / "file" / "out.json", b"x")
    assert caught.value.code is ExitCode.USAGE


def test_a_read_only_file_system_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses to remove the temporary file as well, which nothing made; the message names what was asked for."""

    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UnfoldError, match="cannot write: Read-only file system") as caught:
        write_atomically(tmp_path / "x.html", b"x")
    assert caught.value.diagnostics[0].file == str(tmp_path / "x.html")
    assert caught.value.code is ExitCode.USAGE


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """A special file, such as /dev/stdout or /dev/null, gets the bytes and is not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as readers:
        read = readers.submit(pipe.read_bytes)
        write_atomically(pipe, b"text")
        assert read.result(timeout=30) == b"text"
    assert pipe.is_fifo()


@pytest.mark.parametrize("letter", ["a", "\u00e4", "\u5b57", "\U0001f600"], ids=["1", "2", "3", "4"])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, letter: str) -> None:
    """The incomplete file beside it has a longer name, of letters of any size."""
    path = tmp_path / (letter * (255 // len(letter.encode())))
    write_atomically(path, b"all")
    assert path.read_bytes() == b"all"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A file that is written through a link changes where the link leads to, and the link is kept."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link.md").symlink_to(tmp_path / "there" / "real.md")
    write_atomically(tmp_path / "link.md", b"one")
    write_atomically(tmp_path / "link.md", b"two")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "there" / "real.md").read_bytes() == b"two"


def test_a_link_that_leads_in_a_circle_is_replaced(tmp_path: Path) -> None:
    """What a link that leads nowhere, or to itself, is asked to hold is written and not lost."""
    (tmp_path / "circle.md").symlink_to(tmp_path / "circle.md")
    write_atomically(tmp_path / "circle.md", b"text")
    assert (tmp_path / "circle.md").read_bytes() == b"text"


def test_a_file_keeps_the_permissions_of_its_owner(run: RunDir) -> None:
    """A new file is as private as the umask, and a rewritten one keeps its permissions."""
    before = os.umask(0o077)
    try:
        run.write("secret.json", b"new")
    finally:
        os.umask(before)
    run.write("secret.json", b"again")
    (run.path / "model.json").chmod(0o640)
    run.write("model.json", b"again")
    modes = [stat.S_IMODE((run.path / name).stat().st_mode) for name in ("secret.json", "model.json")]
    assert modes == [0o600, 0o640]


def test_a_run_is_one_process_at_a_time(run: RunDir) -> None:
    """A second holder is refused while the first holds the run, and let in afterwards."""
    with run.locked(), pytest.raises(UnfoldError, match="another process is using this run"), run.locked():
        pass
    with run.locked():
        pass


def test_a_full_disk_is_not_the_callers_fault(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot even be locked for want of room gives the exit code of every later write."""
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UnfoldError, match="cannot write to the run folder") as caught, run.locked():
        pass
    assert caught.value.code is ExitCode.INTERNAL


def test_a_run_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """A run folder that cannot be made is the caller's fault."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UnfoldError, match="cannot write to the run folder"), RunDir(tmp_path / "file").locked():
        pass


def test_a_pipe_in_the_place_of_the_lock_is_refused_at_once(run: RunDir) -> None:
    """A run from elsewhere may hold one, and to open it would wait for a reader."""
    os.mkfifo(run.path / ".lock")
    assert run.is_locked()
    with pytest.raises(UnfoldError, match="cannot write to the run folder") as caught, run.locked():
        pass
    assert caught.value.code is ExitCode.USAGE


def test_the_manifest_is_json_in_the_order_of_names(run: RunDir) -> None:
    """The manifest is the same bytes whatever the order of writing."""
    run.write("a.json", b"a")
    listed = json.loads((run.path / MANIFEST).read_text(encoding="utf-8"))
    assert list(listed["files"]) == ["a.json", "model.json"]
