"""Scripts of Optuna and Ray Tune with a deadline, changed in three lines at most, and killed at random moments.

Each script is a user's: it knows nothing of kills but what its tool's documentation recommends (a storage with
``load_if_exists``; ``Tuner.restore``). The learning curves cross, so that the winner depends on every rung.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.frame import FOLDER, need

ETA = 3
DEADLINE_S = 900.0
SHORT_DEADLINE_S = {"optuna": 4.0, "ray": 45.0}
GRACE_S = {"optuna": 5.0, "ray": 20.0}
"""What a script may take beyond its deadline: a step that runs, and the end of the tool's processes."""

CURVE = """
def loss_after(quality, speed, step):
    return 1 - quality * (1 - speed ** (step + 1))
"""
OPTUNA_SCRIPT = (
    """
import sys
import time
from pathlib import Path

import optuna

FOLDER, STEPS = Path(sys.argv[1]), int(sys.argv[2])
"""
    + CURVE
    + """

def objective(trial):
    quality = trial.suggest_float("quality", 0.0, 1.0)
    speed = trial.suggest_float("speed", 0.3, 0.9)
    state = FOLDER / f"state-{trial.number}"
    done = int(state.read_text()) if state.exists() else 0
    for step in range(done, STEPS):
        time.sleep(STEP_S)
        loss = loss_after(quality, speed, step)
        part = state.with_suffix(".part")
        part.write_text(str(step + 1))
        part.replace(state)
        with (FOLDER / "log").open("a") as log:
            log.write(f"{quality:.9f}:{step}\\n")
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss_after(quality, speed, STEPS - 1)


storage = f"sqlite:///{FOLDER}/study.db"
study = optuna.create_study(study_name="s", storage=storage, direction="minimize", load_if_exists=True)
study.optimize(objective, n_trials=TRIALS, n_jobs=2)
print(study.best_trial.params)
"""
)
RAY_SCRIPT = (
    """
import json
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray import tune

FOLDER, STEPS = Path(sys.argv[1]), int(sys.argv[2])
"""
    + CURVE
    + """

def train(config):
    done, checkpoint = 0, tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            done = json.loads((Path(folder) / "state.json").read_text())["done"]
    for step in range(done, config["steps"]):
        time.sleep(STEP_S)
        loss = loss_after(config["quality"], config["speed"], step)
        with (Path(config["folder"]) / "log").open("a") as log:
            log.write(f"{config['quality']:.9f}:{step}\\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"done": step + 1}))
            tune.report({"loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
space = {"quality": tune.uniform(0, 1), "speed": tune.uniform(0.3, 0.9), "folder": str(FOLDER), "steps": STEPS}
config = tune.TuneConfig(metric="loss", mode="min", num_samples=TRIALS)
if tune.Tuner.can_restore(str(FOLDER / "ray/run")):
    tuner = tune.Tuner.restore(str(FOLDER / "ray/run"), train, param_space=space)
else:
    run_config = tune.RunConfig(storage_path=str(FOLDER / "ray"), name="run", verbose=0)
    tuner = tune.Tuner(train, param_space=space, tune_config=config, run_config=run_config)
results = tuner.fit()
print(results.get_best_result(scope="last").config)
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool with its script as a user writes it, and the lines that add a deadline.

    Attributes:
        name: ``optuna`` or ``ray``.
        script: The script.
        replaced: Lines of it, and what replaces them.
        trials: Trials of the search.
        steps: Steps of the best one.
        step_s: Seconds of a step.
        kills: How often the script is killed.
        window_s: A kill comes within so many seconds of an attempt's first new iteration.
        parallel: Runs side by side, which share the kills.
    """

    name: str
    script: str
    replaced: tuple[tuple[str, str], ...]
    trials: int
    steps: int
    step_s: float
    kills: int
    window_s: float
    parallel: int = 1

    def write_script(self, path: Path, deadline_s: float) -> int:
        """Write the script with its deadline; return how many of its lines are new."""
        script = self.script.replace("TRIALS", str(self.trials)).replace("STEP_S", str(self.step_s))
        text = script
        for before, after in self.replaced:
            changed = after.replace("DEADLINE", str(deadline_s)).replace("TRIALS", str(self.trials))
            text = text.replace(before, changed)
        path.write_text(text, encoding="utf-8")
        lines = difflib.ndiff(script.splitlines(), text.splitlines())
        return sum(line.startswith("+ ") for line in lines)


OPTUNA = Tool(
    name="optuna",
    script=OPTUNA_SCRIPT,
    replaced=(
        ("import optuna\n", "import optuna\nfrom unfold_tuning import deadline\n"),
        (
            "study.optimize(objective, ",
            "deadline.optimize(study, objective, deadline=DEADLINE, max_steps=STEPS, ",
        ),
    ),
    trials=27,
    steps=27,
    step_s=0.15,
    kills=20,
    window_s=2.5,
    parallel=4,
)
RAY = Tool(
    name="ray",
    script=RAY_SCRIPT,
    replaced=(
        ("from ray import tune\n", "from ray import tune\nfrom unfold_tuning import deadline\n"),
        (
            "config = tune.TuneConfig(",
            """keeper = deadline.UnfoldScheduler(deadline=DEADLINE, num_samples=TRIALS, max_t=STEPS)
config = tune.TuneConfig(scheduler=keeper, """,
        ),
    ),
    trials=9,
    steps=9,
    step_s=0.5,
    kills=20,
    window_s=4.0,
)


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Kill each script so often (4 times if quick, Optuna's only), and run it once with a deadline that is too short.

    Args:
        quick: Fewer kills.
        seed: Seed of the moments.
        data: Not used.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    need("optuna", "optuna")
    has_ray = importlib.util.find_spec("ray") is not None and not quick
    tools = [OPTUNA, *([RAY] if has_ray else [])]
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    measured: list[Tool] = []
    for tool in tools:
        try:
            killed, limited = run_with_kills(tool, 4 if quick else tool.kills, seed), run_to_deadline(tool)
        except RayNotStartedError:
            continue
        measured.append(tool)
        rows += [*killed, limited]
        metrics |= {f"{key}_{tool.name}": value for key, value in summarize(killed, limited).items()}
    metrics |= sum_tools(metrics, measured)
    aims = {"on_time": "1", "winners_equal": "1", "repeated_iterations": "0"} | {
        f"{name}_{tool.name}": "0"
        for tool in measured
        for name in ("other_winners", "finished_iterations_repeated", "late")
    }
    notes = [
        f"kill -9 up to {OPTUNA.window_s:g} s (Optuna) or {RAY.window_s:g} s (Ray) after an attempt's first iteration.",
        "The winner is compared with that of successive halving computed from the parameters of all trials.",
        "Finished is an iteration whose state Optuna's script, or whose result Ray's driver, has stored.",
        "late: the deadline is too short for the search, and the script takes longer than the deadline and its grace.",
        *(
            []
            if RAY in measured
            else ["Not measured on Ray: quick, not installed, or the machine was too busy to start it."]
        ),
    ]
    return {"metrics": metrics, "tables": {"runs": rows}, "aims": aims, "notes": notes}


def sum_tools(metrics: Mapping[str, float], measured: Sequence[Tool]) -> dict[str, float]:
    """Sum over tools: scripts, fractions of them on time and with the same winner, and finished iterations repeated."""

    def total(key: str) -> float:
        return float(sum(metrics[f"{key}_{tool.name}"] for tool in measured))

    return {
        "scripts": len(measured),
        "on_time": 1 - total("late") / len(measured),
        "winners_equal": 1 - total("other_winners") / total("runs"),
        "repeated_iterations": total("finished_iterations_repeated"),
    }


def summarize(killed: list[dict[str, Any]], limited: dict[str, Any]) -> dict[str, float]:
    """Sum the runs of a tool."""
    return {
        "kills": sum(row["kills"] for row in killed),
        "runs": len(killed),
        "changed_lines": limited["changed_lines"],
        "other_winners": sum(not row["is_winner_equal"] for row in killed),
        "finished_iterations_repeated": sum(row["finished_repeated"] for row in killed),
        "iterations_repeated": sum(row["repeated"] for row in killed),
        "iterations": sum(row["iterations"] for row in killed),
        "late": int(limited["is_late"]),
    }


class RayNotStartedError(Exception):
    """The raylet of a script did not start in time."""


def run_with_kills(tool: Tool, kills: int, seed: int) -> list[dict[str, Any]]:
    """Run the script as often as it takes to kill it so often, each run to its end, some of them side by side."""
    # starting a script takes far longer than what it runs before it is killed
    shares = [kills // tool.parallel] * tool.parallel
    with ThreadPoolExecutor(tool.parallel) as pool:
        return [
            row
            for rows in pool.map(lambda index: _run_share(tool, shares[index], seed + index), range(tool.parallel))
            for row in rows
        ]


def _run_share(tool: Tool, kills: int, seed: int) -> list[dict[str, Any]]:
    rng = Random(seed)  # noqa: S311 - moments, not cryptography
    rows: list[dict[str, Any]] = []
    while (left := kills - sum(row["kills"] for row in rows)) > 0:
        rows.append(run_once(tool, left, rng))
    return rows


def run_once(tool: Tool, max_kills: int, rng: Random) -> dict[str, Any]:
    """Run a script to its end, and kill it at most so often on the way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tool.write_script(folder / "script.py", DEADLINE_S)
        kills, finished_repeated = 0, 0
        while True:
            known, finished = read_log(folder), list_finished(tool, folder)
            is_killed = attempt(tool, folder, rng if kills < max_kills else None)
            fresh = Counter(read_log(folder)) - Counter(known)
            finished_repeated += sum(count for line, count in fresh.items() if line in finished)
            if not is_killed:
                break
            kills += 1
        counts = Counter(read_log(folder))
        return {
            "tool": tool.name,
            "kills": kills,
            "is_winner_equal": read_winner(folder) == select_expected_winner(tool, folder),
            "finished_repeated": finished_repeated,
            "repeated": sum(counts.values()) - len(counts),
            "iterations": len(counts),
        }


def run_to_deadline(tool: Tool) -> dict[str, Any]:
    """Run a script with a search that would take far longer than its deadline."""
    with tempfile.TemporaryDirectory() as name:
        folder, deadline_s = Path(name), SHORT_DEADLINE_S[tool.name]
        changed = tool.write_script(folder / "script.py", deadline_s)
        began: float | None = None
        with start_script(folder, 10_000) as process:
            while process.poll() is None:
                began = began or (time.monotonic() if read_log(folder) else None)
                time.sleep(0.05)
        seconds = time.monotonic() - (began or 0.0)
        if process.returncode:
            _require_started(folder)
        return {
            "tool": tool.name,
            "changed_lines": changed,
            "deadline_s": deadline_s,
            "seconds": seconds,
            "is_late": bool(process.returncode) or seconds > deadline_s + GRACE_S[tool.name],
        }


def start_script(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Start the script in a process group of its own."""
    # a raylet may take its time on a busy machine
    ray_settings = {"RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "300"}
    search_path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search_path, **ray_settings}
    with (folder / "out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder), str(steps)],
            env=environment,
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,
        )


def attempt(tool: Tool, folder: Path, rng: Random | None) -> bool:
    """Run the script once more; return whether it was killed.

    Raises:
        RuntimeError: It failed.
    """
    before = len(read_log(folder))
    wait_s, kill_at = rng.uniform(0.0, tool.window_s) if rng is not None else 0.0, None
    with start_script(folder, tool.steps) as process:
        while process.poll() is None:
            if rng is not None and kill_at is None and len(read_log(folder)) > before:
                kill_at = time.monotonic() + wait_s
            if kill_at is not None and time.monotonic() >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                # a search that had ended by then is not continued
                return not read_winner(folder)
            time.sleep(0.02)
    if process.returncode:
        _require_started(folder)
        raise RuntimeError((folder / "out").read_text(encoding="utf-8", errors="replace")[-3000:])
    return False


def _require_started(folder: Path) -> None:
    """Distinguish a raylet that did not start from a search that failed.

    Raises:
        RayNotStartedError: It did not start.
    """
    if "timed out during startup" in (folder / "out").read_text(encoding="utf-8", errors="replace"):
        raise RayNotStartedError


def read_log(folder: Path) -> list[str]:
    """Read the iterations that have run, by quality and step."""
    path = folder / "log"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def list_finished(tool: Tool, folder: Path) -> set[str]:
    """List the iterations that were stored: those that the script logged, or those that Ray's driver recorded."""
    if tool.name == "optuna":
        return set(read_log(folder))
    finished: set[str] = set()
    for path in (folder / "ray/run").glob("train_*/result.json"):
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line) if line.endswith("}") else {}
            if "config" in result:
                finished.add(f"{result['config']['quality']:.9f}:{result['training_iteration'] - 1}")
    return finished


def read_winner(folder: Path) -> str:
    """Read the quality of the winner that the script prints last."""
    lines = (folder / "out").read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((line for line in reversed(lines) if line.startswith("{'")), "")
    return f"{json.loads(line.replace(chr(39), chr(34)))['quality']:.9f}" if line.startswith("{") else ""


def select_expected_winner(tool: Tool, folder: Path) -> str:
    """Select the winner of successive halving from the parameters of all trials: the loss is a function of them."""
    trials = _list_optuna_trials(folder) if tool.name == "optuna" else _list_ray_trials(folder)
    step = 1
    while step < tool.steps:
        ranked = sorted((compute_loss(quality, speed, step - 1), (quality, speed)) for quality, speed in trials)
        trials = [item for _, item in ranked[: -(-len(trials) // ETA)]]
        step *= ETA
    best = min(trials, key=lambda item: compute_loss(item[0], item[1], tool.steps - 1))
    return f"{best[0]:.9f}"


def compute_loss(quality: float, speed: float, step: int) -> float:
    """Compute the loss of the scripts."""
    return 1 - quality * (1 - speed ** (step + 1))


def _list_optuna_trials(folder: Path) -> list[tuple[float, float]]:
    import optuna

    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db")
    return [(trial.params["quality"], trial.params["speed"]) for trial in study.trials]


def _list_ray_trials(folder: Path) -> list[tuple[float, float]]:
    configs = [json.loads(path.read_text()) for path in (folder / "ray/run").glob("train_*/params.json")]
    return [(config["quality"], config["speed"]) for config in configs]
