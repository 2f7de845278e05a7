"""Plugins of others: listed, broken, doubled, switched off, started anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import ECHO, ROOT, Process, Unfold, distribution, kind_code, surroundings
from unfoldkit.errors import install_command

HIDDEN = "version: 1\nkind: third\nname: a\n"


@pytest.fixture
def inside(unfold: Unfold, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """Return the command line as a function that sees more distributions, in this process: a start takes a second."""
    modules = set(sys.modules)

    def run(
        *words: str | Path, env: Mapping[str, str] | None = None, path: Sequence[Path] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for folder in path:
                patch.syspath_prepend(str(folder))
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            for name in set(sys.modules) - modules:
                if name.startswith("unfold_"):
                    del sys.modules[name]
            found = unfold(*words, stdin=stdin)
        return subprocess.CompletedProcess(list(map(str, words)), found.code, found.out, found.err)

    yield run
    for name in set(sys.modules) - modules:
        if name.startswith("unfold_"):
            del sys.modules[name]


def listed(process: Process, *path: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the output of ``plugins`` for each plugin, by distribution and name."""
    done = process("plugins", "--format", "json", path=path, env=env)
    assert done.returncode == 0, done.stderr
    return {f"{row['distribution']}:{row['name']}": row for row in json.loads(done.stdout)}


def test_the_plugins_of_the_house_are_listed(unfold: Unfold) -> None:
    """Each plugin is listed with status and distribution, its kinds with their verbs under it; all of ours are ok."""
    outcome = unfold("plugins")
    assert outcome.code == 0
    assert "  echo       profile, train, plan, serve" in outcome.out
    rows = json.loads(unfold("plugins", "--format", "json").out)
    own = [row for row in rows if row["distribution"] == "unfoldkit"]
    assert {"echo", "cascade"} <= {row["name"] for row in own}
    assert {row["status"] for row in own} == {"ok"}
    assert unfold("plugins", "--format", "html").code == 2


def test_a_third_party_is_found(inside: Process, tmp_path: Path) -> None:
    """A distribution on the path is enough: its kind is listed, its specs are checked."""
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", plan="x:y"))
    row = listed(inside, folder)["unfold-third:unfold_third"]
    assert (row["status"], row["version"]) == ("ok", "1.0")
    assert row["kinds"] == [{"name": "third", "summary": "for tests", "verbs": ["plan"]}]
    assert inside("check", "-", path=[folder], stdin=HIDDEN).returncode == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nonesuch_package\n", "ModuleNotFoundError: No module named 'nonesuch_package'"),
        ("raise RuntimeError('at import')\n", "RuntimeError: at import"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        (
            "from unfoldkit.api import hookimpl\n@hookimpl\ndef unfold_kinds(no, such): return []\n",
            "PluginValidationError",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_skipped(inside: Process, tmp_path: Path, code: str, error: str) -> None:
    """A plugin that fails at import is listed as broken with the reason, doctor fails, and the others work."""
    folder = distribution(tmp_path / "site", "unfold-third", code, entry="third")
    row = listed(inside, folder)["unfold-third:third"]
    assert row["status"] == "broken"
    assert error in row["error"]
    assert inside("plan", "-", path=[folder], stdin=ECHO).returncode == 0
    done = inside("check", "-", path=[folder], stdin=HIDDEN)
    assert done.returncode == 2
    assert 'the plugin "third" of unfold-third is broken' in done.stdout
    doctor = inside("doctor", path=[folder])
    assert doctor.returncode == 1
    assert "no  plugin third" in doctor.stdout


def test_two_owners_of_a_kind_are_named(inside: Process, tmp_path: Path) -> None:
    """A kind of two distributions is refused naming both; switching off one by its distribution brings it back."""
    folder = distribution(tmp_path / "site", "unfold-rival", kind_code("echo", plan="x:y"), entry="echo")
    done = inside("plan", "-", path=[folder], stdin=ECHO)
    assert done.returncode == 2
    both = 'the kind "echo" is offered by echo (unfoldkit 0.1.0) and by echo (unfold-rival 1.0)'
    assert done.stderr.startswith(f"<stdin>:2:7: kind: {both} (disable one: UNFOLD_DISABLE_PLUGINS=unfold-rival)")
    listing = inside("plugins", path=[folder])
    assert listing.returncode == 0
    assert 'several plugins offer the kind "echo"' in listing.stderr
    assert "no  kind echo" in inside("doctor", path=[folder]).stdout
    off = inside("plan", "-", path=[folder], stdin=ECHO, env={"UNFOLD_DISABLE_PLUGINS": "unfold-rival"})
    assert off.returncode == 0


def test_a_plugin_can_be_switched_off(inside: Process, tmp_path: Path) -> None:
    """UNFOLD_DISABLE_PLUGINS switches plugins off by name; what they offered is reported as switched off."""
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", plan="x:y"), entry="third")
    env = {"UNFOLD_DISABLE_PLUGINS": "third, nonesuch"}
    assert listed(inside, folder, env=env)["unfold-third:third"]["status"] == "disabled"
    done = inside("check", "-", path=[folder], stdin=HIDDEN, env=env)
    assert done.returncode == 2
    assert 'the plugin "third" of unfold-third is disabled (UNFOLD_DISABLE_PLUGINS names it)' in done.stdout


def test_only_the_built_in_plugins_on_request(inside: Process, tmp_path: Path) -> None:
    """--no-plugins loads none of a third party, not even to import it."""
    folder = distribution(
        tmp_path / "site", "unfold-third", "import sys\nsys.stderr.write('imported')\n", entry="third"
    )
    assert "imported" in inside("check", "-", path=[folder], stdin=ECHO).stderr
    done = inside("check", "-", "--no-plugins", path=[folder], stdin=ECHO)
    assert (done.returncode, done.stderr) == (0, "<stdin> is valid\n")
    assert inside("check", "-", "--no-plugins", path=[folder], stdin=HIDDEN).returncode == 2


def test_a_missing_verb_is_reported(inside: Process, tmp_path: Path) -> None:
    """A verb that a kind does not have exits with 2 and lists those it has."""
    code = kind_code("third", plan="x:y", serve="x:z")
    folder = distribution(tmp_path / "site", "unfold-third", code)
    for verb in ("train", "profile"):
        done = inside(verb, "-", path=[folder], stdin=HIDDEN)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"kind third has no {verb} (it has plan, serve)\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('a\\nb')", "unfold: unexpected ValueError: a (in unfold_third:"),
        ("import sys; sys.exit(0)", "unfold: unexpected SystemExit: 0 (in unfold_third:"),
    ],
)
def test_a_plugin_that_fails_is_not_the_callers_fault(
    inside: Process, tmp_path: Path, body: str, expected: str
) -> None:
    """What a verb raises exits with 3 and one line that names the place; UNFOLD_TRACEBACK shows the trace."""
    code = kind_code("third", f"def plan(spec, run):\n    {body}", plan="unfold_third:plan")
    folder = distribution(tmp_path / "site", "unfold-third", code)
    done = inside("plan", "-", path=[folder], stdin=HIDDEN)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1
    traced = inside("plan", "-", path=[folder], stdin=HIDDEN, env={"UNFOLD_TRACEBACK": "1"})
    assert traced.returncode == 3
    assert "Traceback" in traced.stderr


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ("None", "it is of type NoneType, not Report"),
        ("Report('other', 'plan', 'a', Verdict.YES, '')", "it is that of other plan, not of third plan"),
        ("Report('third', 'plan', 'a', 'yes', '')", "its verdict is 'yes', not Verdict.YES or Verdict.NO"),
        ("Report('third', 'plan', 'a', Verdict.YES, '', decision={'at': {1}})", "it is not serializable to JSON"),
    ],
)
def test_an_unsound_report_is_the_plugins_fault(inside: Process, tmp_path: Path, made: str, expected: str) -> None:
    """An invalid report exits with 3, names the verb and the flaw, and leaves no report in the run."""
    body = f"from unfoldkit.api import Report, Verdict\n\ndef plan(spec, run):\n    return {made}"
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", body, plan="unfold_third:plan"))
    done = inside("plan", "-", path=[folder], stdin=HIDDEN)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"unfold_third:plan returned an invalid report: {expected}" in done.stderr
    assert not (tmp_path / "runs/a/report.json").exists()


def test_a_missing_package_names_its_extra(inside: Process, tmp_path: Path) -> None:
    """A verb that needs a package of an extra exits with 2 and names what to install."""
    code = kind_code("third", plan="nonesuch_package:plan", extra="torch")
    folder = distribution(tmp_path / "site", "unfold-third", code)
    done = inside("plan", "-", path=[folder], stdin=HIDDEN)
    assert done.returncode == 2
    assert install_command("torch") in done.stderr


def test_the_hint_names_the_extra_of_a_third_party(inside: Process, tmp_path: Path) -> None:
    """Where the plugin's own distribution has the extra, that is what is to be installed."""
    code = kind_code("third", plan="unfold_third_verbs:plan", extra="gpu")
    folder = distribution(tmp_path / "site", "unfold-third", code)
    with (folder / "unfold_third-1.0.dist-info/METADATA").open("a", encoding="utf-8") as metadata:
        metadata.write("Provides-Extra: gpu\n")
    (folder / "unfold_third.py").unlink()
    package = folder / "unfold_third"
    package.mkdir()
    (package / "__init__.py").write_text(code.replace("unfold_third_verbs", "unfold_third.verbs"), encoding="utf-8")
    (package / "verbs.py").write_text("import nonesuch_package\n", encoding="utf-8")
    done = inside("plan", "-", path=[folder], stdin=HIDDEN)
    assert done.returncode == 2
    assert "(pip install 'unfold-third[gpu]')" in done.stderr


def test_a_plan_holds_the_version_of_its_plugin(inside: Process, tmp_path: Path) -> None:
    """A plan of a third party drifts, when its plugin changes, with ``versions`` as what changed."""
    body = (
        "from unfoldkit.api import Report, Verdict\n\ndef plan(spec, run):\n"
        "    return Report('third', 'plan', 'a', Verdict.YES, '', decision={'copies': 2})"
    )
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", body, plan="unfold_third:plan"))
    assert inside("plan", "-", "--out", "plan.yaml", path=[folder], stdin=HIDDEN).returncode == 0
    assert "unfold-third: '1.0'" in (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    # of another length, as Python takes a module of the same second and length for the one that it compiled
    for file, old, new in (("unfold_third.py", "2}", "30}"), ("unfold_third-1.0.dist-info/METADATA", "1.0", "1.1")):
        path = folder / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    done = inside("plan", "--check", "plan.yaml", path=[folder])
    assert done.returncode == 1
    assert "changed since: versions" in done.stdout


def test_a_misspelt_hook_is_found_by_doctor(inside: Process, tmp_path: Path) -> None:
    """Doctor rejects a hook that would never be called, names the one that was meant, and exits with 1."""
    code = kind_code("third", "@hookimpl\ndef unfold_cheks():\n    return []", plan="x:y")
    folder = distribution(tmp_path / "site", "unfold-third", code)
    done = inside("doctor", path=[folder])
    assert done.returncode == 1
    assert "unfold_cheks" in next(line for line in done.stdout.splitlines() if line.startswith("no  hooks"))


def test_failing_hooks_do_not_fail_the_verb(inside: Process, tmp_path: Path) -> None:
    """Hooks that raise for renderers, checks and observers leave the verb's exit code as it is; doctor names them."""
    hooks = "\n\n".join(
        f"@hookimpl\ndef {name}({args}):\n    raise ValueError('{name}')"
        for name, args in (("unfold_renderers", ""), ("unfold_checks", ""), ("unfold_run_finished", "event"))
    )
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", hooks, plan="x:y"))
    done = inside("plan", "-", path=[folder], stdin=ECHO)
    assert done.returncode == 0
    assert "failed in unfold_run_finished" in done.stderr
    doctor = inside("doctor", path=[folder])
    assert doctor.returncode == 1
    assert "unfold_checks failed: ValueError" in doctor.stdout


def test_a_plugins_format_and_observer_work(inside: Process, tmp_path: Path) -> None:
    """A format of a plugin is taken by name and by ending, and an observer receives the events."""
    body = (
        "from unfoldkit.api import Renderer\n\n@hookimpl\ndef unfold_renderers():\n"
        "    yield Renderer('shout', '', 'unfold_third:shout', ('.loud',))\n\n"
        "def shout(report):\n    return report.headline.upper() + '!\\n'\n\n"
        "@hookimpl\ndef unfold_run_finished(event):\n    with open('heard', 'a') as stream:\n"
        "        stream.write(f'{event.verb} {event.exit_code}\\n')\n"
    )
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", body, plan="x:y"))
    done = inside("plan", "-", "--format", "shout", path=[folder], stdin=ECHO)
    assert done.stdout == "$0.01 OF $1.00!\n"
    assert inside("plan", "-", "-o", "a.loud", path=[folder], stdin=ECHO + "budget: $0\n").returncode == 1
    assert (tmp_path / "heard").read_text(encoding="utf-8") == "plan 0\nplan 1\n"


def test_a_check_that_returns_nothing_does_not_end_the_others(inside: Process, tmp_path: Path) -> None:
    """Doctor rejects a check that returns no result, and prints all others."""
    body = (
        "from unfoldkit.api import Check\n\n@hookimpl\ndef unfold_checks():\n"
        "    yield Check('idle', '', 'unfold_third:idle')\n\ndef idle():\n    pass\n"
    )
    folder = distribution(tmp_path / "site", "unfold-third", kind_code("third", body, plan="x:y"))
    done = inside("doctor", path=[folder])
    assert done.returncode == 1
    assert "no  idle               the check returned null, not a CheckResult" in done.stdout
    assert "hello came back" in done.stdout


def test_doctor_says_what_is_there(unfold: Unfold) -> None:
    """In a healthy house every check is ok, as text and as JSON, and the code is 0."""
    outcome = unfold("doctor")
    assert outcome.code == 0, outcome.out
    assert all(line.startswith("ok ") for line in outcome.out.splitlines())
    assert "hello came back" in outcome.out
    assert all(row["ok"] for row in json.loads(unfold("doctor", "--format", "json").out))
    assert unfold("doctor", "--format", "html").code == 2


def test_doctor_checks_another_system_only_if_it_is_named(
    unfold: Unfold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of a system are not part of those of this machine; a system that no plugin knows is refused."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "cluster" not in unfold("doctor").out
    outcome = unfold("doctor", "--target", "kubernetes")
    assert outcome.code == 1
    assert outcome.out.startswith("no  cluster ")
    assert len(outcome.out.splitlines()) == 1
    outcome = unfold("doctor", "--target", "kubernets")
    assert outcome.code == 2
    assert outcome.err.startswith("--target kubernets: no such system")
    assert "kubernetes" in outcome.err


@pytest.mark.parametrize("name", ["Echo", "1x", "a b", "class", "", "../x", "-x"])
def test_a_bad_name_starts_no_plugin(unfold: Unfold, tmp_path: Path, name: str) -> None:
    """A name that cannot be a package makes nothing."""
    assert unfold("plugins", "new", "--", name).code == 2
    assert list(tmp_path.iterdir()) == []


def installed(project: Path, target: Path) -> None:
    """Install a project into a folder, with nothing fetched."""
    words = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target),
        str(project),
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_new_plugin_installs_and_keeps_the_laws(unfold: Unfold, inside: Process, tmp_path: Path) -> None:
    """Plugins new makes a project that installs, is listed, starts a valid spec, plans, and passes its tests."""
    made = unfold("plugins", "new", "my-kind")
    assert (made.code, made.out) == (0, "")
    assert made.err.startswith("created unfold-my-kind\nnext: pip install -e unfold-my-kind")
    assert unfold("plugins", "new", "my-kind").code == 2
    project, target = tmp_path / "unfold-my-kind", tmp_path / "site"
    left = [
        path for path in project.rglob("*") if path.is_file() and "echo" in path.read_text(encoding="utf-8").lower()
    ]
    assert not left, "the template's name is left in the copy"
    installed(project, target)
    row = listed(inside, target)["unfold-my-kind:my-kind"]
    assert (row["status"], [kind["name"] for kind in row["kinds"]]) == ("ok", ["my-kind"])
    spec = inside("init", "my-kind", path=[target]).stdout
    for words in (["check", "-"], ["plan", "-"]):
        done = inside(*words, path=[target], stdin=spec)
        assert done.returncode == 0, done.stderr
    env = surroundings({"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])})
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project / "tests")]
    tests = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert tests.returncode == 0, tests.stdout
    assert " passed" in tests.stdout


def test_a_plugin_has_a_name_of_its_own(unfold: Unfold, tmp_path: Path) -> None:
    """A name that an installed plugin has is refused, as both could not be loaded; nothing is written."""
    outcome = unfold("plugins", "new", "echo")
    assert outcome.code == 2
    assert outcome.err.startswith("a plugin echo is installed already (another name;")
    assert not list(tmp_path.iterdir())
