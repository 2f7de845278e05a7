"""Policies that raise, hang or yield nonsense: reported with file and line, in plan, in verify and live."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plugins.placement.tests.cases import cluster, job
from plugins.placement.tests.live.worlds import local_world
from unfold_placement.core import watchdog
from unfold_placement.core.cluster_view import View
from unfold_placement.core.controller import build_controller
from unfold_placement.core.policy import Policy
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import BEGAN, QUEUE, SUBMITTED, TIMER, Ask, Drop, Event, Put, Refuse, Task, Wake
from unfold_placement.core.watchdog import contain_policies, interrupt_stalled_policies
from unfold_placement.live import backend as kinds
from unfold_placement.live import control_loop, recovery
from unfold_placement.live import service as service_module
from unfold_placement.live import status as status_module
from unfold_placement.live.backend import Record
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.service import ControllerThread
from unfold_placement.live.status import build_dashboard, read_status, status_to_json
from unfold_placement.policies.registry import PolicyRule
from unfold_placement.simulation.simulator import simulate
from unfold_placement.verification.scenario import Kind, Scenario
from unfold_placement.verification.search import LIVELOCK, search
from unfold_placement.workload.build import protect_tasks
from unfoldkit.api import UnfoldError

pytestmark = pytest.mark.timed

Yielded = Callable[[Task], Any]


@dataclass(slots=True)
class Misbehaving:
    """Admits tasks, and yields something else for the jobs named ``bad``."""

    yielded: Yielded
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Iterator[Any]:
        del view
        assert event.task is not None
        if event.task.job.startswith("bad"):
            yield self.yielded(event.task)
        yield [Put(f"turn-{event.task.name}", until=event.task.name)]


def _raise(_task: Task) -> Any:
    raise ZeroDivisionError("a score of nothing")


def _exit(_task: Task) -> Any:
    raise SystemExit(0)


def _close(_task: Task) -> Any:
    raise GeneratorExit


def _interrupt(_task: Task) -> Any:
    raise KeyboardInterrupt


NONSENSE: dict[str, tuple[Yielded, str]] = {
    "raises": (_raise, "a score of nothing"),
    "exits": (_exit, "react raised SystemExit"),
    "closes itself": (_close, "react raised GeneratorExit"),
    "NaN": (lambda _: [Put("x", "n0", float("nan"))], "nan, not a whole number"),  # type: ignore[arg-type]
    "negative": (lambda _: [Put("x", "n0", -1)], "-1, not a whole number"),
    "more than any node": (lambda _: [Put("x", "n0", 1 << 70)], "not a whole number"),
    "unknown node": (lambda _: [Put("x", "n00")], "no node n00"),
    "no node": (lambda _: [Drop("x", None)], "no node None"),  # type: ignore[arg-type]
    "unknown task": (lambda _: [Refuse("absent", "why not")], "no task absent"),
    "a reason that is no text": (lambda task: [Refuse(task.name, 7)], "reason to reject bad"),  # type: ignore[arg-type]
    "a task that ended": (lambda _: [Put("x", until="absent")], "a task that does not exist: absent"),
    "a timer that never fires": (lambda _: [Wake(float("nan"))], "never fires"),
    "no operation": (lambda _: [("Put", "x")], "must return a Put, Drop, Wake or Refuse"),
    "a number": (lambda _: 7, "a list of operations"),
    "an endless list": (lambda _: (Put(f"x{i}", "n0") for i in itertools.count()), "operations"),
    "a huge list of one node": (lambda _: [Put("x", "n7")] * 50, "no node n7"),
    "a task for its name": (lambda task: [Put("x", "n0", until=task)], "write 'bad-0', as in until=task.name"),
    "the rejection of a task": (lambda task: [Refuse(task, "no")], "write 'bad-0', as in Refuse(task.name, reason)"),
    "an unnamed resource": (lambda _: [Put("", "n0")], "name of a resource"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_reported_with_file_and_line(case: str) -> None:
    """A replay ends with the policy, this file and the line that yielded it."""
    yielded, message = NONSENSE[case]
    with pytest.raises(UnfoldError, match="policy Misbehaving") as error:
        simulate(cluster(2), job("bad", 2), [Misbehaving(yielded)])
    found = error.value.diagnostics[0]
    assert message in f"{found.message} {found.hint}"
    assert Path(found.file) == Path(__file__)
    assert found.line > 0


def test_a_forked_process_ends_where_it_leaves_the_policy(capfd: pytest.CaptureFixture[str]) -> None:
    """It would replay, decide and report a second time."""
    children: list[int] = []

    def fork(_task: Task) -> Any:
        if not children:
            children.append(os.fork())
        return []

    with contain_policies(lambda _: None):
        simulate(cluster(2), job("bad", 2), [Misbehaving(fork)])
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 2
    assert "a process that it forked returned from react and was ended" in capfd.readouterr().err


def test_a_timer_of_a_policy_does_not_end_the_process() -> None:
    """The policy that set it is reported, and no timer outlives the plan."""

    def set_timer(_task: Task) -> Any:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
        return [Put(f"x{sum(range(10**7))}", "n0")]

    with (
        pytest.raises(UnfoldError, match=r"policy has set .*SIGVTALRM"),
        contain_policies(lambda _: None),
    ):
        simulate(cluster(2), job("bad", 2), [Misbehaving(set_timer)])
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_the_working_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder is relative to it: its files would be written somewhere else."""
    monkeypatch.chdir(tmp_path)
    with contain_policies(lambda _: None):
        simulate(cluster(2), job("bad", 2), [Misbehaving(lambda _: os.chdir("/") or [])])  # type: ignore[func-returns-value]
    assert Path.cwd() == tmp_path


def test_a_policy_cannot_lower_the_recursion_limit() -> None:
    """It is that of the whole program, which failed anywhere else without naming the policy; raising it is fine."""
    limit = sys.getrecursionlimit()
    with (
        pytest.raises(UnfoldError, match=r"test_misbehaving_policies.py:\d+: .*a recursion limit of 90: it is that of"),
        contain_policies(lambda _: None),
    ):
        simulate(cluster(2), job("bad", 2), [Misbehaving(lambda _: sys.setrecursionlimit(90) or [])])  # type: ignore[func-returns-value]
    with contain_policies(lambda _: None):
        simulate(cluster(2), job("bad", 2), [Misbehaving(lambda _: sys.setrecursionlimit(limit + 1) or [])])  # type: ignore[func-returns-value]
        sys.setrecursionlimit(limit - 1)
    assert sys.getrecursionlimit() == limit


def test_a_task_may_be_rejected_twice() -> None:
    """Two policies may reject one task, and one may do so twice: the first reason counts."""

    def reject(reasons: list[str]) -> Policy:
        return Misbehaving(lambda task: [Refuse(task.name, reason) for reason in reasons])

    result = simulate(cluster(2), job("bad", 2), [reject(["full", "again"]), reject(["late"])])
    assert set(result.rejections.values()) == {"full"}


@pytest.mark.parametrize("case", ["raises", "NaN", "unknown node", "an endless list"])
def test_verify_reports_nonsense_as_a_finding(case: str) -> None:
    """A search finds it with the actions that lead there."""
    kind = Kind("bad", (Task("", {"gpu": 1000}, 60.0),))
    scenario = Scenario(tuple(cluster(1)), (kind,), "bad", 2)
    (finding,) = search(scenario, [Misbehaving(NONSENSE[case][0])], 100).findings
    assert finding.property_name == LIVELOCK
    assert re.match(r"test_misbehaving_policies\.py:\d+: policy Misbehaving", finding.message)
    assert NONSENSE[case][1].split(",")[0] in finding.message or case == "an endless list"


@pytest.mark.parametrize("case", NONSENSE)
def test_a_live_cluster_keeps_its_last_good_decision(case: str) -> None:
    """What runs goes on, nothing else starts, and the status names policy and file until it decides again."""
    world = local_world(cluster(2))
    live = ControlLoop(world.handle(), lambda: [Misbehaving(NONSENSE[case][0])], "me", "spec", 1e6, 2e6)
    for task in job("good", 2, run=1e5):
        world.submit(task)
    live.step(0.0)
    live.step(0.0)
    for task in job("bad", 1, run=1e5):
        world.submit(task)
    for _ in range(5):
        live.step(0.0)
    states = {name: item.state for name, item in world.register.records.items()}
    assert states == {"good-0": kinds.RUNNING, "good-1": kinds.RUNNING, "bad-0": kinds.WAITING}
    status = status_to_json(read_status(live))
    assert "policy Misbehaving" in status["error"]
    assert "test_misbehaving_policies.py" in status["error"]
    assert [(item["task"], item["node"]) for item in status["runs"]] == [("good-0", "n0"), ("good-1", "n0")]
    assert status["nodes"] == ["n0", "n1"]
    assert status["waiting"] == 1
    assert status["waits"][0]["why"].startswith("no decision is made: ")
    assert status["decided_s"] > 0
    assert any("policy Misbehaving" in tile.note for tile in build_dashboard("spec", live)().tiles)
    world.register.withdraw("bad-0")
    for _ in range(3):
        live.step(0.0)
    assert status_to_json(read_status(live))["error"] == ""
    assert live.actuator is not None


def test_a_process_that_gave_up_is_no_standby() -> None:
    """After many errors it leaves leadership to others, and its status holds what runs and the error."""
    world = local_world(cluster(1))
    live = ControlLoop(world.handle(), lambda: [Misbehaving(_raise)], "me", "spec", 1e6, 2e6)
    for task in job("good", 1, run=1e5):
        world.submit(task)
    live.step(0.0)
    for task in job("bad", 1):
        world.submit(task)
    with pytest.raises(UnfoldError, match="a score of nothing"):
        control_loop.run_until_stopped(live, lambda: False, lambda _: None)
    status = status_to_json(read_status(live))
    assert (status["leads"], status["role"]) == (False, "failing")
    assert [item["task"] for item in status["runs"]] == ["good-0"]
    assert "a score of nothing" in status["error"]
    assert world.handle().lead("another", 1e6)
    live.step(0.0)
    status = status_to_json(read_status(live))
    assert (status["role"], status["runs"], status["error"]) == ("standby", [], "")


def test_a_policy_that_raises_an_interrupt_does_not_end_the_thread() -> None:
    """The service goes on, and its status names the line."""
    world = local_world(cluster(1))
    live = ControlLoop(world.handle(), lambda: [Misbehaving(_interrupt)], "me", "spec", 1e6, 2e6)
    for task in job("bad", 1):
        world.submit(task)
    service = ControllerThread(live)
    service.start()
    end = time.monotonic() + 100
    while "test_misbehaving_policies.py" not in status_to_json(read_status(live))["error"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert service.thread is not None
    assert service.thread.is_alive()
    assert not service.is_healthy
    service.stop()


def test_a_service_that_decides_again_is_ready() -> None:
    """The error for which it gave up once no longer counts, not even while it reads the cluster anew."""
    world = local_world(cluster(1))
    faults: list[Yielded] = [_interrupt]
    live = ControlLoop(world.handle(), lambda: [Misbehaving(faults[-1])], "me", "spec", 3.0, 1e6)
    for task in job("bad", 1):
        world.submit(task)
    service = ControllerThread(live)
    service.start()
    end = time.monotonic() + 30
    while "test_misbehaving_policies.py" not in live.last_error:
        assert time.monotonic() < end
        time.sleep(0.05)
    faults.append(lambda task: [Put(f"turn-{task.name}", until=task.name)])
    while not service.is_healthy:
        assert time.monotonic() < end, live.last_error
        world.clock.time += 1.0
        time.sleep(0.05)
    live.actuator = None
    assert (live.last_error, service.last_error) == ("", "")
    service.stop()


def test_a_service_loads_the_matcher_before_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes seconds, in which the lease of a process that has just taken over would end."""
    live = ControlLoop(local_world(cluster(1)).handle(), list, "me", "spec", 1e6, 2e6)
    led_before = list[bool]()
    errors = list[str]()
    load_matcher = service_module.load_matcher

    def load() -> None:
        led_before.append(live.is_leader)
        errors.append(status_to_json(read_status(live))["error"])
        load_matcher()

    monkeypatch.setattr(service_module, "load_matcher", load)
    service = ControllerThread(live)
    service.start()
    end = time.monotonic() + 100
    while not live.is_leader:
        assert time.monotonic() < end
        time.sleep(0.05)
    service.stop()
    assert led_before == [False]
    assert errors == [service_module.LOADING]


def test_a_controller_that_leads_compiles_nothing() -> None:
    """Compiling takes seconds, too: with the first gang, or the first task that is withdrawn, the lease would end."""
    outcome = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, timeout=100, check=False)
    assert outcome.stdout == "compiled []\n", outcome.stderr


COMPILES = """
from numba.core.dispatcher import Dispatcher
from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.worlds import local_world
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.service import load_matcher
from unfold_placement.policies.registry import build_policies

load_matcher()
names, compile_types = [], Dispatcher.compile
Dispatcher.compile = lambda self, types: names.append(self.py_func.__name__) or compile_types(self, types)
rules = policy(gang={}, priority={"preempt": True}, limit={"most": 3, "by": "user"})
world = local_world(cluster(3))
live = ControlLoop(world.handle(), lambda: build_policies(rules), "me", "spec", 1e6, 2e6)
for task in [*job("a", 2, run=1e5), *job("b", 3, run=1e5), *job("c", 9, run=1e5)]:
    world.submit(task)
    live.step(0.0)
live.backend.withdraw("a-0")
live.backend.withdraw("c-0")
live.step(0.0)
live.actuator = None
live.step(0.0)
print("compiled", names)
"""


def hang(policy_hangs: Callable[[], object]) -> Policy:
    """Return a policy that calls something as a task arrives."""

    @dataclass(slots=True)
    class Hanging:
        phase: ClassVar[int] = QUEUE
        watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

        def request(self, task: Task) -> Iterable[Ask]:
            del task
            return ()

        def react(self, event: Event, view: View) -> Iterator[Any]:
            del event, view
            policy_hangs()
            yield []

    return Hanging()


def spin(end_s: float = math.inf) -> None:
    """Compute until a processor time."""
    while time.process_time() < end_s:
        pass


@pytest.mark.parametrize("wait", [spin, lambda: time.sleep(1e4)], ids=["spins", "sleeps"])
def test_a_policy_that_hangs_is_interrupted_with_its_line(wait: Callable[[], None]) -> None:
    """The error names the policy and a line of its file, whether it computes or waits."""
    with (
        pytest.raises(UnfoldError, match=r"policy Hanging: it has not returned from react for \d+ s") as error,
        interrupt_stalled_policies(0.2),
    ):
        simulate(cluster(1), job("a", 1), [hang(wait)])
    assert Path(error.value.diagnostics[0].file) == Path(__file__)


def test_many_short_calls_are_no_long_one() -> None:
    """A policy that asks a server 0.1 s at each event is looked at within a call every time, but never in the same."""
    warnings: list[str] = []
    with interrupt_stalled_policies(0.2, warnings.append):
        for _ in range(15):
            assert simulate(cluster(1), job("a", 1), [hang(lambda: time.sleep(0.1))]).stuck == ()
    assert warnings == []


def test_a_policy_that_computes_for_long_is_named_before_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names its file, once for each method; the time in which a function is compiled does not count."""
    monkeypatch.setattr(watchdog, "WARN_S", 0.2)
    scope: dict[str, Any] = {}
    source = "def compute(now, end):\n    while now() < end: pass\n"
    exec(compile(source, str(Path("/numba/compiler.py")), "exec"), scope)  # noqa: S102
    warnings: list[str] = []
    with interrupt_stalled_policies(4.0, warnings.append):
        compiles = hang(lambda: scope["compute"](time.process_time, time.process_time() + 0.8))
        simulate(cluster(1), job("a", 1), [compiles])
        assert warnings == []
        simulate(cluster(1), job("b", 2), [hang(lambda: spin(time.process_time() + 0.8))])
    assert len(warnings) == 1
    assert re.search(r"policies.py:\d+: .*policy Hanging: it has not returned from react for \d+ s", warnings[0])
    assert warnings[0].endswith("it is stopped after 4 s of computing")


def test_a_live_policy_that_hangs_is_named_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status answers while the policy has the controller, and holds its file and line."""
    monkeypatch.setattr(control_loop, "STALL_S", 0.2)
    monkeypatch.setattr(status_module, "LOCK_TIMEOUT_S", 0.2)
    released = threading.Event()
    world = local_world(cluster(1))
    admits = Misbehaving(lambda _: [])
    hangs = hang(lambda: released.wait() if world.register.records.keys() & {"a-0"} else None)
    live = ControlLoop(world.handle(), lambda: [admits, hangs], "me", "spec", 1e6, 2e6)
    for task in job("good", 1, run=1e5):
        world.submit(task)
    live.step(0.0)
    for task in job("a", 1):
        world.submit(task)
    thread = threading.Thread(target=live.step, args=(0.0,), daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not (error := status_to_json(read_status(live))["error"]).startswith(__file__):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "policy Hanging: it has not returned from react" in error
    assert [item["task"] for item in status_to_json(read_status(live))["runs"]] == ["good-0"]
    released.set()
    thread.join(10)
    assert status_to_json(read_status(live))["error"] == ""


@dataclass(slots=True)
class Ticking:
    """Wakes itself ten times a second for ever, and admits every task."""

    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = frozenset({BEGAN, TIMER, SUBMITTED})
    wakes: int = 0

    def request(self, task: Task) -> Iterable[Ask]:
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Iterator[Any]:
        if event.task is not None:
            yield [Put(f"turn-{event.task.name}", until=event.task.name)]
            return
        self.wakes += 1
        yield [Wake(view.now + 0.1)]


def test_a_policy_that_always_wakes_takes_over_an_old_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a cluster counts from its first day: a new leader does not replay the timers of all its months."""
    monkeypatch.setattr(recovery, "MAX_REPLAYED_WAKES", 100)
    month_s = 30 * 86_400.0
    policy = Ticking()
    controller = build_controller(build_resource_table(cluster(1)), [policy])
    old, new = job("old", 1)[0], job("new", 1)[0]
    past = Record(old, state=kinds.DONE, node="n0", started=0.0, ended=10.0)
    assert recovery.adopt_cluster(controller, [past, Record(new)], month_s) == {}
    assert policy.wakes <= 103
    assert controller.table.now == month_s
    controller.process_events()
    assert controller.view.is_running(new)


def test_a_status_does_not_depend_on_what_a_policy_says_of_itself() -> None:
    """A ``describe_wait`` that raises is named with the task that it was asked about."""

    class Mute(Ticking):
        def react(self, event: Event, view: View) -> Iterator[Any]:
            del event, view
            yield []

        def describe_wait(self, task: Task, view: View) -> None:
            raise ZeroDivisionError(task.name)

    world = local_world(cluster(1))
    live = ControlLoop(world.handle(), lambda: [Mute()], "me", "spec", 1e6, 2e6)
    for task in job("a", 1):
        world.submit(task)
    live.step(0.0)
    live.step(0.0)
    (waiting,) = status_to_json(read_status(live))["waits"]
    assert "cannot be explained: " in waiting["why"]
    assert "describe_wait raised ZeroDivisionError: a-0" in waiting["why"]


def test_a_quick_policy_is_never_interrupted() -> None:
    """Many short calls are not one long one."""
    with interrupt_stalled_policies(0.2):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            simulate(cluster(1), job("good", 3), [Misbehaving(lambda _: [])])


def test_a_policy_cannot_change_what_tasks_demand() -> None:
    """Of a user's policy the demands are read-only, so that no report counts what it wrote there."""
    rules = (PolicyRule("own", {"policy": "own:Greedy", "options": {}}),)
    (task,) = protect_tasks(job("bad", 1), rules)

    def take_all(task: Task) -> Any:
        task.demand["gpu"] = 0  # type: ignore[index]

    with pytest.raises(UnfoldError, match="does not support item assignment") as error:
        simulate(cluster(1), [task], [Misbehaving(take_all)])
    assert error.value.diagnostics[0].line > 0
    (unchanged,) = protect_tasks([task], ())
    assert unchanged is task
    assert simulate(cluster(1), protect_tasks(job("a", 1), rules)).end_s.tolist() == [10.0]
