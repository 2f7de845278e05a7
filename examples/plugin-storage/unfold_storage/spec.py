"""What a user writes in a spec of kind ``storage``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from unfoldkit.api import Bytes, Money, Problem, Spec


class StorageSpec(Spec):
    """Asks how many copies of a data set a budget allows."""

    kind: Literal["storage"]
    size: Bytes = Field(description="of one copy")
    copies: int = Field(default=2, ge=1, le=100, description="how many are wanted")
    price: Money = Field(default=0.02, description="of a GiB for a month")
    budget: Money = Field(description="for a month")

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        if self.size == 0:
            yield Problem(("size",), "nothing to store", hint="a size such as 12 GiB")
