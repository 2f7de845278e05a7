"""Bugs of public schedulers: each model is found broken, its fixed variant clean, and each case can be replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT, call

FOLDER = ROOT / "examples" / "verify"
BUGS = {
    "kueue-534": "starvation",
    "kueue-8309": "head of",
    "kueue-4809": "head of",
    "kueue-2821": "livelock",
    "volcano-4471": "stuck",
    "volcano-5805": "torn gang",
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", BUGS)
def test_a_public_bug_is_found_and_its_fix_is_clean(name: str, tmp_path: Path) -> None:
    """``unfold check --verify`` names the property of the broken variant and claims the bound for the fixed one."""
    broken = call(["check", "--verify", "--allow-code", str(FOLDER / f"{name}.yaml")])
    assert BUGS[name] in " ".join(broken.err.split())
    fixed = call(["check", "--verify", "--allow-code", str(FOLDER / f"{name}-fixed.yaml")])
    assert fixed.code == 0
    assert "no violation with up to" in fixed.out + fixed.err
    case = tmp_path / "case.yaml"
    case.write_text(broken.out, encoding="utf-8")
    (tmp_path / "models.py").write_bytes((FOLDER / "models.py").read_bytes())
    replay = call(["plan", "--allow-code", "--run", str(tmp_path / "run"), str(case)])
    assert replay.code == {"head of": replay.code, "starvation": 1, "torn gang": 1}.get(BUGS[name], 2)


@pytest.mark.e2e
def test_the_node_that_returns_goes_to_others_for_ever() -> None:
    """Volcano 5805 is more than a torn gang: fillers hold the returned node in turn, so that the gang never ends."""
    broken = call(["check", "--verify", "--allow-code", str(FOLDER / "volcano-5805.yaml")])
    assert "starvation" in broken.err
    assert "!node-1 ^node-1" in broken.err
