"""The files for other people's CI do what they promise."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from docs.console import surroundings
from tests.wheels import check_contents, expected
from unfoldkit import __version__

ROOT = Path(__file__).parents[2]


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def act(tmp_path: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the last step of the action as a runner would, with this environment instead of the installed one."""
    bin_folder = tmp_path / "unfold" / "bin"
    if not bin_folder.is_dir():
        bin_folder.mkdir(parents=True)
        (bin_folder / "unfold").symlink_to(Path(sys.executable).parent / "unfold")
    action = parsed("action.yml")
    step = action["runs"]["steps"][-1]
    given = {name: item.get("default", "") for name, item in action["inputs"].items()} | inputs
    values = {key: given[text.split(".")[1].split(" ")[0]] for key, text in step["env"].items()}
    environment = surroundings(os.environ) | values | {"RUNNER_TEMP": str(tmp_path)}
    script = ["/usr/bin/env", "bash", "-e", "-c", step["run"]]
    return subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_action_annotates_a_bad_spec(tmp_path: Path) -> None:
    """A mistake is reported at its file and line, and the step fails with 2."""
    (tmp_path / "bad.yaml").write_text("version: 1\nkind: echo\nname: a\nmessage: hi\nvoise: plain\n", "utf-8")
    done = act(tmp_path, files="*.yaml")
    assert done.returncode == 2
    assert done.stdout.startswith("::error file=bad.yaml,line=5,col=1::voise: unknown key")


@pytest.mark.parametrize(("budget", "code", "level"), [("1", 0, "notice"), ("0.02", 1, "error")])
def test_action_runs_a_verb(tmp_path: Path, budget: str, code: int, level: str) -> None:
    """A verb's answer is the step's exit code and an annotation."""
    spec = str(ROOT / "configs/echo/hello.yaml")
    done = act(tmp_path, verb="plan", files=spec, options=f"--set budget=${budget}")
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"::{level} title=unfold plan hello::")


def test_action_keeps_a_quoted_option_whole(tmp_path: Path) -> None:
    """A value with spaces is one word in quotes, and nothing that an option holds is run or expanded."""
    spec = str(ROOT / "configs/echo/hello.yaml")
    options = """--set 'message=$(touch made) * `touch made`' --set "budget=1 $" """
    done = act(tmp_path, verb="plan", files=spec, options=options)
    assert 'budget: "1 $"' in done.stdout
    done = act(tmp_path, verb="train", files=spec, options=options.partition(' --set "')[0])
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "runs/hello/said/0.txt").read_text("utf-8") == "$(touch made) * `touch made`"
    assert not (tmp_path / "made").exists()
    # half an option must not pass for none
    assert act(tmp_path, verb="plan", files=spec, options="--check 'plan.yaml").returncode != 0


def test_action_plans_several_specs(tmp_path: Path) -> None:
    """A pattern of specs is planned spec by spec, an annotation for each, and the step fails with the worst code."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.yaml").write_text(f"version: 1\nkind: echo\nname: {name}\nmessage: hi\n", "utf-8")
    (tmp_path / "c.yaml").write_text("version: 1\nkind: echo\nname: c\n", "utf-8")
    done = act(tmp_path, verb="plan", files="*.yaml")
    assert done.returncode == 2
    annotations = [line.split("::")[1] for line in done.stdout.splitlines()]
    assert annotations[:2] == ["notice title=unfold plan a", "notice title=unfold plan b"]
    assert annotations[2].startswith("error file=c.yaml,line=1")


@pytest.mark.slow
def test_workflow_of_the_page_does_what_the_action_offers(tmp_path: Path) -> None:
    """Every step of the workflow names inputs that the action has, and passes on the shipped specs."""
    page = (ROOT / "docs/how-to/check-specs-in-ci.md").read_text("utf-8")
    workflow = yaml.safe_load(page.partition("```yaml specs.yml\n")[2].partition("```")[0])
    steps = [step["with"] for step in workflow["jobs"]["specs"]["steps"] if "unfoldkit" in step["uses"]]
    assert len(steps) == 3
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    words = ["/usr/bin/env", "unfold", "plan", "configs/echo/hello.yaml", "--out", "plan.yaml"]
    subprocess.run(words, cwd=tmp_path, env=surroundings(os.environ), check=True, capture_output=True)
    for step in steps:
        assert set(step) <= set(parsed("action.yml")["inputs"])
        done = act(tmp_path, **step)
        assert done.returncode == 0, done.stdout + done.stderr


def test_action_installs_its_own_checkout() -> None:
    """The first step installs the folder of the action with the Python that was asked for."""
    step = parsed("action.yml")["runs"]["steps"][0]
    assert step["env"] == {"PYTHON": "${{ inputs.python }}", "EXTRAS": "${{ inputs.extras }}"}
    assert '"$GITHUB_ACTION_PATH${EXTRAS:+[$EXTRAS]}"' in step["run"]


def test_hook_of_pre_commit_checks_files(tmp_path: Path) -> None:
    """The hook's entry is a command that takes files and refuses a bad one."""
    hook = parsed(".pre-commit-hooks.yaml")[0]
    assert (hook["id"], hook["language"]) == ("unfold-check", "python")
    (tmp_path / "bad.yaml").write_text("version: 1\nkind: echo\n", "utf-8")
    for file, code in ((ROOT / "configs/echo/hello.yaml", 0), (tmp_path / "bad.yaml", 2)):
        words = ["/usr/bin/env", *shlex.split(hook["entry"]), str(file)]
        done = subprocess.run(words, env=surroundings(os.environ), capture_output=True, check=False)
        assert done.returncode == code


def test_ci_runs_the_command_of_the_readme_as_a_newcomer_does() -> None:
    """`.ci/run` runs the README's test command in a fresh environment, before uv is there."""
    assert "pip install nox && nox" in (ROOT / "README.md").read_text("utf-8")
    script = (ROOT / ".ci/run").read_text("utf-8")
    before, command, after = script.partition("\npip install nox && nox\n")
    assert command
    assert "python3 -m venv" in before
    assert "install --quiet uv" not in before
    assert "install --quiet uv" in after


def test_lanes_of_ci_are_the_full_run() -> None:
    """`nox` and the lanes of `.ci/run` together run every session, each once."""
    script = (ROOT / ".ci/run").read_text("utf-8")
    lanes = [sessions_of("-t", name) for name in re.findall(r"^nox -t (lane-\w)", script, re.MULTILINE)]
    full = sessions_of("-t", "full")
    assert sorted(session for lane in lanes for session in lane) == sorted(full - {"summary"})
    assert full | sessions_of() | {"work", "extras"} == every_session()


def listed_by_nox(*options: str) -> str:
    words = [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "--list", *options]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def sessions_of(*options: str) -> set[str]:
    required = {"work", "extras"}
    return set(re.findall(r"^\* (\S+) ", listed_by_nox(*options), re.MULTILINE)) - required


def every_session() -> set[str]:
    return set(re.findall(r"^[*-] (\S+) ", listed_by_nox(), re.MULTILINE))


def test_the_source_distribution_holds_what_ci_and_its_tests_read(tmp_path: Path) -> None:
    """Files for CI, on security and on citing are in the sdist, so that its tests can run without a clone."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {".ci/run", ".pre-commit-hooks.yaml", "action.yml", "CITATION.cff", "SECURITY.md", "README.md"} <= held


def test_a_wheel_with_other_files_than_the_checkout_is_reported(tmp_path: Path) -> None:
    """A file that is missing in a wheel, and one that does not belong there, are both named."""
    lacking, *rest = sorted(expected())
    with ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in (*rest, "stray.py", "a-1.dist-info/METADATA"):
            archive.writestr(name, "")
    message = re.escape(f"not in the wheel: {[lacking]}; not in the checkout: {['stray.py']}")
    with pytest.raises(SystemExit, match=message):
        check_contents(tmp_path / "a.whl")


def test_the_version_has_one_source() -> None:
    """The build reads the version of the package, and the citation names the same one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/unfoldkit/__init__.py"
    assert parsed("CITATION.cff")["version"] == __version__


def test_the_tested_versions_are_those_that_the_project_declares() -> None:
    """The classifiers name the versions on which the tests run; workflows, container and type checker use no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    declared = [
        line.rpartition(" :: ")[2]
        for line in project["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    ]
    files = (ROOT / ".github/workflows").glob("*.yml")
    workflows = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in files}
    matrix = workflows["test"]["jobs"]["quick"]["strategy"]["matrix"]
    assert matrix["python"] == declared
    assert project["project"]["requires-python"] == f">={declared[0]}"
    assert project["tool"]["mypy"]["python_version"] == declared[0]
    steps = [step for flow in workflows.values() for job in flow["jobs"].values() for step in job.get("steps", [])]
    used = {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")}
    used |= {item["python"] for item in matrix["include"]} | set(
        re.findall(r"python:(3\.\d+)", (ROOT / "Containerfile").read_text("utf-8"))
    )
    assert used - {"${{ matrix.python }}"} <= set(declared)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_have_few_rights(path: Path) -> None:
    """Each workflow reads only, unless a job asks for more; its sessions of nox exist; no secret but its own token."""
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    text = path.read_text("utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) <= {"GITHUB_TOKEN"}
    assert set(re.findall(r"nox -s (\w+)", text)) <= every_session()
    for job in workflow["jobs"].values():
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        # what a stranger can name must not become a part of a command
        assert not any("github.event" in step.get("run", "") for step in job["steps"])


def manifests() -> dict[str, Any]:
    folder = ROOT / "deploy/kustomize"
    names = parsed("deploy/kustomize/kustomization.yaml")["resources"]
    assert sorted(names) == sorted(path.name for path in folder.glob("*.yaml") if path.stem != "kustomization")
    return {item["kind"]: item for item in (parsed(f"deploy/kustomize/{name}") for name in names)}


def test_the_deployment_meets_the_restricted_level() -> None:
    """Every container of the base is unprivileged and read-only; probes, budget and selector fit the service."""
    found = manifests()
    assert found["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    serve = pod["containers"][0]
    paths = {serve[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"/v2/health/ready", "/v2/health/live"}
    ports = {port["name"] for port in serve["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < found["Deployment"]["spec"]["replicas"]


def test_the_deployment_starts_the_command_with_options_that_exist() -> None:
    """The arguments of the container parse."""
    import typer

    from unfoldkit.cli.app import build_app

    words = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    root: Any = typer.main.get_command(build_app())
    root.commands[words[0]].make_context(words[0], words[1:], parent=root.make_context("unfold", [words[0]]))


def test_the_image_runs_as_an_ordinary_user() -> None:
    """The last stage of the container file has a numeric user other than root, and no build tools of the first."""
    last = (ROOT / "Containerfile").read_text("utf-8").rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert user
    assert "0" not in user.groups()
    assert "RUN " not in last
