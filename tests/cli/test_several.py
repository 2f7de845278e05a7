"""`unfold plan` of several specs in one command."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support import ECHO, Unfold


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Return a spec with a mistake in its fifth line."""
    path = tmp_path / "bad.yaml"
    path.write_text(ECHO + "repeat: 0\n", encoding="utf-8")
    return path


def test_each_spec_is_planned_whatever_became_of_the_one_before(
    unfold: Unfold, dear: Path, bad: Path, spec: Path
) -> None:
    """A no and a mistake keep no later spec from its report; mistakes go to stderr, and the worst code is the end."""
    outcome = unfold("plan", "dear.yaml", "bad.yaml", "a.yaml")
    assert outcome.code == 2
    assert [line for line in outcome.out.splitlines() if line.startswith(("yes", "no"))] == [
        "no · $0.03 is over the budget of $0.01; it allows 1 times",
        "yes · $0.02 of $1.00",
    ]
    assert outcome.err.splitlines() == [
        "bad.yaml:5:9: repeat: must be at least 1, got 0",
        "a.yaml: overwrites the run of dear.yaml in runs/a (another name keeps both)",
        "3 specs, 1 yes · no: dear.yaml · failed: bad.yaml",
    ]


@pytest.mark.parametrize(
    ("words", "over"),
    [
        (("a.yaml", "dear.yaml", "a.yaml"), ["dear.yaml", "a.yaml"]),
        (("a.yaml", "./a.yaml"), []),
        (("a.yaml", "dear.yaml", "--dry-run"), []),
    ],
)
def test_a_run_is_written_over_with_a_word(
    unfold: Unfold, spec: Path, dear: Path, words: tuple[str, ...], over: list[str]
) -> None:
    """Two specs of one name, which share a run, are reported; one spec twice, or nothing written, is not."""
    lines = unfold("plan", *words).err.splitlines()[:-1]
    assert [line.partition(": overwrites the run of ")[0] for line in lines] == over


@pytest.mark.parametrize(("names", "code"), [("a a", 0), ("a dear", 1), ("dear a", 1), ("bad dear", 2)])
def test_the_exit_code_is_the_worst(unfold: Unfold, spec: Path, dear: Path, bad: Path, names: str, code: int) -> None:
    """The code does not depend on the order of the specs."""
    assert unfold("plan", *(f"{name}.yaml" for name in names.split())).code == code


def test_annotations_of_all(unfold: Unfold, spec: Path, dear: Path, bad: Path) -> None:
    """With --format github every spec leaves annotations: verdict, missed target, mistake at its line."""
    outcome = unfold("plan", "a.yaml", "dear.yaml", "bad.yaml", "--format", "github")
    assert (outcome.code, outcome.out.splitlines()) == (
        2,
        [
            "::notice title=unfold plan a::yes · $0.02 of $1.00",
            "::error title=unfold plan a::no · $0.03 is over the budget of $0.01; it allows 1 times",
            "::error title=price of a::$0.0300, target ≤ 0.01",
            "::error file=bad.yaml,line=5,col=9::repeat: must be at least 1, got 0",
        ],
    )


def test_a_mistake_in_one_spec_is_annotated_too(unfold: Unfold, bad: Path) -> None:
    """One bad spec is reported as several would be: by an annotation, and with 2."""
    outcome = unfold("plan", bad, "--format", "github")
    assert (outcome.code, outcome.err) == (2, "")
    assert outcome.out == f"::error file={bad},line=5,col=9::repeat: must be at least 1, got 0\n"


def test_one_document_of_all(unfold: Unfold, spec: Path, dear: Path, bad: Path, tmp_path: Path) -> None:
    """JSON is one list, JUnit one file with a suite for each spec; a mistake is a failed case there."""
    listed = json.loads(unfold("plan", "a.yaml", "dear.yaml", "--format", "json").out)
    assert [item["verdict"] for item in listed] == ["yes", "no"]
    outcome = unfold("plan", "a.yaml", "dear.yaml", "bad.yaml", "--out", "result.xml")
    assert (outcome.code, outcome.out) == (2, "")
    suites = ET.parse(tmp_path / "result.xml").getroot()  # noqa: S314 - written above
    assert [suite.get("failures") for suite in suites] == ["0", "2", "1"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--run", "x"], "--run x is for one spec"),
        (["--check", "p.yaml"], "--check p.yaml is for one spec"),
        (["--format", "html"], "--format html takes one spec (for several: text, md, github, json, junit)"),
        (["--out", "x.png"], "--format png takes one spec"),
        (["--out", "dear.yaml", "--format", "md"], "--out would overwrite an input of the report"),
    ],
)
def test_what_is_for_one_spec_is_refused(
    unfold: Unfold, spec: Path, dear: Path, words: list[str], expected: str, tmp_path: Path
) -> None:
    """What names one run, one plan or one picture is refused with several specs, before anything is planned."""
    outcome = unfold("plan", spec, dear, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert expected in outcome.err
    assert not (tmp_path / "runs").exists()
