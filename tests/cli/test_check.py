"""check, plan --check, schema and init."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from jsonschema import Draft7Validator

from tests.support import ECHO, HELLO, ROOT, Unfold
from unfoldkit.cli.plan_check import compare_plans
from unfoldkit.registry import load_registry
from unfoldkit.report import Report, Verdict
from unfoldkit.spec.yaml_reader import parse

KINDS = sorted(load_registry().kinds)
SPECS = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "plugins").glob("*/unfold_*/examples/*.yaml")])
BAD = ECHO + "repeat: 0\n"


def test_good_files_are_said_to_be_valid(unfold: Unfold, spec: Path) -> None:
    """Valid files print nothing on stdout, a word on stderr, and exit with 0."""
    assert unfold("check", "a.yaml") == unfold("check", "a.yaml")
    one, two = unfold("check", "a.yaml"), unfold("check", "a.yaml", HELLO)
    assert (one.code, one.out, one.err) == (0, "", "a.yaml is valid\n")
    assert (two.code, two.out, two.err) == (0, "", "2 valid\n")


def test_all_mistakes_of_all_files_are_reported(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """Each mistake of each file is a line, in the order of the files; the count goes to stderr; the code is 2."""
    (tmp_path / "bad.yaml").write_text(BAD + "x: 1\n", encoding="utf-8")
    outcome = unfold("check", "bad.yaml", "a.yaml", "nonesuch.yaml", "-", stdin="")
    assert outcome.code == 2
    assert [line.split(": ")[0] for line in outcome.out.splitlines()] == [
        "bad.yaml:5:9", "bad.yaml:6:1", "nonesuch.yaml", "<stdin>:1:1",
    ]  # fmt: skip
    assert outcome.err == "4 mistakes in 3 of 4 files\n"


def test_an_edited_plan_is_compared_with_its_spec(unfold: Unfold, tmp_path: Path) -> None:
    """``check``, ``serve`` and its dry run refuse a plan that serves nothing, at its line."""
    spec = (ROOT / "plugins/pipeline/unfold_pipeline/examples/image-processing.yaml").read_text("utf-8")
    config = "{hardware: cpu, batch: 1, replicas: 0}"
    text = "schema: unfoldkit.plan/1\nspec:\n" + "".join(f"  {line}\n" for line in spec.splitlines())
    text += f"decision:\n  stages:\n    preprocess: {config}\n    classify: {config.replace('0}', '1}')}\n"
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    place = f"plan.yaml:{len(text.splitlines()) - 1}:43: decision.stages.preprocess.replicas: "
    for command in (("check",), ("serve",), ("serve", "--dry-run")):
        outcome = unfold(*command, "plan.yaml")
        assert (outcome.code, place in outcome.out + outcome.err) == (2, True)
    (tmp_path / "plan.yaml").write_text(text.replace("replicas: 0", "replicas: 2"), encoding="utf-8")
    assert unfold("check", "plan.yaml").code == 0


@pytest.mark.parametrize("schema", ["unfoldkit.plan/0", "unfoldkit.plan/2"])
def test_a_plan_of_another_version_is_refused_by_its_schema(unfold: Unfold, tmp_path: Path, schema: str) -> None:
    """The only mistake of a plan with another schema is its schema, whatever keys it has."""
    (tmp_path / "plan.yaml").write_text(f"schema: {schema}\nkind: echo\nspec: {{}}\ndecision: {{}}\n", encoding="utf-8")
    for command in (("check",), ("plan", "--dry-run"), ("plan", "--check")):
        outcome = unfold(*command, "plan.yaml")
        place = f'plan.yaml:1:9: schema: this version cannot read a plan of schema "{schema}"'
        assert (outcome.code, place in outcome.out + outcome.err) == (2, True)


def test_settings_are_checked_in_every_file(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """Check takes --set as the verbs do, so that what a CI job plans with it can be checked with it."""
    other = tmp_path / "b.yaml"
    other.write_text(ECHO, encoding="utf-8")
    assert unfold("check", spec, other, "--set", "repeat=3").code == 0
    outcome = unfold("check", spec, other, "--set", "repeat=0")
    assert outcome.code == 2
    assert outcome.out.count("--set repeat=0: repeat: ") == 2


def test_what_specs_name_is_opened_on_demand(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """With ``--data`` a missing file is a mistake at the line that names it; a kind that opens nothing reports so."""
    text = (ROOT / "plugins/pipeline/unfold_pipeline/examples/image-processing.yaml").read_text("utf-8")
    line = next(number for number, item in enumerate(text.splitlines(), 1) if item.startswith("arrivals:"))
    lines = [item if not item.startswith("arrivals:") else "arrivals: {trace: gone.csv}" for item in text.splitlines()]
    (tmp_path / "p.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert unfold("check", "p.yaml").code == 0
    found = unfold("check", "p.yaml", "--data")
    assert (found.code, found.err) == (2, "1 mistake in p.yaml\n")
    assert found.out.startswith(f"p.yaml:{line}:12: arrivals.trace: no such file or folder: 'gone.csv'")
    assert (
        unfold("check", "a.yaml", "--data").err
        == "a.yaml: checked without its data: kind echo has no check of files\na.yaml is valid\n"
    )


def test_mistakes_have_formats(unfold: Unfold, tmp_path: Path) -> None:
    """JSON, annotations and JUnit hold the same mistake; another format is refused."""
    (tmp_path / "bad.yaml").write_text(BAD, encoding="utf-8")
    found = json.loads(unfold("check", "bad.yaml", "--format", "json").out)
    assert found == [
        {
            "message": "must be at least 1, got 0",
            "file": "bad.yaml",
            "line": 5,
            "column": 9,
            "key": "repeat",
            "hint": "",
        }
    ]
    (tmp_path / "evil.yaml").write_text(ECHO + '"\\x9b\\u202e": 1\n', encoding="utf-8")
    evil = unfold("check", "evil.yaml", "--format", "json").out
    assert (json.loads(evil)[0]["key"], evil.replace("\n", "").isprintable()) == ("\x9b\u202e", True)
    line = unfold("check", "bad.yaml", "--format", "github").out
    assert line == "::error file=bad.yaml,line=5,col=9::repeat: must be at least 1, got 0\n"
    assert ET.fromstring(unfold("check", "bad.yaml", "--format", "junit").out)[0].get("failures") == "1"  # noqa: S314
    assert unfold("check", "bad.yaml", "--format", "html").code == 2


def test_check_writes_nothing(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """Checking leaves the folder as it was."""
    unfold("check", spec)
    assert sorted(tmp_path.iterdir()) == [spec]


def test_a_plan_that_still_holds_is_fine(unfold: Unfold, spec: Path) -> None:
    """Plan --check exits with 0 and reports it when the plan comes out as it was committed."""
    assert unfold("plan", spec, "-o", "plan.yaml").code == 0
    outcome = unfold("plan", spec, "--check", "plan.yaml")
    assert outcome.code == 0
    assert "the plan is the same as in plan.yaml" in outcome.out


@pytest.mark.parametrize(("verdict", "expected"), [(Verdict.YES, ["check"]), (Verdict.NO, [])])
def test_an_infeasible_plan_is_not_reported_to_hold(verdict: Verdict, expected: list[str]) -> None:
    """Where the committed plan itself was judged, it is reported to hold only if it is feasible."""
    baseline = {"decision": {"replicas": 3}}
    report = Report("echo", "plan", "mine", verdict, "judged on other data", decision=baseline["decision"])
    assert [name for name, _ in compare_plans(report, baseline, "plan.yaml").lines] == expected


def test_an_equal_plan_is_reported_to_hold_whatever_its_verdict() -> None:
    """A plan that comes out as it was committed is reported to hold, even with the verdict no."""
    report = Report("echo", "plan", "mine", Verdict.NO, "planned again", decision={"replicas": 3})
    lines = dict(compare_plans(report, {"decision": {"replicas": 3}}, "plan.yaml").lines)
    assert lines["check"] == "the plan is the same as in plan.yaml"


def test_a_plan_that_drifted_is_a_no(unfold: Unfold, spec: Path) -> None:
    """Plan --check exits with 1 on drift, with a table of what changed and the reason."""
    assert unfold("plan", spec, "-o", "plan.yaml").code == 0
    outcome = unfold("plan", spec, "--set", "repeat=3", "--check", "plan.yaml", "--format", "json")
    assert outcome.code == 1
    data = json.loads(outcome.out)
    assert data["headline"] == "the plan drifted from plan.yaml in 2 places"
    drift = next(table for table in data["tables"] if table["name"] == "drift")
    assert drift["rows"] == [["times", 2, 3], ["price", 0.02, 0.03]]
    assert ["drift", "changed since: spec_sha256"] in data["lines"]
    text = unfold("plan", spec, "--set", "repeat=3", "--check", "plan.yaml")
    assert "in plan.yaml" in text.out
    assert unfold("plan", spec, "--set", "repeat=3", "--check", "plan.yaml", "--exit-zero").code == 0


def test_a_check_leaves_the_run_as_it_was(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """Whatever the result of a check, spec, report and plan of the run stay those of the plan that was made."""
    unfold("plan", spec, "--out", "plan.yaml")
    files = [path for path in tmp_path.rglob("runs/*/*") if path.suffix in (".yaml", ".json")]
    before = {path: path.read_bytes() for path in files if path.name != "manifest.json"}
    assert {path.name for path in before} >= {"spec.yaml", "report.json", "plan.yaml"}
    assert unfold("plan", spec, "--set", "repeat=3", "--check", "plan.yaml").code == 1
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.rglob("check.json"))) == 1


def test_a_plan_is_checked_by_its_own_spec(unfold: Unfold, spec: Path) -> None:
    """A committed plan can be given as the spec: it holds the spec that it was made from."""
    assert unfold("plan", spec, "-o", "plan.yaml").code == 0
    assert unfold("plan", "plan.yaml", "--check", "plan.yaml").code == 0
    assert unfold("plan", "plan.yaml", "--check", "plan.yaml", "--set", "voices[0].price=$0.2").code == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_valid_and_alone(unfold: Unfold, tmp_path: Path, kind: str) -> None:
    """Schema KIND prints a draft-07 schema; --out writes the same."""
    data = json.loads(unfold("schema", kind).out)
    Draft7Validator.check_schema(data)
    assert unfold("schema", kind, "--out", "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == data


@pytest.mark.slow
@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(ROOT)))
def test_specs_of_the_house_are_valid_in_editors_too(unfold: Unfold, path: Path) -> None:
    """Every config and example passes check, the schema of its kind, and the schema of all kinds."""
    assert unfold("check", path).code == 0
    data = parse(path.read_text(encoding="utf-8")).data
    for words in (["schema", data["kind"]], ["schema"]):
        schema = json.loads(unfold(*words).out)
        Draft7Validator.check_schema(schema)
        errors = [f"{list(error.path)}: {error.message}" for error in Draft7Validator(schema).iter_errors(data)]
        assert not errors


def test_the_schema_refuses_what_check_refuses(unfold: Unfold) -> None:
    """Unknown keys, wrong types, missing units and missing keys are mistakes for an editor too."""
    validator = Draft7Validator(json.loads(unfold("schema", "echo").out))
    good = parse(ECHO).data
    assert validator.is_valid(good)
    for wrong in (
        {"x": 1},
        {"repeat": "3"},
        {"repeat": 0},
        {"pause": 5},
        {"budget": "5"},
        {"version": 2},
        {"name": "a b"},
    ):
        assert not validator.is_valid({**good, **wrong}), wrong
    assert not validator.is_valid({key: value for key, value in good.items() if key != "message"})


@pytest.mark.parametrize("kind", KINDS)
def test_what_init_writes_is_valid(unfold: Unfold, tmp_path: Path, kind: str) -> None:
    """Init prints a commented spec that check accepts; --out writes it once and never over a file."""
    printed = unfold("init", kind)
    assert printed.code == 0
    assert printed.out.startswith(f"# yaml-language-server: $schema={kind}.schema.json\n")
    assert unfold("check", "-", stdin=printed.out).code == 0
    written = unfold("init", kind, "--out", "new.yaml")
    assert (written.code, written.out, written.err) == (0, "", "wrote new.yaml\nnext: unfold check new.yaml\n")
    assert (tmp_path / "new.yaml").read_text(encoding="utf-8") == printed.out
    again = unfold("init", kind, "--out", "new.yaml")
    assert again.code == 2
    assert "the file exists; nothing was changed" in again.err


@pytest.mark.parametrize("words", [["schema", "ecko"], ["init", "ecko"]])
def test_an_unknown_kind_is_reported(unfold: Unfold, words: list[str]) -> None:
    """A kind that is not there is refused with the nearest."""
    outcome = unfold(*words)
    assert (outcome.code, outcome.err) == (2, 'no such kind: "ecko" (did you mean "echo"?)\n')


def test_who_names_no_kind_hears_them_all(unfold: Unfold) -> None:
    """Init without a kind is a mistake of use that names every kind there is."""
    outcome = unfold("init")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"which kind? (one of: {', '.join(sorted(KINDS))})\n"
