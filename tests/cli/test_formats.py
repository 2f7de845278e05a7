"""--format and --out: one report, many readers."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support import Process, Unfold
from unfoldkit.spec.yaml_reader import parse

SIGNS = {
    "text": b"a \xc2\xb7 echo plan",
    "json": b"{",
    "md": b"## a",
    "html": b"<!doctype html>",
    "github": b"::notice ",
    "junit": b"<?xml",
    "png": b"\x89PNG",
    "plan": b"schema: unfoldkit.plan/1",
}
ENDINGS = {
    "txt": "text",
    "json": "json",
    "md": "md",
    "html": "html",
    "htm": "html",
    "xml": "junit",
    "png": "png",
    "yaml": "plan",
    "yml": "plan",
}


@pytest.mark.parametrize("name", SIGNS)
def test_every_format_goes_to_stdout(unfold: Unfold, spec: Path, name: str) -> None:
    """--format picks what stdout holds, and stdout holds nothing else."""
    outcome = unfold("plan", spec, "--format", name)
    assert outcome.code == 0
    assert outcome.raw.startswith(SIGNS[name])
    assert outcome.err == ""


@pytest.mark.parametrize(("ending", "name"), ENDINGS.items())
def test_an_ending_picks_the_format(unfold: Unfold, spec: Path, tmp_path: Path, ending: str, name: str) -> None:
    """--out writes the format of its ending to the file; stdout stays empty and stderr names the file."""
    outcome = unfold("plan", spec, "--out", f"deep/er/out.{ending}")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"yes · $0.02 of $1.00\nwrote deep/er/out.{ending}\n"
    assert (tmp_path / f"deep/er/out.{ending}").read_bytes().startswith(SIGNS[name])


def test_an_ending_in_capitals_is_one(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """The letters of an ending may be large, as Windows writes them."""
    assert unfold("plan", spec, "--out", "OUT.JSON").code == 0
    assert (tmp_path / "OUT.JSON").read_bytes().startswith(SIGNS["json"])


def test_formats_can_be_parsed(unfold: Unfold, spec: Path) -> None:
    """JSON is JSON, JUnit is XML, a plan is YAML that check accepts."""
    assert json.loads(unfold("plan", spec, "--format", "json").out)["verdict"] == "yes"
    assert ET.fromstring(unfold("plan", spec, "--format", "junit").out).tag == "testsuites"  # noqa: S314 - made here
    assert parse(unfold("plan", spec, "--format", "plan").out).data["decision"]["times"] == 2
    assert unfold("plan", spec, "-o", "plan.yaml").code == 0
    assert unfold("check", "plan.yaml").code == 0


def test_no_answers_are_errors_on_github(unfold: Unfold, dear: Path) -> None:
    """A no becomes an error annotation and a failed case, and still exits with 1."""
    outcome = unfold("plan", dear, "--format", "github")
    assert outcome.code == 1
    assert outcome.out.startswith("::error title=unfold plan a::no · ")
    suite = ET.fromstring(unfold("plan", dear, "--format", "junit").out)[0]  # noqa: S314 - made here
    assert suite.get("failures") == "2"


def test_a_mistake_replaces_the_result_of_the_run_before(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A JUnit file that passed reports a failure once the spec is broken, and stderr still has the mistake."""
    assert unfold("plan", spec, "--out", "result.xml").code == 0
    outcome = unfold("plan", spec, "--set", "voice=unknown", "--out", "result.xml")
    assert (outcome.code, outcome.out) == (2, "")
    assert "voice" in outcome.err
    suite = ET.fromstring((tmp_path / "result.xml").read_text())[0]  # noqa: S314 - made here
    assert suite.get("failures") == "1"


@pytest.mark.parametrize(
    ("env", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
    ],
)
def test_colour_is_for_terminals_and_for_who_asks(
    unfold: Unfold, spec: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], *, coloured: bool
) -> None:
    """In a pipe there is no colour unless FORCE_COLOR is set, and never with NO_COLOR; a file is never coloured."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    outcome = unfold("plan", spec)
    assert outcome.code == 0
    assert ("\x1b[" in outcome.out) is coloured
    unfold("plan", spec, "--out", "out.txt")
    assert "\x1b[" not in (spec.parent / "out.txt").read_text(encoding="utf-8")


def test_a_terminal_without_unicode_is_served(unfold_process: Process, spec: Path) -> None:
    """On a stream that cannot write a letter its escape is written, and the report is not lost."""
    done = unfold_process("plan", spec, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "yes \\xb7 $0.02 of $1.00" in done.stdout


def test_a_report_is_rendered_again(unfold: Unfold, spec: Path, dear: Path) -> None:
    """``report`` renders the report of a run in any format, with the exit code of its verdict."""
    first = unfold("plan", spec)
    again = unfold("report", "runs/a")
    assert (again.code, again.out) == (0, first.out)
    assert unfold("report", "runs/a", "--format", "html").out.startswith("<!doctype html>")
    assert unfold("plan", dear).code == 1
    assert unfold("report", "runs/a").code == 1
    assert unfold("report", "runs/a", "--exit-zero").code == 0


def test_two_runs_are_compared(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """``report A B`` shows what differs, of runs and of plans; equal ones have exit code 0."""
    unfold("plan", spec, "--run", "runs/one")
    unfold("plan", spec, "--run", "runs/two", "--set", "repeat=5")
    found = unfold("report", "runs/one", "runs/two")
    assert found.code == 1
    assert "they differ in 1 metric, 2 places of the plan, 1 key of the spec" in found.out
    assert unfold("report", "runs/one/plan.yaml", "runs/two").code == 1
    assert unfold("report", "runs/one", "runs/two", "--exit-zero").code == 0
    page = unfold("report", "runs/one", "runs/two", "--format", "html").out
    assert "runs/one: price" in page
    assert unfold("report", "runs/one", "runs/one").code == 0
    assert unfold("report", "runs/one", "runs/none").err == (
        "runs/none: no such run (a run is a folder such as runs/digits)\n"
    )


def test_a_page_opens_where_there_is_a_display(
    unfold: Unfold, spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``--open`` writes the page beside the run and opens it; without a display it writes nothing and has a hint."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) is None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    unfold("plan", spec)
    if sys.platform == "linux":
        refused = unfold("report", "runs/a", "--open")
        assert (refused.code, refused.out) == (2, "")
        assert "there is no display" in refused.err
        assert "--out report.html" in refused.err
        assert not (tmp_path / "runs/a/report.html").exists()
    monkeypatch.setenv("DISPLAY", ":0")
    assert unfold("report", "runs/a", "--open").code == 0
    assert opened == [(spec.parent / "runs/a/report.html").resolve().as_uri()]
    assert unfold("report", "runs/a", "--open", "--format", "json").code == 2
    assert unfold("report", "runs/a", "--open", "--out", "a.json").code == 2


def test_a_folder_of_runs_names_them(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """``report`` of a folder without a run reports it, and lists the runs inside."""
    unfold("plan", spec)
    assert unfold("report", "runs").err == "runs: the folder holds no run (runs in it: a)\n"
    (tmp_path / "empty").mkdir()
    assert "the folder holds no run (a run is a folder such as runs/digits)" in unfold("report", "empty").err


@pytest.mark.parametrize(("name", "verb"), [("report.json", "report"), ("spec.yaml", "plan"), ("origin.json", "train")])
def test_a_changed_run_is_refused(unfold: Unfold, spec: Path, tmp_path: Path, name: str, verb: str) -> None:
    """A file of a run that was changed is refused by its name, with exit code 2."""
    assert unfold("plan", spec).code == 0
    path = tmp_path / "runs" / "a" / name
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    outcome = unfold(verb, "runs/a")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"runs/a/{name}: the file was changed after it was written" in outcome.err


def test_a_changed_artifact_is_refused(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A changed model, here a said text, is never used: the verb that reads it is refused by its name."""
    assert unfold("train", spec, "--jobs", "1").code == 0
    (tmp_path / "runs" / "a" / "said" / "0.txt").write_text("bye", encoding="utf-8")
    outcome = unfold("train", spec)
    assert outcome.code == 2
    assert "runs/a/said/0.txt: the file was changed" in outcome.err


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("plan", "a.yaml"), "a.yaml"),
        (("plan", "a.yaml"), "./link.yaml"),
        (("profile", "a.yaml", "--format", "md"), "a.yaml"),
        (("plan", "plan.yaml", "--format", "json"), "plan.yaml"),
        (("report", "runs/a"), "runs/a/report.json"),
    ],
)
def test_no_report_is_written_over_what_it_is_made_from(
    unfold: Unfold, spec: Path, tmp_path: Path, words: tuple[str, ...], out: str
) -> None:
    """Where --out names the spec, or the run's own report, by whatever name, it is refused and the file stays."""
    (tmp_path / "link.yaml").symlink_to(spec)
    assert unfold("plan", "a.yaml", "--out", "plan.yaml").code == 0
    before = (tmp_path / out).read_bytes()
    outcome = unfold(*words, "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    expected = "--out would overwrite an input of the report (choose another name)"
    assert outcome.err == f"{Path(out)}: {expected}\n"
    assert (tmp_path / out).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("report", "runs/a"), "runs/a/manifest.json"),
        (("report", "runs/a"), "runs/a/spec.yaml"),
        (("plan", "a.yaml", "--run", "runs/b"), "runs/a/plan.yaml"),
        (("plan", "a.yaml", "--run", "runs/b", "--format", "md"), "link/said/0.txt"),
        (("plan", "broken.yaml", "--format", "junit"), "runs/a/report.json"),
        (("schema", "echo"), "runs/a/origin.json"),
    ],
)
def test_no_report_is_written_over_a_file_of_a_run(
    unfold: Unfold, spec: Path, tmp_path: Path, words: tuple[str, ...], out: str
) -> None:
    """Its manifest would no longer match, and the run would be lost."""
    (tmp_path / "broken.yaml").write_text(f"{spec.read_text()}what: 1\n")
    assert unfold("train", "a.yaml").code == 0
    assert unfold("plan", "a.yaml", "--set", "message=longer").code == 0
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "a")
    before = (tmp_path / out).read_bytes()
    outcome = unfold(*words, "--out", out)
    assert outcome.code == 2
    assert "--out would overwrite a file of the run" in outcome.err
    assert (tmp_path / out).read_bytes() == before


def test_mistakes_are_not_written_over_the_spec(unfold: Unfold, spec: Path) -> None:
    """A format that holds mistakes, to the file that has them, would lose the spec."""
    text = f"{spec.read_text()}what: 1\n"
    spec.write_text(text)
    outcome = unfold("plan", "a.yaml", "--format", "junit", "--out", "a.yaml")
    assert outcome.code == 2
    assert "--out would overwrite an input of the report" in outcome.err
    assert spec.read_text() == text


def test_a_manifest_of_another_program_is_no_run(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """Next to one, files are written as anywhere, and a plan may be written where the run keeps the same one."""
    (tmp_path / "manifest.json").write_text('{"files": ["x.md"], "name": "an extension"}')
    (tmp_path / "x.md").write_text("old")
    assert unfold("plan", "a.yaml", "--out", "x.md").code == 0
    assert (tmp_path / "x.md").read_text().startswith("## a")
    assert spec.exists()
    for _ in range(2):
        assert unfold("plan", "a.yaml", "--out", "runs/a/plan.yaml").code == 0
    assert unfold("report", "runs/a").code == 0


def test_a_plan_may_take_the_place_of_the_one_it_is_made_from(unfold: Unfold, spec: Path) -> None:
    """A committed plan is replanned in its folder, which lists its inputs again."""
    assert unfold("plan", "a.yaml", "--out", "plan.yaml").code == 0
    assert unfold("plan", "plan.yaml", "--set", "message=longer", "--out", "plan.yaml").code == 0
    assert "message: longer" in unfold("plan", "plan.yaml", "--format", "plan").out
