"""What a plan for an accelerator is told from: a family on its chip, and what keeping a core of it saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unfold_supernet.accelerator.layers import Family
from unfold_supernet.schema.models import QueriesSpec
from unfold_supernet.study.published import Obtained
from unfold_supernet.study.strategies import Way
from unfold_supernet.study.sweep import Savings, Setting


@dataclass(frozen=True, slots=True)
class Study:
    """All that a plan is made from; ``inputs`` are digests of files by name."""

    family: Family
    setting: Setting
    queries: QueriesSpec
    points: tuple[Savings, ...]
    ways: tuple[Way, ...]
    claims: tuple[Obtained, ...]
    inputs: Mapping[str, str]

    @property
    def here(self) -> Savings:
        """The savings of the accelerator as it is."""
        machine = self.setting.machine
        at = (machine.persistent, machine.bandwidth)
        return next(point for point in self.points if (point.persistent, point.bandwidth) == at)
