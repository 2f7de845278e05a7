"""The options of one call of a verb, independent of the command-line library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A verb, a spec, and every option.

    Args:
        verb: ``profile``, ``train``, ``plan``, ``validate`` or ``serve``.
        spec: A file, the folder of a run, or ``-`` for stdin.
        settings: ``KEY=VALUE`` changes of the spec.
        format: The renderer; ``None`` to go by the suffix of ``out``.
        out: The file of the report; ``None`` for stdout.
        seed: The seed of every random choice.
        run: The folder of the run; ``None`` for the default.
        dry_run: Validate, and run nothing.
        exit_zero: Exit with 0 even if the answer is no.
        engine: ``local`` or ``ray``.
        jobs: Processes of the local engine.
        ray_address: The address of a running Ray cluster.
        allow_code: Let the spec name code.
        builtin_only: Load the built-in plugins only.
        verbose: Log progress.
        check: A committed plan to compare with.
        plan: A plan to execute.
        replay: A trace to replay.
        data: New data to validate a run on.
        recalibrate: New data to refit the plan of a run on.
        on: The node to measure on: an instance type, or ``ray``.
        target: The system with an existing deployment that ``serve`` takes charge of, or where ``train`` runs.
    """

    verb: str
    spec: str
    settings: tuple[str, ...] = ()
    format: str | None = None
    out: Path | None = None
    seed: int = 0
    run: Path | None = None
    dry_run: bool = False
    exit_zero: bool = False
    engine: str = "local"
    jobs: int | None = None
    ray_address: str | None = None
    allow_code: bool = False
    builtin_only: bool = False
    verbose: bool = False
    check: Path | None = None
    plan: Path | None = None
    replay: Path | None = None
    data: Path | None = None
    recalibrate: Path | None = None
    on: str | None = None
    target: str | None = None
