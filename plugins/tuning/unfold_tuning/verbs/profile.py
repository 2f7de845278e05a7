"""The verb ``profile``: measures the times of the real trainable, on this machine or on a rented instance."""

from __future__ import annotations

import dataclasses
import json
import time

from unfold_tuning.cluster.factory import build_cluster, build_provider, require_reachable
from unfold_tuning.executor.messages import describe_leftovers, describe_spend
from unfold_tuning.executor.profiler import Profiler, ProfileSamples
from unfold_tuning.job.build import (
    PROFILE_FILE,
    build_cluster_config,
    build_machines,
    build_stages,
    encode_profile,
    fingerprint_profile_inputs,
    fingerprint_run,
    parse_profile,
    resolve_trainable,
)
from unfold_tuning.job.paces import describe_hardware
from unfold_tuning.job.problem import ClusterConfig, ProfiledTrial
from unfold_tuning.job.profile import Machine
from unfold_tuning.report import sentences
from unfold_tuning.report.profile import report_profile
from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.api import Report, Run, fingerprint, user_error

LEDGER_FILE = "profile.sqlite"
SEARCH_LEDGER_FILE = "ledger.sqlite"
TRIALS_FILE = "profiled-trials.json"
UNFINISHED_FILE = "unfinished-profile.json"


def profile(spec: TuningSpec, run: Run) -> Report:
    """Measure the first trials of the search, their speed-up and start; store them for ``plan`` and ``train``.

    ``--on TYPE``, or ``--engine ray --ray-address`` with a spec for AWS, Ray or SkyPilot, rents one instance for it.
    ``--on ray`` uses a Ray node of this machine. A profile that was killed continues from the trials that it has
    measured.

    Raises:
        UnfoldError: The profile has used the budget or cannot be measured, or the run is that of another spec.
    """
    trainable, stages = resolve_trainable(spec, run), build_stages(spec.search)
    machine, cluster_config, is_rented = _select_node(spec, run)
    first, made_from = stages[0].groups[0], fingerprint_profile_inputs(spec)
    groups = [group for stage in stages for group in stage.groups if group.bracket == first.bracket]
    rungs = [group.done + group.iters for group in groups]
    measured_on = machine.name if is_rented else describe_hardware()
    where = cluster_config.provider, cluster_config.engine, measured_on, machine.accelerators
    attempt = fingerprint(made_from, run.seed, where, first.bracket, max(rungs))
    unfinished, earlier_s = _load_unfinished(run, attempt)
    began = run.clock() - earlier_s
    search = run.directory.resolve(SEARCH_LEDGER_FILE)
    if search.exists():
        # the trials of another search would lose their states
        with open_ledger(search, machine, fingerprint_run(spec, run.seed)):
            pass
    with open_ledger(run.directory.resolve(LEDGER_FILE), machine, "profile") as ledger:
        provider = build_provider(cluster_config, machine, ledger, run.log)
        if is_rented:
            run.name_leftovers(lambda: describe_leftovers(ledger.list_running()))
        provider.recover()
        ledger.close_open_lifetimes()

        def compute_spent_usd() -> float:
            return ledger.compute_spent_usd() + (run.clock() - began) * machine.head_usd_per_second

        def report_progress(step: str, done: int, total: int) -> None:
            run.progress(f"{step} · {describe_spend(compute_spent_usd(), None)}", done, total)

        def watch() -> None:
            ledger.record_nodes_alive(time.time())
            if spec.budget is not None and compute_spent_usd() >= spec.budget:
                hint = "write a higher budget; the same command continues the profile"
                raise user_error("the profile has used all of it", key="budget", hint=hint)

        def store(samples: ProfileSamples) -> None:
            stored = samples.encode() | {"elapsed_s": run.clock() - began}
            run.directory.write(UNFINISHED_FILE, json.dumps(stored).encode(), made_from=attempt)

        profiler = Profiler(
            trainable=trainable,
            build_cluster=lambda: build_cluster(
                cluster_config, WorkerSetup(trainable, run.seed), machine.accelerators, provider
            ),
            accelerators=machine.accelerators,
            checkpoint_iters=spec.cloud.checkpoint_iters,
            seed=run.seed,
            bracket=first.bracket,
            rungs=rungs,
            folder=run.directory.path / "trials",
            clock=run.clock,
            progress=report_progress if machine.usd_per_hour else run.progress,
            log=run.log,
            watch=watch,
            store=store,
            samples=unfinished,
        )
        try:
            samples = profiler.run()
        except BaseException as error:
            if count := len(profiler.samples.iterations):
                error.add_note(sentences.describe_stored_measurements(count))
            raise
        spent_usd = compute_spent_usd()
    trials = samples.list_trials()
    encoded = encode_profile(samples.summarize(), trials, measured_on)
    stored = json.dumps({"spent_usd": spent_usd, "trials": [dataclasses.asdict(trial) for trial in trials]})
    run.directory.write(TRIALS_FILE, stored.encode(), made_from=made_from)
    # last, as it ends the profile: the next one measures again
    run.directory.write(PROFILE_FILE, encoded.encode(), made_from=made_from)
    store(ProfileSamples())
    return report_profile(spec.name, parse_profile(encoded), samples, measured_on, spent_usd)


def _load_unfinished(run: Run, attempt: str) -> tuple[ProfileSamples, float]:
    """Load the measurements of an attempt that was stopped, and its seconds; none if it was another profile."""
    if not run.directory.has(UNFINISHED_FILE):
        return ProfileSamples(), 0.0
    with run.directory.decoding(UNFINISHED_FILE, "an unfinished profile") as data:
        stored = json.loads(data)
        samples, elapsed_s = ProfileSamples.decode(stored), float(stored["elapsed_s"])
    if not samples.resumed:
        return ProfileSamples(), 0.0
    if not run.directory.has(UNFINISHED_FILE, made_from=attempt):
        run.log.warning("%s", sentences.describe_other_measurements(samples.resumed))
        return ProfileSamples(), 0.0
    run.log.warning("%s", sentences.describe_resumed_measurements(samples.resumed))
    return samples, elapsed_s


def _select_node(spec: TuningSpec, run: Run) -> tuple[Machine, ClusterConfig, bool]:
    """Select the machine to measure on, where it comes from, and whether it is rented.

    Raises:
        UnfoldError: ``--on`` names no instance of the spec, or one that cannot be started.
    """
    config, node, provider = build_cluster_config(spec, run), run.options.get("on", ""), spec.cloud.provider
    machines = build_machines(spec.cloud, run)
    named = [machine for machine in machines if machine.name == node]
    if node not in ("", "ray") and not named:
        names = ", ".join(dict.fromkeys(machine.name for machine in machines))
        raise user_error(f"--on {node}: no such instance in cloud.instances", hint=f"one of: {names}, ray")
    if named and provider in ("gcp", "azure"):
        hint = "measure it there yourself, and write profile: with measured_on"
        raise user_error(f"--on {node}: unfold cannot start instances of {provider}", hint=hint)
    if named and provider in ("ray", "skypilot"):
        require_reachable(config)
    if named and provider == "aws" and config.ray_address is None:
        hint = "ray start --head on a machine that the instances reach, then --engine ray --ray-address HOST:6379"
        raise user_error(f"--on {node}: the instance joins a Ray cluster, but no address is given", hint=hint)
    machine = (named or machines)[0]
    if node != "ray" and provider in ("aws", "ray", "skypilot") and config.ray_address is not None:
        return machine, config, True
    config = dataclasses.replace(config, provider="local")
    if node == "ray":
        config = dataclasses.replace(config, engine="ray", ray_address=None)
    if provider != "local":
        # this machine does not have the price of the instance that the spec names
        machine = dataclasses.replace(machine, usd_per_hour=0.0, ingress_usd=0.0, head_usd_per_hour=0.0)
    return machine, config, False


def load_profiled_trials(spec: TuningSpec, run: Run) -> tuple[float, list[ProfiledTrial]]:
    """Load the dollars and the trials of the profile in the run folder; 0 and none if there is none for this spec."""
    if not run.directory.has(TRIALS_FILE, made_from=fingerprint_profile_inputs(spec)):
        return 0.0, []
    with run.directory.decoding(TRIALS_FILE, "profiled trials") as data:
        stored = json.loads(data)
        trials = [
            ProfiledTrial(
                ends=tuple(int(end) for end in item["ends"]),
                seconds=tuple(float(seconds) for seconds in item["seconds"]),
                metrics=tuple(float(metric) for metric in item["metrics"]),
                config=dict(item["config"]),
            )
            for item in stored["trials"]
        ]
        return float(stored["spent_usd"]), trials
