"""Modules import where the system has no fcntl, no SIGHUP and no fork, as on Windows; macOS lacks fewer."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

POSIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
POSIX_NAMES = {
    "os": {
        *("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "nice", "register_at_fork"),
        *(
            "sched_getaffinity",
            "sched_setaffinity",
            "setsid",
            "statvfs",
            "sysconf",
            "uname",
            "O_DIRECTORY",
            "O_NOFOLLOW",
        ),
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "SIGPIPE", "alarm", "pthread_sigmask"},
    "socket": {"AF_UNIX", "SO_REUSEPORT", "socketpair", "SCM_RIGHTS"},
    "select": {"epoll", "poll", "kqueue"},
    "time": {"tzset", "clock_gettime"},
}
"""What Windows lacks of modules that it has."""
IMPORT_ALL = """
import builtins, importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
blocked = set(sys.argv[1].split(","))
packages = sys.argv[2].split(",")
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in blocked and importer.partition(".")[0] in packages:
        raise ModuleNotFoundError(f"{importer} imports {name}", name=name)
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
count = 0
for package in packages:
    for info in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if info.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if error.name in blocked or (error.name or "").partition(".")[0] in packages:
                raise
            continue
        count += 1
print(count)
"""
PACKAGES = (
    "unfoldkit",
    "unfold_cascade",
    "unfold_echo",
    "unfold_pipeline",
    "unfold_placement",
    "unfold_supernet",
    "unfold_tuning",
)


def list_sources() -> list[Path]:
    return sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/unfold_*/**/*.py")])


def walk_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)):
                yield part
                yield from walk_import_time(part)
        elif isinstance(child, ast.AnnAssign):
            # annotations are not evaluated
            if child.value is not None:
                yield child.value
                yield from walk_import_time(child.value)
        elif isinstance(child, ast.Lambda):
            continue
        else:
            yield child
            yield from walk_import_time(child)


def find_posix(source: str) -> list[str]:
    """Return what a module needs of POSIX at its import."""
    needed: list[str] = []
    for node in walk_import_time(ast.parse(source)):
        if isinstance(node, ast.Import):
            needed += [alias.name for alias in node.names if alias.name.partition(".")[0] in POSIX_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = POSIX_NAMES.get(node.module or "", set())
            needed += [alias.name for alias in node.names if alias.name in names]
            needed += [str(node.module)] if node.module in POSIX_MODULES else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            needed += [node.attr] if node.attr in POSIX_NAMES.get(node.value.id, set()) else []
    return needed


def test_the_check_finds_what_runs_at_import() -> None:
    """Imports, names, defaults and decorators count; bodies of functions do not."""
    text = "import fcntl\nfrom signal import SIGHUP\nimport os\nX = os.fork\ndef f(a=os.getuid()):\n    import pwd\n"
    assert find_posix(text) == ["fcntl", "SIGHUP", "fork", "getuid"]
    assert find_posix("class A:\n    x = signal.SIGKILL\ndef f():\n    return os.fork()\n") == ["SIGKILL"]


def test_no_module_needs_posix_at_import() -> None:
    """Of all sources, none names at import what only POSIX has."""
    sources = list_sources()
    assert len(sources) > 400
    assert {str(path): needed for path in sources if (needed := find_posix(path.read_text("utf-8")))} == {}


@pytest.mark.e2e
def test_every_module_imports_without_the_modules_of_posix() -> None:
    """With these modules blocked for our packages, every module imports that its extras allow."""
    words = [sys.executable, "-c", IMPORT_ALL, ",".join(POSIX_MODULES), ",".join(PACKAGES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 400
