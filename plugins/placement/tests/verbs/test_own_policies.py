"""Policies of a user's own, from files beside a spec: loaded, kept within bounds, and reported with file and line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plugins.placement.tests.cases import cluster, job
from tests.support import Outcome, Unfold, call
from unfold_placement.core.policy import call_hook
from unfold_placement.core.watchdog import interrupt_stalled_policies
from unfold_placement.policies.registry import CUSTOM, PolicyRule, build_policies
from unfold_placement.simulation import simulator
from unfold_placement.simulation.audit import find_own_violations
from unfold_placement.simulation.simulator import simulate
from unfoldkit.api import UnfoldError

HEAD = """import time
from unfold_placement.core.types import BEGAN, MANY, QUEUE, QUIET, TIMER, Ask, Drop, Put, Refuse, Wait, Wake

class P:
    phase = QUEUE
    watches = frozenset({QUIET})

    def request(self, task):
        return [Ask("x-" + task.name, gated=True)]

    def react(self, event, view):
        for task in list(view.waiting()):
            if view.room([task], QUEUE):
                yield [Put("x-" + task.name, until=task.name)]
"""
SPEC = """version: 1
kind: placement
name: own
cluster: {nodes: [{count: 1, gpu: 1}]}
workload: {tasks: [{job: a, count: 2, gpu: 1, run: 10 s}]}
policy: {own: {policy: "MODULE:P"}}
"""
MENU = SPEC.replace("workload: {tasks: [{job: a, count: 2, gpu: 1, run: 10 s}]}\n", "")


@pytest.fixture
def unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unfold:
    """Return the command line as a function, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path, stdin: bytes | str = b"") -> Outcome:
        return call(words, stdin.encode() if isinstance(stdin, str) else stdin)

    return run


def write(folder: Path, module: str, code: str, spec: str = SPEC) -> None:
    """Write a policy and a spec that names it."""
    (folder / f"{module}.py").write_text(code, "utf-8")
    (folder / "spec.yaml").write_text(spec.replace("MODULE", module), "utf-8")


BROKEN = {
    "missing_package": ("import not_there\n" + HEAD, 1, "No module named 'not_there'"),
    "no_syntax": (HEAD + "def oops(:\n", 15, "SyntaxError"),
    "exits": ("import sys\nsys.exit(3)\n" + HEAD, 2, "SystemExit: 3"),
    "no_start": (HEAD + "    def __init__(self):\n        raise RuntimeError('no config')\n", 16, "no config"),
    "phase_of_text": (HEAD.replace("phase = QUEUE", "phase = 'queue'"), 11, "its phase is 'queue'"),
    "no_such_phase": (HEAD.replace("phase = QUEUE", "phase = -1"), 11, "its phase is -1"),
    "watches_a_text": (HEAD.replace("frozenset({QUIET})", "QUIET"), 11, "not a set of kinds"),
    "watches_nothing": (HEAD.replace("frozenset({QUIET})", "None"), 11, "its watches are None"),
    "watches_no_event": (HEAD.replace("frozenset({QUIET})", "{'finished'}"), 11, "'finished', which is not an event"),
    "unnamed": (HEAD.replace('"x-" + task.name, gated', '"", gated'), 8, "a request has a name"),
    "until_a_task": (HEAD.replace("until=task.name", "until=task"), 14, "write 'a-0', as in until=task.name"),
    "forces_an_array": (
        HEAD + "                yield [Drop('x-' + task.name, force=__import__('numpy').array([1, 0]))]\n",
        15,
        "force is True or False, not '[1 0]'",
    ),
    "raising_property": (
        HEAD.replace("    watches = frozenset({QUIET})", "    @property\n    def watches(self): return 1 / 0"),
        7,
        "cannot read the attributes of raising_property:P: ZeroDivisionError",
    ),
    "wait_of_text": (HEAD + "    def describe_wait(self, task, view): return 'soon'\n", 15, "must return a Wait"),
    "wait_raises": (HEAD + "    def describe_wait(self, task, view): return 1 / 0\n", 15, "ZeroDivisionError"),
    "audit_of_text": (HEAD + "    def audit(self, log): return 'bad'\n", 15, "not a text"),
    "audit_of_numbers": (HEAD + "    def audit(self, log): return [1]\n", 15, "must yield texts"),
    "widens_nodes": (HEAD + "            view.nodes[0].capacity['gpu'] = 9000\n", 15, "item assignment"),
    "shortens_runs": (HEAD.replace("        return", "        task.run_on['x'] = 0\n        return"), 9, "item assign"),
    "backdates": (
        HEAD + "            object.__setattr__(task, 'arrival', 5.0)\n            yield []\n",
        16,
        "arrival of a-",
    ),
    "grows_nodes": (
        HEAD + "        object.__setattr__(view.nodes[0], 'capacity', {'gpu': 9})\n",
        11,
        "capacity of node",
    ),
    "swaps_tasks": (
        HEAD + "        view.table.tasks[0] = view.table.tasks[1]\n        yield []\n",
        15,
        "item assignment",
    ),
    "reverses_tasks": (HEAD + "            view.table.tasks.reverse()\n", 15, "has no attribute 'reverse'"),
    "changes_in_request": (
        HEAD.replace("        return", "        object.__setattr__(task, 'run', 1.0)\n        return"),
        8,
        "it changed run of a-0 from 10.0 to 1.0",
    ),
    "shortens_time": (HEAD + "        view.table.state.run_s[:] = 1.0\n", 11, "ran for 1 s, not for 10 s"),
    "turns_back_time": (
        HEAD.replace("        for", "        view.table.state.clock[0] = 0.0\n        for"),
        11,
        "the clock went back from 10 s to 0 s",
    ),
    "ends_tasks": (HEAD + "        view.table.state.status[:] = 3\n", 11, "a-0 never ended"),
    "creates_another": (
        HEAD.replace('Put("x-', 'Put("y-'),
        11,
        "it lacks x-a-0",
    ),
    "ends_the_process": (HEAD + "            __import__('os')._exit(0)\n", 15, "react raised SystemExit: 0"),
    "cancelled": ("import asyncio\n" + HEAD + "            raise asyncio.CancelledError\n", 16, "CancelledError"),
    "interrupts": (HEAD + "            raise KeyboardInterrupt\n", 15, "KeyboardInterrupt"),
    "interrupts_at_import": ("raise KeyboardInterrupt\n" + HEAD, 1, "KeyboardInterrupt"),
    "unhashable_name": (
        HEAD.replace('Ask("x-" + task.name', 'Ask(N("x-" + task.name)')
        + "class N(str):\n    def __hash__(self):\n        raise GeneratorExit\n",
        17,
        "GeneratorExit",
    ),
    "no_message": (
        HEAD + "            class E(Exception):\n                __str__ = None\n            raise E\n",
        17,
        "react raised E",
    ),
    "endless_audit": (HEAD + "    def audit(self, log):\n        while True: yield 'bad'\n", 15, "returned more than"),
}


@pytest.mark.parametrize("module", BROKEN)
def test_a_broken_policy_is_reported_with_its_line(module: str, unfold: Unfold, tmp_path: Path) -> None:
    """Whatever is wrong with it, the message has the file and the line, and the exit code is that of a faulty file."""
    code, line, message = BROKEN[module]
    write(tmp_path, module, code)
    outcome = unfold("plan", "spec.yaml", "--allow-code")
    assert outcome.code == 2, outcome.err
    assert f"{module}.py:{line}: policy: " in outcome.err
    assert message in outcome.err


def test_ctrl_c_in_a_policy_stops_the_verb(unfold: Unfold, tmp_path: Path) -> None:
    """An interrupt of the user is no error of the policy that it finds."""
    write(tmp_path, "stopped", HEAD + "            __import__('signal').raise_signal(2)\n")
    assert unfold("plan", "spec.yaml", "--allow-code").code == 130


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("named:Q", "named.py; one of: Ask, Drop, P, Put"),
        ("named.py:P", "write named:P"),
        ("absent:P", "write module:Class"),
        ("queue:P", "queue.py; "),
    ],
)
def test_a_wrong_name_of_a_policy_says_what_was_loaded(name: str, hint: str, unfold: Unfold, tmp_path: Path) -> None:
    """A typo, a path, or a file that the standard library hides."""
    write(tmp_path, "named", HEAD, SPEC.replace("MODULE:P", name))
    outcome = unfold("plan", "spec.yaml", "--allow-code")
    assert outcome.code == 2
    assert hint in outcome.err


UNSEARCHABLE = {
    "keeps_a_lock": (
        "    def __init__(self): self.lock = __import__('threading').Lock()\n",
        15,
        "the search cannot copy it",
    ),
    "exits_as_it_is_copied": ("    def __getattr__(self, name): raise SystemExit\n", 4, "the search cannot copy it"),
    "state_is_a_generator": ("    def state(self): return (task for task in ())\n", 11, "so no generator"),
    "state_raises": ("    def state(self): return {}['x']\n", 15, "state raised KeyError"),
}


@pytest.mark.parametrize("module", UNSEARCHABLE)
def test_a_policy_that_cannot_be_searched_is_reported_with_its_line(
    module: str, unfold: Unfold, tmp_path: Path
) -> None:
    """The search copies policies and asks for their state."""
    code, line, message = UNSEARCHABLE[module]
    write(tmp_path, module, HEAD + code, MENU)
    outcome = unfold("check", "--verify", "--allow-code", "spec.yaml")
    assert outcome.code == 2, outcome.err
    assert f"{module}.py:{line}: policy: policy P: " in outcome.err
    assert message in outcome.err


def test_policies_may_keep_tasks_and_nodes(unfold: Unfold, tmp_path: Path) -> None:
    """In lists, sets and as keys: a plan replays and a search copies such a policy."""
    code = HEAD.replace(
        "        for task",
        """        self.seen = getattr(self, "seen", set()) | set(view.waiting())
        self.nodes = {node: [*view.waiting()] for node in view.nodes}
        for task""",
    )
    write(tmp_path, "keeps_tasks", code)
    outcome = unfold("check", "--verify", "--allow-code", "spec.yaml")
    assert outcome.code in {0, 1}, outcome.err
    assert unfold("plan", "--allow-code", "spec.yaml").code == 0


def test_an_object_in_place_of_a_class_is_named(unfold: Unfold, tmp_path: Path) -> None:
    """A policy is built for every replay, so the spec names what builds it."""
    write(tmp_path, "built", HEAD.replace("class P", "class Q") + "P = Q()\n")
    outcome = unfold("plan", "--allow-code", "spec.yaml")
    assert outcome.code == 2
    assert "built:P is not a class (it is an object of Q: name the class" in outcome.err


@pytest.mark.parametrize("module", ["shortens_time", "turns_back_time", "ends_tasks", "changes_in_request"])
def test_a_policy_that_changes_what_it_must_not_is_not_searched(module: str, unfold: Unfold, tmp_path: Path) -> None:
    """A search, which ends jobs itself, would find nothing wrong with it."""
    write(tmp_path, f"verified_{module}", BROKEN[module][0], MENU)
    outcome = unfold("check", "--verify", "--allow-code", "spec.yaml")
    assert outcome.code == 2, outcome.err
    assert "policy P: it changed " in outcome.err


def test_what_a_policy_raises_once_time_passes_is_reported(unfold: Unfold, tmp_path: Path) -> None:
    """No timer fires in a search, so a replay of its jobs finds the fault in what the policy does then."""
    code = HEAD.replace("{QUIET}", "{QUIET, BEGAN, TIMER}").replace(
        "        for task",
        """        if event.kind == TIMER:
            raise KeyError("late")
        if event.kind == BEGAN:
            yield [Wake(10.0)]
        for task""",
    )
    write(tmp_path, "late", code)
    outcome = unfold("check", "--verify", "--allow-code", "spec.yaml")
    assert outcome.code == 2, outcome.err
    assert "late.py:13: policy: policy P: react raised KeyError: 'late'" in outcome.err


def test_a_thread_of_a_policy_that_still_runs_is_named(
    unfold: Unfold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process cannot end before it, so the warning has its file and line."""
    code = "import threading\nSTOP = threading.Event()\ndef wait():\n    STOP.wait()\n"
    write(tmp_path, "spins", code + "threading.Thread(target=wait).start()\n" + HEAD)
    monkeypatch.delitem(sys.modules, "spins", raising=False)
    try:
        assert "spins.py:4: a policy's thread" in unfold("plan", "spec.yaml", "--allow-code").err
    finally:
        sys.modules["spins"].STOP.set()


def test_what_a_policy_prints_is_not_in_the_report(
    unfold: Unfold, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stdout holds the report alone, so that programs can read it."""
    talk = "        print('decided')\n        __import__('os').system('echo solved')\n"
    write(tmp_path, "talks", "print('loaded')\n" + HEAD + talk)
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--format", "json")
    assert json.loads(outcome.out)["name"] == "own"
    assert "loaded" in outcome.err
    assert "decided" in outcome.err
    out, err = capfd.readouterr()
    assert "solved" not in out
    assert "solved" in err


PERIODIC = """
class P(P):
    watches = frozenset({BEGAN, TIMER})
    def request(self, task):
        return [Ask("open", gated=True)]
    def react(self, event, view):
        is_open = OPENS and view.now % 300 >= 60
        yield [Put("open", amount=MANY) if is_open else Drop("open"), Wake(view.now + 60)]
"""


def test_a_policy_that_wakes_for_ever_ends_with_its_tasks(unfold: Unfold, tmp_path: Path) -> None:
    """A window of time needs a timer that never stops: the plan ends with the last task."""
    write(tmp_path, "window", HEAD + PERIODIC.replace("OPENS", "True"))
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert "2 tasks done in 80 s" in outcome.out


def test_a_window_that_never_opens_leaves_its_tasks_waiting(
    unfold: Unfold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only timers fire, and none of them starts anything, the tasks wait forever."""
    monkeypatch.setattr(simulator, "MAX_IDLE_WAKES", 1000)
    write(tmp_path, "shut", HEAD + PERIODIC.replace("OPENS", "False"))
    outcome = unfold("plan", "spec.yaml", "--allow-code")
    assert outcome.code == 2
    assert "2 tasks wait forever" in outcome.err


def test_rejected_tasks_are_counted_and_not_explained(unfold: Unfold, tmp_path: Path) -> None:
    """A policy that rejects everything is not reported as if all was well, nor does a rejected task wait for room."""
    rejects = HEAD.replace('Put("x-" + task.name, until=task.name)', 'Refuse(task.name, "full")')
    write(tmp_path, "rejects", rejects)
    outcome = unfold("plan", "spec.yaml", "--allow-code")
    assert "0 tasks done in 0 s, 1 rejected" in outcome.out or "2 rejected" in outcome.out
    assert "waits for room" not in outcome.out


CAPPED = """from unfold_placement.core.types import BEGAN, STATIC, Ask, Put

class P:
    phase = STATIC
    watches = frozenset({BEGAN})
    def request(self, task):
        return [Ask("cap")]
    def react(self, event, view):
        yield PUTS
"""


@pytest.mark.parametrize(
    ("module", "puts", "reason"),
    [
        ("capped", '[Put("cap", amount=1)]', "a-1 waits for cap, which is used up"),
        ("capped_nodes", 'view.puts("cap")', "a-1 waits for cap, which no node with room for it has enough of"),
    ],
)
def test_the_resource_that_a_task_waits_for_is_named(
    module: str, puts: str, reason: str, unfold: Unfold, tmp_path: Path
) -> None:
    """A cap of a user's policy is why a task waits, not the task that runs beside free room."""
    write(tmp_path, module, CAPPED.replace("PUTS", puts), SPEC.replace("count: 1, gpu: 1", "count: 1, gpu: 2"))
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--format", "json")
    assert reason in dict(json.loads(outcome.out)["lines"])["explained"]


BUDGET = """class P:
    phase = QUEUE
    watches = frozenset({QUIET})
    used = {}

    def request(self, task):
        return [Ask("ok-" + task.name, gated=True)]

    def react(self, event, view):
        for task in list(view.waiting()):
            if self.used.get(task.user, 0) < 12 and view.room([task], QUEUE):
                self.used[task.user] = self.used.get(task.user, 0) + 1
                yield [Put("ok-" + task.name, until=task.name)]
"""
MANY_TASKS = "workload: {made: {random: 40, demands: [{gpu: 1}], run: 60 s, rate: 0.1, users: 3}}"


def test_a_replay_that_cannot_be_repeated_is_reported(unfold: Unfold, tmp_path: Path) -> None:
    """State in the class or module, left by an earlier replay: the verdict would be one of many."""
    spec = SPEC.replace("workload: {tasks: [{job: a, count: 2, gpu: 1, run: 10 s}]}", MANY_TASKS)
    write(tmp_path, "keeps_state", HEAD.partition("class")[0] + BUDGET, spec)
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--run", "run")
    assert outcome.code == 2
    assert "keeps_state.py:12: policy: policy P: two replays of the same workload differ" in outcome.err


def test_tasks_that_a_policy_never_admits_name_it(unfold: Unfold, tmp_path: Path) -> None:
    """Recorded and generated tasks that can never run are left out: the reason names the policy that is at fault."""
    spec = SPEC.replace("workload: {tasks: [{job: a, count: 2, gpu: 1, run: 10 s}]}", MANY_TASKS)
    write(tmp_path, "admits_none", HEAD.replace("if view.room([task], QUEUE)", "if False"), spec)
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--run", "run")
    assert outcome.code == 2
    assert "alone on the empty cluster it waits for P to create x-t0" in outcome.err


def test_a_search_reports_requests_that_raise(unfold: Unfold, tmp_path: Path) -> None:
    """No job could arrive, so that a search of no state would say nothing of the line that raised."""
    write(tmp_path, "asks_badly", HEAD.replace('[Ask("x-" + task.name, gated=True)]', "None"), MENU)
    outcome = unfold("check", "--verify", "spec.yaml", "--allow-code")
    assert outcome.code == 2
    assert "asks_badly.py:8: policy: policy P: request raised TypeError" in outcome.err


def test_a_policy_that_creates_nothing_is_named(unfold: Unfold, tmp_path: Path) -> None:
    """A task that waits beside free room waits for a policy, which has a name."""
    code = (
        HEAD.replace("if view.room([task], QUEUE)", "if view.now >= 30")
        + "        if view.now < 30:\n            yield [Wake(30.0)]\n"
    )
    write(tmp_path, "waits", code.replace("{QUIET}", "{QUIET, BEGAN, TIMER}"))
    outcome = unfold("plan", "spec.yaml", "--allow-code", "--run", "run")
    assert outcome.code == 0
    assert "a-1 waits for P to create x-a-1" in outcome.out


@pytest.mark.parametrize("method", ["audit", "describe_wait", "state"])
def test_optional_methods_that_hang_are_interrupted(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog sees them as it sees ``react``."""
    module = f"hangs_in_{method}"
    write(tmp_path, module, HEAD + f"    def {method}(self, *_):\n        while True: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (policy,) = build_policies([PolicyRule(CUSTOM, {"policy": f"{module}:P", "options": {}})], allow_code=True)
    with (
        pytest.raises(UnfoldError, match=rf"{module}.py:16: .* it has not returned from {method}"),
        interrupt_stalled_policies(0.2),
    ):
        call_hook(policy, method, [])


LOADING = {
    "import": ("loops_on_import", "while True:\n    pass\n", 1),
    "helper": ("imports_a_loop", "import time\nimport helper_that_loops\n", 2),
    "constructor": ("loops_in_init", "class P:\n    def __init__(self):\n        while True: pass\n", 3),
    "sleeps": ("sleeps_on_import", "import time\ntime.sleep(1e4)\n", 2),
    "retries": ("retries", "while True:\n    try:\n        while True: pass\n    except ValueError: pass\n", 3),
}


@pytest.mark.parametrize("case", LOADING)
def test_a_policy_that_loads_for_ever_is_interrupted(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import and its constructor are bounded as its decisions are."""
    module, code, line = LOADING[case]
    write(tmp_path, module, code)
    (tmp_path / "helper_that_loops.py").write_text("def wait():\n    while True: pass\nwait()\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = [PolicyRule(CUSTOM, {"policy": f"{module}:P", "options": {}})]
    threads = threading.active_count()
    with (
        pytest.raises(UnfoldError, match=rf"{module}:P has been loading for \d+ s") as error,
        interrupt_stalled_policies(0.2),
    ):
        build_policies(rules, allow_code=True)
    found = error.value.diagnostics[0]
    assert (Path(found.file).name, found.line) == (f"{module}.py", line)
    assert ("helper_that_loops.py:2" in found.hint) == (case == "helper")
    assert threading.active_count() == threads


def test_a_swallowed_interrupt_is_still_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a policy decides after it was interrupted is not reported as if nothing had been."""
    code = "try:\n    while True: pass\nexcept BaseException: pass\n" + HEAD
    write(tmp_path, "swallows", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = [PolicyRule(CUSTOM, {"policy": "swallows:P", "options": {}})]
    with pytest.raises(UnfoldError, match="swallows:P has been loading"), interrupt_stalled_policies(0.2):
        build_policies(rules, allow_code=True)


CATCHES_ALL = """
from unfold_placement.core.policy import call_loader
from unfold_placement.core.watchdog import interrupt_stalled_policies
def load():
    while True:
        try:
            while True:
                try: sum(range(1000))
                except BaseException: pass
        except BaseException: pass
with interrupt_stalled_policies(0.2):
    call_loader("stubborn:P", load)
"""


def test_a_policy_that_catches_every_interrupt_ends_the_process(tmp_path: Path) -> None:
    """No exception reaches it; the message and the exit code are the same."""
    (tmp_path / "stubborn.py").write_text(CATCHES_ALL, "utf-8")
    command = [sys.executable, str(tmp_path / "stubborn.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"{tmp_path / 'stubborn.py'}:8: policy: stubborn:P has been loading" in result.stderr


LOCKS = """
import re
from unfold_placement.core import watchdog
watchdog.LOCKED_S = 0.5
with watchdog.interrupt_stalled_policies(0.2):
    re.match("(a+)+$", "a" * 60 + "b")
"""


def test_a_call_that_keeps_the_interpreter_ends_the_process_with_its_line(tmp_path: Path) -> None:
    """No thread of Python runs meanwhile, so the system ends it."""
    (tmp_path / "locks.py").write_text(LOCKS, "utf-8")
    command = [sys.executable, str(tmp_path / "locks.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == -signal.SIGPROF
    assert f'"{tmp_path / "locks.py"}", line 6 in <module>' in result.stderr


def test_an_audit_without_a_fault_yields_its_violations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit may be a generator or return a list."""
    write(tmp_path, "audits", HEAD + "    def audit(self, log): return ['a', 'b']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    policies = build_policies([PolicyRule(CUSTOM, {"policy": "audits:P", "options": {}})], allow_code=True)
    assert list(find_own_violations(simulate(cluster(1), job("a", 1), policies), policies)) == ["a", "b"]


@pytest.mark.parametrize(("policy", "is_ignored"), [("{}", True), ("{gang: {}}", True), ("{barrier: {}}", False)])
def test_a_field_that_no_policy_reads_is_named(policy: str, is_ignored: bool, unfold: Unfold, tmp_path: Path) -> None:
    """Tasks with predecessors that start at once are not reported as if their order had been kept."""
    tasks = "[{job: a, gpu: 1, run: 10 s}, {job: b, gpu: 1, run: 10 s, after: [a]}]"
    spec = SPEC.replace("[{job: a, count: 2, gpu: 1, run: 10 s}]", tasks).replace('{own: {policy: "MODULE:P"}}', policy)
    (tmp_path / "spec.yaml").write_text(spec, "utf-8")
    outcome = unfold("plan", "spec.yaml")
    assert ("after of tasks has no effect without the policy barrier" in outcome.out) == is_ignored
