"""profile, train and plan: what they print, write and answer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ECHO, ROOT, Unfold
from unfold_echo import verbs
from unfoldkit.errors import install_command, user_error
from unfoldkit.report import SCHEMA


def test_a_plan_is_a_report_on_stdout(unfold: Unfold, spec: Path) -> None:
    """A feasible plan prints its report on stdout, nothing on stderr, and exits with 0."""
    outcome = unfold("plan", spec)
    assert outcome.code == 0
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0].startswith("a · echo plan")
    assert lines[-2:] == ["yes · $0.02 of $1.00", f"next: unfold train {spec}"]


def test_what_libraries_and_their_processes_print_is_not_in_the_report(
    unfold: Unfold, spec: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes to stderr, also from code in C and from child processes."""

    def print_and_plan(*arguments: Any) -> Any:
        print("a library")
        os.write(1, b"code in C\n")
        subprocess.run(["echo", "a process"], check=True)
        return plan(*arguments)

    plan = verbs.plan
    monkeypatch.setattr(verbs, "plan", print_and_plan)
    outcome = unfold("plan", spec, "--format", "json")
    os.write(1, b"the end\n")
    assert outcome.err == "a library\n"
    assert json.loads(outcome.out)["verb"] == "plan"
    assert capfd.readouterr() == ("the end\n", "code in C\na process\n")


def test_the_next_command_keeps_settings_and_run(unfold: Unfold, spec: Path) -> None:
    """The command after ``next:`` holds the settings and the run of the one before, quoted, so that it can be typed."""
    outcome = unfold("plan", spec, "--set", "message=good day", "--run", "elsewhere")
    assert outcome.out.splitlines()[-1] == f"next: unfold train {spec} --set 'message=good day' --run elsewhere"


def test_a_path_in_another_encoding_costs_no_report(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A spec with a name that is not UTF-8 is planned, its report stored and written, the name escaped."""
    odd = Path(os.fsdecode(b"l\xe4uft.yaml"))
    odd.write_bytes(spec.read_bytes())
    assert unfold("plan", odd).code == 0
    assert unfold("plan", odd, "--out", "report.md").code == 0
    assert "l\\udce4uft.yaml" in unfold("report", "runs/a").out
    stored = json.loads((tmp_path / "runs/a/report.json").read_text(encoding="utf-8"))
    assert os.fsencode(stored["next"]) == b"unfold train 'l\xe4uft.yaml'"


def test_no_is_an_answer(unfold: Unfold, dear: Path) -> None:
    """An infeasible plan exits with 1 and suggests what would do; with --exit-zero it exits with 0."""
    outcome = unfold("plan", dear)
    assert outcome.code == 1
    assert "no · $0.03 is over the budget of $0.01; it allows 1 times" in outcome.out
    assert unfold("plan", dear, "--exit-zero").code == 0


def test_a_budget_allows_as_often_as_it_can_pay(unfold: Unfold, spec: Path) -> None:
    """What a budget allows is not one less where the quotient of two prices is a little below a whole number."""
    words = ("--set", "repeat=4", "--set", "voices=[{name: plain, price: $0.10}]", "--set", "budget=$0.30")
    assert "$0.40 is over the budget of $0.30; it allows 3 times" in unfold("plan", spec, *words).out


def test_every_verb_leaves_its_report_in_the_run(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """profile, train and plan each exit with 0 and leave a report of theirs in runs/NAME, or in --run."""
    for verb in ("profile", "train", "plan"):
        assert unfold(verb, spec, "--jobs", "1").code == 0
        assert json.loads((tmp_path / "runs" / "a" / "report.json").read_text(encoding="utf-8"))["verb"] == verb
    assert unfold("train", spec, "--run", "elsewhere", "--jobs", "1").code == 0
    assert (tmp_path / "elsewhere" / "said" / "1.txt").read_text(encoding="utf-8") == "hi"


def test_a_run_can_be_given_in_the_place_of_a_spec(unfold: Unfold, spec: Path) -> None:
    """The next verb takes the folder that the last one wrote, or the plan in it."""
    assert unfold("plan", spec).code == 0
    assert unfold("train", "runs/a", "--jobs", "1").code == 0
    assert unfold("train", "runs/a/plan.yaml", "--jobs", "1").code == 0


def test_a_run_is_of_one_kind(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A spec of another kind is refused in the folder of a run; its spec, report and plan stay as they were."""
    (tmp_path / "a.tuning.yaml").write_text(unfold("init", "tuning").out.replace("name: small", "name: a"))
    assert unfold("plan", spec).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs/a").iterdir()}
    for command in (("plan", "a.tuning.yaml"), ("plan", "a.tuning.yaml", "--check", "runs/a/plan.yaml")):
        outcome = unfold(*command)
        assert outcome.code == 2
        assert "kind echo; the spec is of kind tuning" in outcome.err or "a plan of kind echo" in outcome.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs/a").iterdir()} == before
    assert unfold("plan", "a.tuning.yaml", "--run", "runs/b", "--exit-zero", "--dry-run").code == 0


@pytest.mark.e2e
def test_a_plan_is_of_the_run_that_it_lies_in(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A verb on the plan or spec of a run goes on in that run, whatever its name; a copy elsewhere is of runs/NAME."""
    assert unfold("plan", spec, "--run", "kept/b").code == 0
    (tmp_path / "copy.yaml").write_bytes((tmp_path / "kept/b/plan.yaml").read_bytes())
    for command in (
        ("train", "kept/b/plan.yaml"),
        ("plan", "--check", "kept/b/plan.yaml"),
        ("plan", "kept/b/spec.yaml"),
    ):
        assert unfold(*command).code == 0
        assert not (tmp_path / "runs").exists()
    assert (tmp_path / "kept/b/said/1.txt").exists()
    assert (tmp_path / "kept/b/check.json").exists()
    assert unfold("plan", "copy.yaml").code == 0
    assert (tmp_path / "runs/a/plan.yaml").exists()


def test_stdin_is_a_spec(unfold: Unfold) -> None:
    """``-`` reads the spec from stdin, and its mistakes are reported at <stdin>."""
    assert unfold("plan", "-", stdin=ECHO).code == 0
    outcome = unfold("plan", "-", stdin=ECHO + "repeat: 0\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "<stdin>:5:9: repeat: must be at least 1, got 0\n"
    assert unfold("plan", "-", stdin=b"name: \xff\n").err == "<stdin>:1:7: not UTF-8 text (save the file as UTF-8)\n"


def test_a_bad_spec_goes_to_stderr(unfold: Unfold, tmp_path: Path) -> None:
    """Given a bad spec, a verb prints every mistake on stderr, writes nothing and exits with 2."""
    (tmp_path / "bad.yaml").write_text(ECHO + "repeat: 0\nbuget: $1\n", encoding="utf-8")
    outcome = unfold("train", "bad.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines() == [
        "bad.yaml:5:9: repeat: must be at least 1, got 0",
        'bad.yaml:6:1: buget: unknown key (did you mean "budget"?)',
    ]
    assert not (tmp_path / "runs").exists()


def test_a_setting_changes_the_spec(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """--set changes a key, and the run keeps the spec that was meant, with the values that were."""
    outcome = unfold(
        "plan", spec, "--set", "repeat=4", "--set", "voices=[{name: no, price: $0.2}]", "--set", "voice=no"
    )
    assert outcome.code == 0
    assert "$0.80 of $1.00" in outcome.out
    kept = (tmp_path / "runs" / "a" / "spec.yaml").read_text(encoding="utf-8")
    assert "repeat: 4" in kept
    assert "name: 'no'" in kept


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("repeat=0", "--set repeat=0: repeat: must be at least 1, got 0"),
        ("voices[0].price=3", '--set voices[0].price=3: voices[0].price: "3" has no unit (write "$3")'),
        ("repet=3", '--set repet=3: repet: unknown key (did you mean "repeat"?)'),
        ("repeat", '--set repeat: expected key=value (such as goal.max_loss=1%, stages[0].name=a or quota."team.a"=8)'),
    ],
)
def test_a_bad_setting_is_reported_at_its_origin(unfold: Unfold, spec: Path, setting: str, expected: str) -> None:
    """A mistake in a --set is reported with the flag instead of file and line."""
    spec.write_text(ECHO + "voices: [{name: plain}]\n", encoding="utf-8")
    outcome = unfold("plan", spec, "--set", setting)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", expected + "\n")


def test_a_rehearsal_writes_nothing(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """--dry-run reports what would run and where, exits with 0, and leaves the folder as it was."""
    before = sorted(tmp_path.rglob("*"))
    for verb in ("profile", "train", "plan", "serve"):
        outcome = unfold(verb, spec, "--dry-run")
        assert outcome.code == 0
        assert f"yes · the spec is valid; {verb} would write to runs/a · nothing was run" in outcome.out
    assert sorted(tmp_path.rglob("*")) == before
    assert unfold("plan", spec, "--dry-run", "--set", "repeat=0").code == 2
    assert "--dry-run plans nothing" in unfold("plan", spec, "--dry-run", "--check", "plan.yaml").err


def test_a_rehearsal_reads_the_plan_that_is_named(unfold: Unfold, tmp_path: Path) -> None:
    """--dry-run with --plan refuses what --plan alone would refuse."""
    (tmp_path / "mini.yaml").write_text(TUNING, encoding="utf-8")
    for words in ((), ("--dry-run",)):
        outcome = unfold("train", "mini.yaml", "--plan", "mini.yaml", *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert "mini.yaml:1:1: not a plan" in outcome.err


def test_logs_go_to_stderr(unfold: Unfold, spec: Path) -> None:
    """--verbose adds to stderr and leaves stdout as it is."""
    quiet, loud = unfold("plan", spec), unfold("plan", spec, "--verbose")
    assert loud.out == quiet.out
    assert loud.err == "plain says it 2 times\n"


@pytest.mark.parametrize(
    "words", [("report",), ("schema", "echo", "-o"), ("catalog", "--prices"), ("plan", "a.yaml", "--out")]
)
def test_a_path_that_the_system_refuses_is_the_callers_fault(
    unfold: Unfold, spec: Path, words: tuple[str, ...]
) -> None:
    """A name that is too long for the system is reported with exit code 2, not as an error of the tool."""
    outcome = unfold(*words, "long" * 200 + ".md")
    assert outcome.code == 2
    assert outcome.err.startswith("longlong")
    assert outcome.err.endswith("cannot be used: File name too long\n")


def test_a_folder_that_may_not_be_entered_is_the_callers_fault(unfold: Unfold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user is named, with exit code 2."""

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    outcome = unfold("report", "theirs/run")
    assert (outcome.code, outcome.err) == (2, "theirs/run: cannot be used: Permission denied\n")


def test_the_seed_is_kept(unfold: Unfold, spec: Path) -> None:
    """The seed, the hash of the spec and the versions are in the report's provenance."""
    data = json.loads(unfold("plan", spec, "--seed", "7", "--format", "json").out)
    assert data["schema"] == SCHEMA
    assert data["provenance"]["seed"] == 7
    assert len(data["provenance"]["spec_sha256"]) == 64
    assert {"unfoldkit", "python", "numpy"} <= set(data["provenance"]["versions"])


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan", "nonesuch.yaml"], "nonesuch.yaml: cannot read: No such file or directory"),
        (["plan", "a.yaml", "--format", "jsn"], '--format jsn: no such format (did you mean "json"?)'),
        (["plan", "a.yaml", "--format", "pdf"], "--format pdf: no such format (one of github, html, json"),
        (["plan", "a.yaml", "--out", "x.doc"], "--out x.doc: no format has the suffix '.doc'"),
        (["plan", "a.yaml", "--out", "."], ".: --out needs a file; this is a folder"),
        (["plan", "a.yaml", "--engine", "loca"], '--engine loca: no such engine (did you mean "local"?)'),
        (["plan", "a.yaml", "--seed", "-1"], "Invalid value for '--seed'"),
        (["plan", "a.yaml", "--nonesuch"], "No such option"),
        (["train"], "Missing argument 'SPEC'"),
        (["plan"], "give a SPEC, or --check PLAN, which holds one"),
        (["paln", "a.yaml"], "No such command 'paln'"),
        (["report", "nonesuch"], "nonesuch: no such run (a run is a folder such as runs/digits)"),
        (["plan", "a.yaml", "--check", "a.yaml"], "a.yaml:1:1: not a plan"),
        (["train", "a.yaml", "--out", "x.yaml"], "train of kind echo makes no plan"),
        (["train", "a.yaml", "--out", "x.png"], "train of a has no plot"),
    ],
)
def test_a_bad_flag_is_the_callers_fault(unfold: Unfold, spec: Path, words: list[str], expected: str) -> None:
    """The caller's mistakes are reported on stderr, with nothing on stdout and exit code 2."""
    outcome = unfold(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert expected in outcome.err


def test_ray_is_asked_for_when_it_is_not_there(unfold: Unfold, spec: Path) -> None:
    """--engine ray without Ray names the extra; with Ray the verb runs."""
    import importlib.util

    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed: nothing to ask for")
    outcome = unfold("train", spec, "--engine", "ray")
    assert outcome.code == 2
    assert install_command("ray") in outcome.err


TUNING = """version: 1
kind: tuning
name: mini
search: {algorithm: successive-halving, trials: 2, min_iters: 1, max_iters: 2, eta: 2}
trainable: {estimator: xgboost, data: digits, space: {max_depth: {int: [2, 3]}}}
deadline: 5 min
cloud: {provider: local, limit: 3, instances: [{type: process, accelerators: 1, price: $0.36/h}], billing: {increment: 1 s, minimum: 0 s}}
profile: {iteration: {mean: 0.2 s}, speedup: {1: 1}, provision: 0 s, startup: 1 s}
samples: 100
"""  # noqa: E501


@pytest.mark.e2e
def test_train_carries_out_the_plan_that_is_named(unfold: Unfold, tmp_path: Path) -> None:
    """Train follows a plan that differs from what it would plan itself, from its spec or --plan."""
    spec, plan = tmp_path / "mini.yaml", tmp_path / "plan.yaml"
    spec.write_text(TUNING, encoding="utf-8")
    assert unfold("plan", spec, "--out", plan).code == 0
    own = plan.read_text(encoding="utf-8")
    plan.write_text(own.replace("instances: 1\n", "instances: 2\n", 1), encoding="utf-8")
    for run, words in (("a", (plan,)), ("b", (spec, "--plan", plan))):
        outcome = unfold("train", *words, "--run", run, "--format", "json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["provenance"]["plan"] == [[2, 1], [1, 1]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("plan", "a.yaml", "--replay", "t.csv"),
            "--replay t.csv: kind echo replays no trace (kinds that do: pip",
        ),
        (("serve", "a.yaml", "--replay", "t.csv"), "--replay t.csv: kind echo replays no trace"),
        (("serve", "a.yaml", "--target", "ray"), "--target ray: kind echo takes charge of no deployment"),
        (("serve", "a.yaml", "--target", "ray", "--dry-run"), "--target ray: kind echo takes charge of no deployment"),
        (
            ("train", "a.yaml", "--plan", "p.yaml"),
            "--plan p.yaml: kind echo executes no plan (kinds that do: tuning",
        ),
        (
            ("train", "a.yaml", "--target", "aws"),
            "--target aws: kind echo trains on this machine only (kinds that do not: tuning",
        ),
        (
            ("profile", "a.yaml", "--on", "ray"),
            "--on ray: kind echo measures on this machine only (kinds that do: tuning",
        ),
    ],
)
def test_an_option_is_heeded_or_refused(unfold: Unfold, spec: Path, words: tuple[str, ...], expected: str) -> None:
    """A trace or a plan that a kind does nothing with is refused, not passed over."""
    assert spec.exists()
    outcome = unfold(*words)
    assert outcome.code == 2
    assert outcome.err.startswith(expected)


def test_a_system_to_run_on_is_a_setting_of_the_spec(unfold: Unfold, tmp_path: Path) -> None:
    """``train --target`` sets the key of the kind, with all checks of that key."""
    job = tmp_path / "job.yaml"
    job.write_text((ROOT / "configs" / "tuning" / "small.yaml").read_text("utf-8"), encoding="utf-8")
    outcome = unfold("train", "job.yaml", "--target", "azure")
    assert outcome.code == 2
    assert "the catalog has no prices of azure" in outcome.err
    outcome = unfold("train", "job.yaml", "--target", "cloud9")
    assert outcome.code == 2
    assert outcome.err.startswith("--set cloud.provider=cloud9: cloud.provider: ")
    # the system of the spec does not count, valid or not
    job.write_text(job.read_text("utf-8").replace("provider: aws", "provider: nowhere"), encoding="utf-8")
    outcome = unfold("train", "job.yaml", "--target", "aws")
    assert outcome.code == 2
    assert "nothing to train" in outcome.err
    assert "nowhere" not in outcome.err


def test_a_plan_of_another_kind_is_no_drift(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A plan that another kind made is refused by name: nothing of it could be compared."""
    assert unfold("plan", spec, "--out", "plan.yaml").code == 0
    (tmp_path / "mini.yaml").write_text(TUNING, encoding="utf-8")
    outcome = unfold("plan", "mini.yaml", "--check", "plan.yaml")
    assert (outcome.code, outcome.err) == (2, "plan.yaml: a plan of kind echo; the spec is of kind tuning\n")


@pytest.mark.e2e
def test_the_next_command_goes_on_in_the_run_that_was_named(unfold: Unfold, tmp_path: Path) -> None:
    """A command after ``next:`` names the run of --run, quoted where a shell would split it."""
    (tmp_path / "mini.yaml").write_text(TUNING, encoding="utf-8")
    outcome = unfold("train", "mini.yaml", "--run", "my run")
    assert outcome.out.splitlines()[-1] == "next: unfold report 'my run' --out report.html"


OWN = """
from unfold_placement.core.types import STATIC


class Mine:
    phase = STATIC
    watches = frozenset()

    def request(self, task):
        return []

    def react(self, event, view):
        return iter(())
"""


def test_code_beside_the_spec_is_found(unfold: Unfold, tmp_path: Path) -> None:
    """With --allow-code a spec may name a module in its own folder, wherever the command is called from."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "beside_the_spec.py").write_text(OWN, encoding="utf-8")
    (folder / "own.yaml").write_text(
        "version: 1\nkind: placement\nname: own\ncluster: {nodes: [{count: 1, cpu: 1}]}\n"
        "workload: {tasks: [{job: a, count: 1, cpu: 1, run: 1 s}]}\npolicy: {own: {policy: 'beside_the_spec:Mine'}}\n",
        encoding="utf-8",
    )
    assert unfold("plan", "own/own.yaml").code == 2
    assert unfold("plan", "own/own.yaml", "--allow-code").code == 0


def test_a_hint_names_the_spec_of_the_call(unfold: Unfold, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in the hint of a verb's error holds the spec and its settings, so that it can be typed."""

    def reject(*_: object) -> None:
        raise user_error("no profile", hint="unfold profile SPEC first")

    monkeypatch.setattr(verbs, "plan", reject)
    outcome = unfold("plan", spec, "--set", "message=good day")
    assert f"unfold profile {spec} --set 'message=good day' first" in outcome.err
