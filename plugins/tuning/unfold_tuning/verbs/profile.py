"""The verb ``profile``: measures the times of the real trainable on this machine's nodes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from unfold_tuning.cluster.factory import build_cluster
from unfold_tuning.cluster.provider import LocalProvider
from unfold_tuning.executor.profiler import Profiler
from unfold_tuning.job.build import (
    PROFILE_FILE,
    build_cluster_config,
    build_machines,
    encode_profile,
    fingerprint_profile_inputs,
    parse_profile,
    resolve_trainable,
)
from unfold_tuning.report.profile import report_profile
from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.trial.trainable import WorkerSetup
from unfoldkit.api import Report, Run


def profile(spec: TuningSpec, run: Run) -> Report:
    """Measure iteration time and its spread, speed-up, start-up and the start of a trial; store them for ``plan``."""
    trainable = resolve_trainable(spec, run)
    machine = build_machines(spec.cloud, run)[0]
    cluster_config = build_cluster_config(spec, run)
    setup, provider = WorkerSetup(trainable, run.seed), LocalProvider(_ignore, _ignore)
    with tempfile.TemporaryDirectory() as folder:
        samples = Profiler(
            trainable=trainable,
            build_cluster=lambda: build_cluster(cluster_config, setup, machine.accelerators, provider),
            accelerators=machine.accelerators,
            checkpoint_iters=spec.cloud.checkpoint_iters,
            seed=run.seed,
            folder=Path(folder),
            clock=run.clock,
            progress=run.progress,
            log=run.log,
        ).run()
    encoded = encode_profile(samples.summarize())
    run.directory.write(PROFILE_FILE, encoded.encode(), made_from=fingerprint_profile_inputs(spec))
    return report_profile(spec.name, parse_profile(encoded), samples)


def _ignore(_node: str, _now: float) -> None:
    return None
