"""What a plan for an accelerator is told from: a family on its chip, and what keeping a core of it saves."""

from __future__ import annotations

from dataclasses import dataclass

from unfold_supernet.arrays import Floats
from unfold_supernet.chip.claims import Obtained
from unfold_supernet.chip.layers import Family
from unfold_supernet.chip.study import Savings, Setting
from unfold_supernet.chip.ways import Way
from unfold_supernet.spec import QueriesSpec


@dataclass(frozen=True, slots=True)
class Study:
    """All that a plan is made from."""

    family: Family
    setting: Setting
    queries: QueriesSpec
    levels: Floats
    points: tuple[Savings, ...]
    ways: tuple[Way, ...]
    claims: tuple[Obtained, ...]

    @property
    def here(self) -> Savings:
        """The savings of the accelerator as it is."""
        machine = self.setting.machine
        at = (machine.persistent, machine.bandwidth)
        return next(point for point in self.points if (point.persistent, point.bandwidth) == at)
