"""What one call of a verb asks for, free of the command-line library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """A verb, a spec, and every option."""

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
