"""A plugin of somebody else, installed beside the wheel: ``nox -s thirdparty``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.console import surroundings

pytest.importorskip("unfold_storage", reason="examples/plugin-storage is not installed: nox -s thirdparty")


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "unfold")
    return subprocess.run(
        [program, *words], cwd=folder, env=surroundings(os.environ), capture_output=True, text=True, check=False
    )


def test_plugin_stands_among_the_kinds_under_its_own_distribution(tmp_path: Path) -> None:
    """An installed plugin is listed as working, with the package that it comes from."""
    listed = {plugin["name"]: plugin for plugin in json.loads(unfold(tmp_path, "plugins", "--format", "json").stdout)}
    assert listed["storage"]["status"] == "ok"
    assert "unfold-storage" in str(listed["storage"])
    assert "unfold-storage" not in str(listed["echo"])


def test_spec_is_checked_like_those_of_the_house(tmp_path: Path) -> None:
    """Its example is valid; its mistakes are reported at their line, its own problems included."""
    assert unfold(tmp_path, "init", "storage", "--out", "photos.yaml").returncode == 0
    assert unfold(tmp_path, "check", "photos.yaml").returncode == 0
    text = (tmp_path / "photos.yaml").read_text("utf-8")
    (tmp_path / "bad.yaml").write_text(text.replace("500 GiB", "0 GiB").replace("copies", "copys"), "utf-8")
    done = unfold(tmp_path, "check", "bad.yaml")
    assert done.returncode == 2
    output = done.stdout + done.stderr
    assert "bad.yaml:7:7: size: nothing to store (a size such as 12 GiB)\n" in output
    assert 'bad.yaml:8:1: copys: unknown key (did you mean "copies"?)\n' in output


def test_a_plan_is_stored_and_shown_again(tmp_path: Path) -> None:
    """The verb's answer is the exit code; plan, drift and report of the run come from the core."""
    unfold(tmp_path, "init", "storage", "--out", "photos.yaml")
    no = unfold(tmp_path, "plan", "photos.yaml", "--format", "json")
    assert (no.returncode, json.loads(no.stdout)["metrics"]["price"]["value"]) == (1, 30.0)
    assert unfold(tmp_path, "plan", "photos.yaml", "--set", "copies=2", "--out", "plan.yaml").returncode == 0
    assert unfold(tmp_path, "plan", "--check", "plan.yaml").returncode == 0
    assert unfold(tmp_path, "plan", "photos.yaml", "--check", "plan.yaml").returncode == 1
    again = unfold(tmp_path, "report", "runs/photos", "--format", "md")
    assert again.returncode in {0, 1}, again.stderr
    assert "photos" in again.stdout


def test_plugin_can_be_switched_off(tmp_path: Path) -> None:
    """A plugin that is disabled in the environment is not loaded, and its specs report it."""
    unfold(tmp_path, "init", "storage", "--out", "photos.yaml")
    words = ["/usr/bin/env", "UNFOLD_DISABLE_PLUGINS=storage", str(Path(sys.executable).parent / "unfold")]
    done = subprocess.run([*words, "check", "photos.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "storage" in done.stdout + done.stderr
