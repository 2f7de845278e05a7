"""What SECURITY.md promises, each with a test; tampered runs are in tests/laws, tokens over sockets in unit/serving."""

from __future__ import annotations

import hmac
import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.support import ECHO, ROOT, Process, Unfold
from tests.unit.serving.client import serving
from unfoldkit.serving.http import access_control, server
from unfoldkit.serving.http.address import Address

CASCADE = (ROOT / "configs" / "cascade" / "digits.yaml").read_text("utf-8")
TRAVERSAL = ("/v2/models/../../etc/passwd", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/live.css/../../app.py",
             "/../../../../etc/passwd", "/v2/models/..%5c..%5cwin.ini", "//etc/passwd")  # fmt: skip


def test_loopback_is_the_default() -> None:
    """Without a word about it, a service listens on this machine alone: in the room and on the command line."""
    from unfoldkit.cli.app import serve

    assert Address().host == "127.0.0.1"
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def test_a_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are compared by hmac.compare_digest, with all that was given and all that is expected."""
    seen: list[tuple[Any, Any]] = []

    def spy(first: Any, second: Any) -> bool:
        seen.append((first, second))
        return real(first, second)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert not access_control._has_token({"headers": [(b"authorization", b"Bearer s")]}, b"Bearer secret")
    assert access_control._has_token({"headers": [(b"authorization", b"Bearer secret")]}, b"Bearer secret")
    assert seen == [(b"Bearer s", b"Bearer secret"), (b"Bearer secret", b"Bearer secret")]
    assert inspect.getsource(access_control).count("compare_digest") == 1  # one for the guard and the fast path
    assert "is_authorized" in inspect.getsource(server)


@pytest.mark.e2e
def test_no_secret_gets_into_a_run(tmp_path: Path, unfold_process: Process) -> None:
    """Tokens and keys of the environment are neither in the report nor in the log nor in any file of the run."""
    (tmp_path / "a.yaml").write_text(ECHO)
    secrets = {"UNFOLD_TOKEN": "tok-3141", "AWS_SECRET_ACCESS_KEY": "key-2718", "OTHER_PASSWORD": "word-1618"}
    for words in (["plan", "a.yaml", "--verbose", "--format", "json"], ["train", "a.yaml"], ["doctor"]):
        done = unfold_process(*words, env=secrets)
        assert not [secret for secret in secrets.values() if secret in done.stdout + done.stderr]
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert kept
    assert not [secret for secret in secrets.values() if any(secret.encode() in data for data in kept)]


@pytest.mark.parametrize("path", TRAVERSAL)
def test_a_path_leads_out_of_nothing(path: str) -> None:
    """Whatever the path of a request, only files of the page are served; all else is 404."""
    with serving("total") as server:
        reply = server.ask(path)
    assert reply.status == 404
    assert b"root:" not in reply.body
    assert b"def " not in reply.body


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..", "a/b", "a\\..\\b", "a\x00b"])  # noqa: S108
def test_a_name_leads_out_of_nothing(tmp_path: Path, unfold: Unfold, name: str) -> None:
    """Names of specs and of models become names of files, so those that could lead elsewhere are refused."""
    quoted = '"' + name.replace("\\", "\\\\").replace("\x00", "\\0") + '"'
    before = set(tmp_path.parent.iterdir())
    for text in (ECHO.replace("name: a", f"name: {quoted}"), CASCADE.replace("name: digits", f"name: {quoted}")):
        (tmp_path / "a.yaml").write_text(text)
        assert unfold("plan", "a.yaml").code == 2
    assert set(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize(
    "evil",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/name:os.system",
        "!!python/module:os",
        '!<tag:yaml.org,2002:python/object/new:os.system> ["touch owned"]',
        "&a [*a]",
    ],
)
def test_a_spec_runs_nothing(tmp_path: Path, unfold: Unfold, evil: str) -> None:
    """A spec with YAML that constructs Python objects is refused with a place, and nothing is run."""
    (tmp_path / "a.yaml").write_text(ECHO.replace("hi", evil))
    for verb in ("check", "plan", "train", "serve"):
        outcome = unfold(verb, "a.yaml")
        assert outcome.code == 2
        assert "a.yaml:4" in outcome.out + outcome.err
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("verb", "spec", "setting"),
    [
        ("train", "cascade/digits.yaml", "baseline.candidates=[{estimator: evil.Run}]"),
        ("train", "tuning/digits-sha.yaml", "trainable={function: 'evil:run'}"),
        ("plan", "placement/gangs.yaml", "policy={own: {policy: 'evil:Run', options: {}}}"),
        ("profile", "pipeline/digits.yaml", "stages.first.model={code: 'evil:run'}"),
    ],
)
def test_code_needs_to_be_allowed(unfold: Unfold, tmp_path: Path, verb: str, spec: str, setting: str) -> None:
    """Every kind refuses a spec that names code, unless --allow-code is given, and does not import it."""
    (tmp_path / "evil.py").write_text("open('owned', 'w').close()\n")
    (tmp_path / "a.yaml").write_text((ROOT / "configs" / spec).read_text("utf-8"))
    outcome = unfold(verb, "a.yaml", "--set", setting)
    assert outcome.code == 2
    assert "allow-code" in outcome.out + outcome.err, outcome
    assert not (tmp_path / "owned").exists()


def test_written_paths_control_no_terminal(tmp_path: Path, unfold: Unfold) -> None:
    """The path of a file that was written is printed without control and bidirectional characters."""
    (tmp_path / "a.yaml").write_text(ECHO, encoding="utf-8")
    folder = tmp_path / "a\n\x1b[31m\u202e"
    for words in (
        ["init", "echo", "--out", folder / "i.yaml"],
        ["plan", tmp_path / "a.yaml", "--out", folder / "o.html"],
        ["plan", tmp_path / "a.yaml", tmp_path / "a.yaml", "--out", folder / "o.json"],
    ):
        done = unfold(*map(str, words))
        assert r"a\n\x1b[31m\u202e" in done.err
        assert not {"\x1b", "\u202e"} & set(done.err)
