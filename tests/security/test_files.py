"""Damaged and hostile files of every kind: exit code 2 with the file's name, within two seconds, and never a hang."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.security.hostile import replace_in_run
from tests.security.test_hostile_runs import CASCADE, PIPELINE
from tests.support import Outcome, call
from unfoldkit.errors import UnfoldError
from unfoldkit.safe_io import archives, arrays, files
from unfoldkit.safe_io.files import parse_object

# bounds are on processor time, since a busy machine takes longer; nothing may hang
pytestmark = pytest.mark.timeout(60)

DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
DEEP_LIST = b"[" * 200_000 + b"]" * 200_000


def npz(**named: np.ndarray) -> bytes:
    """The bytes of an archive of arrays."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **named)
    return stream.getvalue()


def bomb() -> bytes:
    """A small archive of an array that expands to more than the bound."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", b"")
    data = bytearray(stream.getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", (1 << 31) + 5)
    return bytes(data)


def lying_header() -> bytes:
    """An archive of an array with a header that states a terabyte."""
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,), }"
    head += b" " * (117 - len(head)) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("facts.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    return stream.getvalue()


def deep_xgboost() -> bytes:
    """A model of XGBoost with JSON nested a million deep."""
    return b'{"learner":' + b"[" * 1_000_000


FAULTS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "garbage": lambda: bytes(range(256)) * 8,
    "text": lambda: b"not what it should be\n",
    "deep object": lambda: DEEP,
    "deep list": lambda: DEEP_LIST,
    "list": lambda: b"[1, 2, 3]",
    "empty object": lambda: b"{}",
    "number": lambda: b"17",
    "object of numbers": lambda: b'{"base": 3, "points": 4, "models": 5, "nets": 6, "schema": 7, "files": 8}',
    "other arrays": lambda: npz(other=np.zeros(3)),
    "objects": lambda: npz(facts=np.array([print], dtype=object)),
    "bomb": bomb,
    "lying header": lying_header,
    "half an archive": lambda: npz(facts=np.zeros(300))[:900],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small cascade."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tumours.yaml").write_text(CASCADE)
    done = call(["train", folder / "tumours.yaml", "--run", folder / "run", "--jobs", "1"])
    assert done.code in (0, 1), done.err
    return folder


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a service that has loaded its files end at once."""
    monkeypatch.setattr("unfoldkit.serving.http.server.run_service", lambda *_, **__: None)


CASCADE_FILES: Mapping[str, list[str]] = {
    "report.json": ["report"],
    "origin.json": ["plan-file"],
    "manifest.json": ["report", "plan", "serve"],
    "spec.yaml": ["plan", "serve"],
    "plan.yaml": ["serve"],
    "front.json": ["serve"],
    "cases.npz": ["serve"],
    "serving/probe.npz": ["serve"],
    "logs/diagnosis/all/trees.npz": ["serve"],
    "models": ["serve"],
}


def ask(verb: str, run: Path) -> Outcome:
    """Call a verb on a run."""
    words: list[str | Path] = [verb.partition("-")[0], run / "plan.yaml" if verb == "plan-file" else run]
    return call([*words, *(["--port", "0"] if verb == "serve" else []), *(["--jobs", "1"] if "plan" in verb else [])])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", CASCADE_FILES)
@pytest.mark.timed
def test_a_damaged_file_of_a_run_is_named(trained: Path, tmp_path: Path, file: str, fault: str) -> None:
    """Whatever a file of a run holds, with the manifest rewritten to match, the verb that reads it reports it."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    data = FAULTS[fault]()
    if file == "manifest.json":
        (run / file).write_bytes(data)
    else:
        # which of the models is asked is for the plan to say
        for path in run.rglob("*.skops") if file == "models" else [run / file]:
            replace_in_run(run, str(path.relative_to(run)), data)
    for verb in CASCADE_FILES[file]:
        began = time.process_time()
        done = ask(verb, run)
        expected = (
            "run"
            if file in ("manifest.json", "origin.json", "spec.yaml")
            else ".skops"
            if file == "models"
            else Path(file).name
        )
        assert done.code == 2, (verb, done.code, done.out[:300], done.err[:600])
        assert "Traceback" not in done.err
        assert expected in done.err
        assert time.process_time() - began < 2


@pytest.mark.parametrize("file", ["report.json", "spec.yaml", "manifest.json"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "circle"])
def test_what_is_no_file_is_refused(trained: Path, tmp_path: Path, file: str, what: str) -> None:
    """A pipe would block, a device never end, links lead in a circle; all are refused with the name, at once."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (run / file).unlink()
    put(run / file, what)
    command = [sys.executable, "-m", "unfoldkit", "report" if file == "report.json" else "plan", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(run) in done.stderr


def put(path: Path, what: str) -> None:
    """Put something other than a file in its place."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "circle":
        path.symlink_to(path.name)
    else:
        path.mkdir()


MODEL_FAULTS = {**FAULTS, "deep model": deep_xgboost}


@pytest.mark.parametrize("suffix", ["ubj", "json", "skops", "onnx"])
@pytest.mark.parametrize("fault", [*MODEL_FAULTS, "pipe", "device", "folder"])
def test_a_damaged_model_of_a_pipeline_is_named(tmp_path: Path, suffix: str, fault: str) -> None:
    """A model file of any form that is something else is refused with its name; a crash would end the process."""
    path = tmp_path / f"bad.{suffix}"
    put(path, fault) if fault in ("pipe", "device", "folder") else path.write_bytes(MODEL_FAULTS[fault]())
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("MODEL", f"file: {path.name}"))
    done = call(["profile", tmp_path / "p.yaml", "--run", tmp_path / "run"])
    assert done.code == 2, done.err
    assert path.name in done.err
    assert "Traceback" not in done.err


TRACE_FAULTS = ("garbage", "deep object", "deep list", "objects", "bomb", "lying header", "pipe", "device", "folder")


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "json", "jsonl", "log", "csv.gz"])
@pytest.mark.parametrize("fault", TRACE_FAULTS)
@pytest.mark.timed
def test_a_damaged_trace_is_named(tmp_path: Path, suffix: str, fault: str) -> None:
    """A trace of any form that is something else is refused with its name."""
    from unfoldkit.arrivals.traces import read_trace

    path = tmp_path / f"bad.{suffix}"
    put(path, fault) if fault in ("pipe", "device", "folder") else path.write_bytes(FAULTS[fault]())
    began = time.process_time()
    with pytest.raises(UnfoldError, match=r"bad\.") as error:
        read_trace(path)
    assert error.value.code == 2
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("name", "begin"),
    [("a.json.gz", b"[1,"), ("a.csv.gz", b"time,n\n1,2\n"), ("a.log.gz", b"2026-01-01T00:00:00Z a\n")],
)
def test_a_gzip_bomb_is_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, begin: bytes) -> None:
    """A document or a line that expands beyond the bound of archives is refused before it fills the memory."""
    from unfoldkit.arrivals.traces import read_trace

    monkeypatch.setattr("unfoldkit.safe_io.archives.MAX_ARCHIVE_BYTES", 1 << 20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(begin + b" " * (30 << 20)))
    with pytest.raises(UnfoldError, match=rf"{name}: .*expands to more than 1 MiB"):
        read_trace(path)
    # what is read line by line may be as long as it is
    (tmp_path / "b.log.gz").write_bytes(gzip.compress(b"2026-01-01T00:00:01Z b\n" * 100_000))
    assert len(read_trace(tmp_path / "b.log.gz")) == 100_000


@pytest.mark.parametrize("text", ['{"a": DIGITS}', '{"a": [{"b": -DIGITS}]}'])
def test_a_number_beyond_any_float_is_no_json(text: str) -> None:
    """Its file is named where it is read, and not where it is first used; text and fractions may be as long."""
    digits = "9" * 309
    for data in (text.replace("DIGITS", digits), text.replace("DIGITS", digits).encode()):
        with pytest.raises(UnfoldError, match=r"a\.json: not JSON: an integer has 3[01][09] digits"):
            parse_object(data, "a.json")
    assert parse_object(f'{{"a": "{digits}", "b": 0.{digits}}}') == {"a": digits, "b": 1.0}


@pytest.mark.parametrize("text", ["[1, DIGITS]", '{"data": {"result": [{"values": [[DIGITS, "2"]]}]}}'])
def test_a_document_with_an_endless_integer_is_named(tmp_path: Path, text: str) -> None:
    """Python converts no integer of more than 4,300 digits; a trace with one is refused with its name."""
    from unfoldkit.arrivals.traces import read_trace

    path = tmp_path / "a.json"
    path.write_text(text.replace("DIGITS", "9" * 5000))
    with pytest.raises(UnfoldError, match=r"a\.json: cannot read the trace: .*5000 digits"):
        read_trace(path)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.xz"])
def test_an_archive_of_records_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Files of patients that expand beyond the bound together are refused."""
    from unfold_cascade.temporal.data.readers import _read_archive

    monkeypatch.setattr("unfoldkit.safe_io.archives.MAX_ARCHIVE_BYTES", 1 << 20)
    path, content = tmp_path / f"a.{suffix}", b" " * 600_000
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("a.psv", "b.psv"):
                archive.writestr(name, content)
    else:
        _write_tar(path, [(name, content, tarfile.REGTYPE) for name in ("a.psv", "b.psv")])
    with pytest.raises(UnfoldError, match="the archive expands to more than 1 MiB"):
        list(_read_archive(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_of_records_holds_files_only(tmp_path: Path, kind: bytes) -> None:
    """A link or a device among the files of patients is refused by its name; nothing outside is read."""
    from unfold_cascade.temporal.data.readers import _read_archive

    path = tmp_path / "a.tar.gz"
    _write_tar(path, [("../a.psv", b"HR\n1\n", tarfile.REGTYPE), ("b.psv", b"", kind)])
    files = _read_archive(path)
    assert next(files) == ("a.psv", b"HR\n1\n")
    with pytest.raises(UnfoldError, match=r"b\.psv is a link or a device"):
        next(files)


def _write_tar(path: Path, members: list[tuple[str, bytes, bytes]]) -> None:
    """Write an archive, compressed as its name states; links lead to a file outside."""
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:  # type: ignore[call-overload]
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("fault", [*FAULTS, "pipe", "device", "folder"])
def test_a_damaged_ledger_is_named(tmp_path: Path, fault: str) -> None:
    """A database that is none is refused with its name."""
    from unfold_tuning.trial import ledger
    from unfoldkit.serving.state.store import open_store

    path = tmp_path / "bad.db"
    put(path, fault) if fault in ("pipe", "device", "folder") else path.write_bytes(FAULTS[fault]() or b"x" * 4096)
    with pytest.raises(UnfoldError, match=r"bad\.db") as error, ledger.open_ledger(path, None, "a"):  # type: ignore[arg-type]
        pass
    assert error.value.code == 2
    with pytest.raises(UnfoldError, match=r"bad\.db") as error:
        open_store(path, made_from="a")
    assert error.value.code == 2


def test_a_database_cut_short_is_named(tmp_path: Path) -> None:
    """Half of a database, and one with other tables, are the caller's fault."""
    from unfold_tuning.trial import ledger

    path = tmp_path / "bad.db"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE facts (other TEXT)")
    base.close()
    with pytest.raises(UnfoldError, match=r"bad\.db") as error, ledger.open_ledger(path, None, "a"):  # type: ignore[arg-type]
        pass
    assert error.value.code == 2


@pytest.mark.parametrize("fault", ["garbage", "empty", "text", "deep object", "list", "half"])
def test_damaged_tensors_are_named(tmp_path: Path, fault: str) -> None:
    """Weights that are not safetensors are refused with their name."""
    pytest.importorskip("torch")
    from unfold_supernet.family import checkpoint
    from unfold_supernet.family.artifacts import SPACE_FILE
    from unfoldkit.run_directory import RunDir

    directory = RunDir(tmp_path)
    for name in (SPACE_FILE, checkpoint.WEIGHTS_FILE, checkpoint.NORMS_FILE):
        directory.write(name, FAULTS[fault]() if fault != "half" else b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UnfoldError) as error:
        checkpoint.read_supernet(directory)
    assert error.value.code == 2
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UnfoldError, match="safetensors") as error:
        checkpoint._read_tensors(directory, checkpoint.WEIGHTS_FILE)
    assert error.value.code == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "[" * 50_000,
        "{a: " * 5_000,
        "- " * 50_000,
    ],
    ids=["laughs", "lists", "mappings", "dashes"],
)
@pytest.mark.timed
def test_a_hostile_spec_is_refused(tmp_path: Path, text: str) -> None:
    """Anchors that multiply and deep nesting are refused with the file's name."""
    (tmp_path / "bad.yaml").write_text(text)
    began = time.process_time()
    done = call(["check", tmp_path / "bad.yaml"])
    assert done.code == 2
    assert "bad.yaml" in done.err + done.out
    assert time.process_time() - began < 2


EVIL = "\x1b[31m\x1b]0;title\x07 a\u202eb \u2066c\u2069 \x9bd \x08"


@pytest.mark.parametrize("form", ["text", "json", "md", "html", "github", "junit"])
def test_reports_show_no_control_characters_of_files(trained: Path, tmp_path: Path, form: str) -> None:
    """Whatever a stored report contains, no escape, control or bidirectional character is printed."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    data = json.loads((run / "report.json").read_text())

    def soiled(value: object) -> object:
        if isinstance(value, dict):
            return {
                key: soiled(item) if key not in ("verdict", "schema", "style", "kind", "verb", "type", "tone") else item
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [soiled(item) for item in value]
        return value + EVIL if isinstance(value, str) else value

    replace_in_run(run, "report.json", json.dumps(soiled(data)).encode())
    for words in (["report", run, "--format", form], ["report", run, "--format", form, "--out", tmp_path / "out"]):
        done = call(words)
        written = (tmp_path / "out").read_text() if "--out" in words else ""
        assert done.code in (0, 1), done.err
        for letter in "\x1b\x07\x08\x9b\u202e\u2066\u2069":
            assert letter not in done.out + done.err + written, (form, hex(ord(letter)))


def test_the_bounds_hold(tmp_path: Path) -> None:
    """What is within the bounds is read, what is above is refused, by each of the shared readers."""
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 90 + b"]" * 90)
    assert files.parse_json(files.read_bytes(path)) is not None
    for data in (b"[" * 102 + b"]" * 102, DEEP):
        with pytest.raises(UnfoldError, match=r"a\.json: JSON nested deeper than 100"):
            files.parse_json(data, "a.json")
    with pytest.raises(UnfoldError, match="larger than"):
        files.read_bytes(path, max_bytes=10)
    np.testing.assert_array_equal(arrays.read_npz(npz(x=np.arange(4)))["x"], np.arange(4))
    with pytest.raises(UnfoldError, match=r"a\.npz: the archive expands to more than 1,024 MiB"):
        arrays.read_npz(bomb(), "a.npz")
    with pytest.raises(UnfoldError, match=r"a\.npz: not an array: its size does not match"):
        arrays.read_npz(lying_header(), "a.npz")
    assert archives.gunzip(b"plain") == b"plain"
    assert hashlib.sha256(DEEP).digest()


def zstandard_archive(content: bytes, *, size: int | None = None, checksum: int | None = None) -> bytes:
    """Make an archive whose one member, ``a.json``, is compressed by Zstandard; its size and checksum may lie."""
    pyarrow = pytest.importorskip("pyarrow")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.json", pyarrow.Codec("zstd").compress(content, asbytes=True))
    data = bytearray(stream.getvalue())
    central = data.index(b"PK\x01\x02")
    for start in (0, central + 2):
        struct.pack_into("<H", data, start + 8, archives.ZSTANDARD)
        struct.pack_into("<I", data, start + 14, zlib.crc32(content) if checksum is None else checksum)
        struct.pack_into("<I", data, start + 22, len(content) if size is None else size)
    return bytes(data)


def test_members_in_zstandard_are_read() -> None:
    """Python's zipfile reads them from 3.14 on only; evaluation logs of Inspect hold them."""
    content = b'{"a": 1}' * 1000
    archive = archives.read_archive(zstandard_archive(content))
    assert archives.read_member(archive, "a.json") == content


@pytest.mark.parametrize("lie", [{"size": 1000}, {"size": 1 << 20}, {"checksum": 1}])
def test_lying_members_in_zstandard_are_refused(lie: dict[str, int]) -> None:
    """A member expands to the size that its header states, which is bounded, or is damaged."""
    archive = archives.read_archive(zstandard_archive(b"abc" * 1000, **lie))
    with pytest.raises(UnfoldError, match="the archive is damaged"):
        archives.read_member(archive, "a.json")
