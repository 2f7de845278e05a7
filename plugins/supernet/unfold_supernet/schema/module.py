"""Section ``model``: a torch module of the user's from which a family is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from unfold_supernet.schema.space import MAX_SUBNETS, Share
from unfoldkit.api import Model, Problem

Fractions = Annotated[tuple[Share, ...], Field(min_length=1, max_length=64)]


class ModuleSpec(Model):
    """Your own network: which parts are elastic is found by tracing it."""

    source: str = Field(
        alias="from",
        pattern=r"^[\w.]+:[\w.]+$",
        description="module:function that returns a torch module, with --allow-code",
    )
    arguments: dict[str, int | float | str | bool] = Field(
        default={}, description="keyword arguments of the function; num_classes is added where it is accepted"
    )
    weights: str | None = Field(default=None, description="a safetensors file with the module's state to start from")
    widths: Fractions = Field(default=(0.25, 0.5, 0.75, 1.0), description="fractions of the channels, a member each")
    depths: Fractions = Field(default=(1.0,), description="fractions of the residual blocks, entry by entry")
    resolutions: Fractions = Field(default=(1.0,), description="fractions 1/n of the input's edges, entry by entry")


def find_module_problems(model: ModuleSpec) -> Iterable[Problem]:
    """Yield contradictions between the lists of members."""
    lengths = {len(values) for values in (model.widths, model.depths, model.resolutions)} - {1}
    if len(lengths) > 1:
        message = "widths, depths and resolutions are combined entry by entry and differ in length"
        yield Problem(("model",), message, hint="equalise the lists, or write one entry")
    if max(lengths, default=1) > MAX_SUBNETS:
        yield Problem(("model",), f"more than {MAX_SUBNETS:,} members")
    if any(abs(1 / share - round(1 / share)) > 1e-6 for share in model.resolutions):
        message = "must be 1/n for an integer n, because n neighbours are averaged"
        yield Problem(("model", "resolutions"), message, hint="write 1, 0.5 or 0.25")
