"""What every test session shares: trained runs, and the rule for second attempts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.second_attempts import SecondAttempts
from tests.support import ROOT, command, surroundings

TrainedRun = Callable[[str], Path]

# a failure found by chance would come and go: the same examples every time, few on one slow core, however slow it is
settings.register_profile(
    "house", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def _own_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the records of all tests and of their processes out of the user's state folder, and progress off stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("UNFOLD_PROGRESS", "0")
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_arrives() -> Iterator[None]:
    """Let SIGINT reach the processes that tests start, also where the suite itself runs in the background."""
    # a shell starts background jobs with SIGINT ignored, and a child inherits what is ignored
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _own_garbage() -> Iterator[None]:
    """Collect what a test leaves open before it ends: found later, it would fail another test."""
    yield
    gc.collect(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared data: that of UNFOLD_SHARED, or ``shared`` beside the checkout."""
    beside = Path(__file__).parents[1] / "shared"
    folder = Path(os.environ.get("UNFOLD_SHARED") or beside)
    if not folder.is_dir():
        pytest.skip(f"the shared data is not here: no folder {folder} (UNFOLD_SHARED names another)")
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TrainedRun:
    """Return a function that trains a shipped spec once for all workers, and returns the folder that holds ``runs``.

    The folder is shared: a test that changes the run copies it first.
    """
    # environments that train nothing do without it
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def train(spec: str) -> Path:
        folder = shared / f"trained-{spec.replace('/', '-')}"
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                folder.mkdir()
                words = command(["train", ROOT / "configs" / f"{spec}.yaml"])
                subprocess.run(words, cwd=folder, env=surroundings(), check=True, capture_output=True, timeout=600)  # noqa: S603
        return folder

    return train


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that leaves out repetitions of a test function."""
    parser.addoption("--first-parameters", action="store_true", help="run each test function with its first parameters")


def pytest_configure(config: pytest.Config) -> None:
    """Register the rule for second attempts."""
    config.pluginmanager.register(SecondAttempts())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--first-parameters``, keep one item of each test function."""
    if config.getoption("--first-parameters"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
