# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.10.14"]
# ///
"""The project's habits: ``nox`` runs them all, ``nox -s NAME`` one, ``nox -l`` lists them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
DIST = ROOT / ".nox" / "dist"
NOTES = ROOT / ".nox" / "not-run"
SECOND_TRIES = 3
# a file's tests stay together, as they share servers and trained runs
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
# bytecode that may not be kept is compiled again by every process that the tests start
KEEPS = {"PYTHONDONTWRITEBYTECODE": ""}
# most sessions use one core, or wait: two that run at a time take little longer than one
AT_A_TIME = 2
# what fails soonest, then the longest, so that both ends come together; figures last, when little runs beside
ORDER = (
    "lint", "typing", "docs", "kubernetes", "tests", "ray", "minimums", "torch", "faults", "wheel", "plugins",
    "thirdparty", "fuzz", "browser", "targets", "audit", "startup", "bench",
)  # fmt: skip
MADE = "UNFOLD_WORK_IS_MADE"

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["all", "gaps"]


@nox.session(name="all", python=False, requires=["work"])
def everything(session: nox.Session) -> None:
    """Run every session, two at a time; each is told in one piece, when it has ended."""
    failed = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        waiting = {pool.submit(carried_out, session, name): name for name in ORDER}
        try:
            for ended in as_completed(waiting):
                session.log(f"{waiting[ended]}\n{ended.result().stdout}")
                failed += [waiting[ended]] if ended.result().returncode else []
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        session.error(f"failed: {', '.join(failed)}; see above")


@nox.session
def work(session: nox.Session) -> None:
    """Make the environment that most sessions share: the built wheel, and what development needs."""
    if MADE in os.environ:
        return
    for told in NOTES.glob("*.again"):
        told.unlink()
    session.install("hatchling")
    session.run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", str(fresh(DIST)), silent=True)
    session.install(*nox.project.dependency_groups(PROJECT, "dev"), built())
    session.install("--force-reinstall", "--no-deps", built())


@nox.session(python=False, requires=["work"])
def lint(session: nox.Session) -> None:
    """Check format, lint rules and who imports whom."""
    run_in_work(session, "ruff", "format", "--check", ".")
    run_in_work(session, "ruff", "check", *session.posargs, ".")
    run_in_work(session, "lint-imports", silent=True)


@nox.session(python=False, requires=["work"])
def typing(session: nox.Session) -> None:
    """Check the types, strictly."""
    run_in_work(session, "mypy", *session.posargs)


@nox.session(python=False, requires=["work"])
def docs(session: nox.Session) -> None:
    """Check that generated pages are current, links resolve, and commands on the pages are real; build the site."""
    run_in_work(session, "python", "-m", "docs.generate", "--check")
    run_in_work(session, "python", "-m", "pytest", "-q", "--doctest-modules", "src", "docs/generators")
    run_in_work(session, "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place(session) / "site"))
    run_in_work(session, "python", "-m", "docs.web.check", str(place(session) / "site"))
    run_tests(session, "-q", "tests/docs", *session.posargs, program=in_work("python"))


@nox.session(python=False, requires=["work"])
def tests(session: nox.Session) -> None:
    """Test the built and installed wheel, not the source beside it."""
    result = place(session) / "tests.xml"
    elsewhere = [f"--ignore=tests/{name}" for name in ("docs", "browser", "faults", "thirdparty")]
    words = [*SIDE_BY_SIDE, *elsewhere, *session.posargs]
    run_tests(session, *words, program=in_work("python"), once=[f"--junitxml={result}"])
    note(session, *skipped(result))


@nox.session(reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, compare them with the folders, and use the wheel in a clean environment."""
    session.install("build")
    folder = fresh(place(session) / "dist")
    session.run("python", "-m", "build", "--installer", installer(), "--outdir", str(folder), ".", silent=True)
    made = str(next(folder.glob("*.whl")))
    session.run("python", "-m", "tests.wheels", "held", made)
    session.install("--force-reinstall", made, "pip", "pytest")
    session.run("python", "-m", "tests.wheels", "used", env=KEEPS)


@nox.session(requires=["work"])
def browser(session: nox.Session) -> None:
    """Look at the live page with the machine's Chromium."""
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        note(session, "there is no Chromium on the path (Debian: apt-get install chromium)")
        return
    note(session)
    session.install(*nox.project.dependency_groups(PROJECT, "test", "browser"), built())
    run_tests(session, "-q", "tests/browser", *session.posargs)


@nox.session(requires=["work"])
def faults(session: nox.Session) -> None:
    """Do to a real server what goes wrong in production."""
    session.install(*nox.project.dependency_groups(PROJECT, "test", "faults"), built())
    run_tests(session, "-q", "tests/faults", "tests/unit/serving/test_observe.py", *session.posargs)


@nox.session(requires=["work"])
def audit(session: nox.Session) -> None:
    """Ask the database of known weaknesses about every dependency, where it can be reached."""
    note(session)
    session.install(built())
    folder = place(session)
    listed = session.run("uv", "pip", "freeze", "-p", session.virtualenv.location, silent=True, external=True)
    wanted = folder / "installed.txt"
    wanted.write_text("".join(f"{line}\n" for line in str(listed).splitlines() if "==" in line), encoding="utf-8")
    session.install("pip-audit")
    words = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-r", str(wanted), *session.posargs]
    told = str(session.run("pip-audit", *words, silent=True, success_codes=[0, 1]))
    unknown = told.count("could not be audited")
    if re.search(r"ConnectionError|ServiceError|Max retries|Name or service|HTTPError|timed out", told):
        note(session, "pip-audit cannot reach its database from here")
    elif unknown:
        note(session, f"pip-audit cannot ask its database of {unknown} packages from here")
    elif "No known vulnerabilities found" in told:
        session.log(told)
    else:
        session.error(told)


@nox.session(python=False, requires=["work"])
def startup(session: nox.Session) -> None:
    """Measure how long help and check take; prints, asserts nothing."""
    run_in_work(session, "python", "-m", "benchmarks", "startup", "--quick", *session.posargs)


@nox.session(requires=["work"])
def minimums(session: nox.Session) -> None:
    """Test rooms and plugins with the lowest versions that pyproject allows."""
    note(session)
    constraints = place(session) / "minimums.txt"
    constraints.write_text("".join(f"{line}\n" for line in lower_bounds()), encoding="utf-8")
    session.install(*nox.project.dependency_groups(PROJECT, "test"), "--constraint", str(constraints), built())
    # where libraries are called; the rest of the suite would say the same twice
    words = [
        "-q",
        *SIDE_BY_SIDE,
        "tests/unit",
        "plugins",
        "-m",
        "not shared and not ray and not targets and not torch and not kubernetes",
    ]
    run_tests(session, *words, *session.posargs)
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    if lowest != f"{sys.version_info.major}.{sys.version_info.minor}":
        note(session, f"the lowest versions ran on Python {sys.version.split()[0]}, not {lowest}")


@nox.session(requires=["work"])
def torch(session: nox.Session) -> None:
    """Test what needs the extra torch, in an environment that has it."""
    session.install(*nox.project.dependency_groups(PROJECT, "test"), f"unfoldkit[torch] @ {Path(built()).as_uri()}")
    run_tests(session, "-q", "-m", "torch", *marked("torch"), *session.posargs)


@nox.session(python=False, requires=["work"])
def fuzz(session: nox.Session) -> None:
    """Feed ten thousand broken specs to the loader."""
    if not (ROOT / "tests/fuzz/fuzz_specs.py").is_file():
        note(session, "tests/fuzz/fuzz_specs.py is not in this checkout")
        return
    note(session)
    run_in_work(session, "python", "-m", "tests.fuzz.fuzz_specs", *(session.posargs or ["--count", "10000"]))


@nox.session(requires=["work"])
def ray(session: nox.Session) -> None:
    """Test what needs Ray, in an environment that has it; a process a folder, as one cannot change its cluster."""
    note(session)
    session.install(*nox.project.dependency_groups(PROJECT, "test"), f"{built()}[ray]")
    take_machine_code(session)
    for folder in marked("ray"):
        run_tests(session, "-q", "-m", "ray", folder, *session.posargs)


@nox.session(requires=["work"])
def targets(session: nox.Session) -> None:
    """Hold exported plans against the clients of KServe and Triton."""
    note(session)
    session.install(*nox.project.dependency_groups(PROJECT, "test"), "kserve", "tritonclient", "protobuf", built())
    run_tests(session, "-q", "-m", "targets", *marked("targets"), *session.posargs)


@nox.session(requires=["work"])
def kubernetes(session: nox.Session) -> None:
    """Place tasks on a real control plane, whose programs are built once and kept in the user's cache."""
    note(session)
    session.install(
        *nox.project.dependency_groups(PROJECT, "test"), f"unfoldkit[kubernetes] @ {Path(built()).as_uri()}"
    )
    # the first time, Go takes minutes; 69: there is no Go
    told = str(session.run("python", "-m", "tests.kubernetes.build", success_codes=[0, 69], silent=True)).strip()
    if not Path(told).is_dir():
        note(session, told)
        return
    take_machine_code(session)
    run_tests(session, "-q", "plugins/placement", "-m", "kubernetes", *session.posargs)


@nox.session
def plugins(session: nox.Session) -> None:
    """Build each plugin's folder alone, as a third party would."""
    session.install("build", "hatchling")
    session.run("python", "-m", "tests.wheels", "alone", str(place(session)), silent=True)


@nox.session(requires=["work"], reuse_venv=False)
def thirdparty(session: nox.Session) -> None:
    """Install a plugin of somebody else beside the wheel, in a fresh environment, and use it from spec to report."""
    session.install(built(), "./examples/plugin-storage", "hypothesis", "pytest", "pytest-timeout")
    run_tests(session, "-q", "tests/thirdparty", "examples/plugin-storage", *session.posargs)


@nox.session(python=False, requires=["work"])
def bench(session: nox.Session) -> None:
    """Run every benchmark quickly, starting none after four minutes."""
    words = session.posargs or ["--all", "--quick", "--seconds", "240"]
    told = run_in_work(session, "python", "-m", "benchmarks", *words, silent=True)
    session.log("\n" + told)
    note(session, *(line for line in told.splitlines() if "NOT RUN" in line))


@nox.session(python=False)
def gaps(session: nox.Session) -> None:
    """Print what the sessions before could not run, and why."""
    found = [f"{path.stem}: {line}" for path in sorted(NOTES.glob("*.txt")) for line in path.read_text().splitlines()]
    session.log(f"could not run: {len(found)}" + "".join(f"\n  {line}" for line in found))
    again = [line for path in sorted(NOTES.glob("*.again")) for line in path.read_text().splitlines()]
    session.log(f"failed once and passed the second time: {len(again)}" + "".join(f"\n  {line}" for line in again))


def carried_out(session: nox.Session, name: str) -> subprocess.CompletedProcess[str]:
    """Run a session in a nox of its own, for which ``work`` is there already, and return what it said."""
    session.log(f"{name} begins")
    words = [sys.executable, "-m", "nox", "-f", str(Path(__file__)), "-s", name]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(words, env={**os.environ, MADE: "1"}, check=False, **streams)  # noqa: S603


def built() -> str:
    """Return the wheel of this checkout."""
    return str(next(DIST.glob("*.whl")))


def in_work(program: str) -> str:
    """Return the path of a program of the shared environment."""
    folder = next(path for path in (ROOT / ".nox/work/bin", ROOT / ".nox/work/Scripts") if path.is_dir())
    return str(folder / program)


def run_in_work(session: nox.Session, program: str, *words: str, silent: bool = False) -> str:
    """Run a program of the shared environment."""
    return str(session.run(in_work(program), *words, env=KEEPS, external=True, silent=silent))


def take_machine_code(session: nox.Session) -> None:
    """Take over what numba compiled in the shared environment, half a minute of work; numba checks that it fits."""
    work, own = ROOT / ".nox" / "work", Path(session.virtualenv.location)
    for made in work.glob("lib/*/site-packages/unfold*/**/*.nb[ci]"):
        place = own / made.relative_to(work)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(made, place)


def marked(name: str) -> list[str]:
    """Return the folders whose tests carry a mark: to collect all others takes longer than to run some."""
    every = (path for top in ("tests", "plugins") for path in (ROOT / top).rglob("*.py"))
    folders = {path.parent for path in every if f"mark.{name}" in path.read_text("utf-8")}
    return sorted(str(folder.relative_to(ROOT)) for folder in folders if folders.isdisjoint(folder.parents))


def run_tests(session: nox.Session, *words: str, program: str = "python", once: Sequence[str] = ()) -> None:
    """Run pytest; up to three tests that fail are run once more by themselves, and ``gaps`` names them.

    Many tests start servers and clusters, and a busy machine may start one of them too late.
    """
    cache = fresh(place(session) / "cache")
    call = [program, "-m", "pytest", "-o", f"cache_dir={cache}", *words]
    try:
        session.run(*call, *once, env=KEEPS, external=True)
    except CommandFailed:
        names = failures(cache)
        if not 0 < len(names) <= SECOND_TRIES:
            raise
        session.run(*call, "--last-failed", env=KEEPS, external=True)
        NOTES.mkdir(parents=True, exist_ok=True)
        with (NOTES / f"{session.name}.again").open("a", encoding="utf-8") as told:
            told.writelines(f"{session.name}: {name}\n" for name in names)


def failures(cache: Path) -> list[str]:
    """Return the tests that failed, by what pytest left in its cache."""
    found = cache / "v" / "cache" / "lastfailed"
    return list(json.loads(found.read_text("utf-8"))) if found.is_file() else []


def lower_bounds() -> Iterator[str]:
    """Yield ``name==version`` for every lower bound of the dependencies."""
    for line in PROJECT["project"]["dependencies"]:
        found = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", line)
        if found is None:
            raise ValueError(f"{line!r} has no lower bound")
        yield f"{found[1]}=={found[2]}"


def skipped(result: Path) -> list[str]:
    """Return each reason for which pytest skipped tests, with their number."""
    # the file was written a moment ago by our own pytest
    reasons = [item.get("message", "") for item in ET.parse(result).iter("skipped")]  # noqa: S314
    return [f"{reasons.count(reason)} tests: {reason}" for reason in dict.fromkeys(reasons)]


def note(session: nox.Session, *lines: str) -> None:
    """Keep what a session could not run, for ``gaps``; with no line, forget what it said before."""
    NOTES.mkdir(parents=True, exist_ok=True)
    (NOTES / f"{session.name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        session.warn(line)


def place(session: nox.Session) -> Path:
    """Return the session's folder for its own files."""
    # not session.create_tmp: it moves TMPDIR into the checkout, whose settings the tests' programs would then find
    folder = ROOT / ".nox" / "files" / session.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def installer() -> str:
    """Return what ``build`` installs with: uv where it is, as for the sessions."""
    return "uv" if shutil.which("uv") else "pip"


def fresh(folder: Path) -> Path:
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    nox.main()
