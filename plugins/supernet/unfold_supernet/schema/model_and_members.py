"""Sections ``model`` and ``members``: a torch module from which a family is made, or ONNX files served as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Annotated

from pydantic import Field

from unfold_supernet.schema.space import MAX_SUBNETS, Share
from unfoldkit.api import Fraction, Model, Problem

MAX_MEMBERS = 256
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
    max_int8_loss: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="largest accuracy that int8 may cost a member, in points at 95 % on validation rows; members that "
        "keep it and are faster here are served in int8; by default none is",
    )


def find_module_problems(model: ModuleSpec) -> Iterable[Problem]:
    """Yield contradictions between the lists of members."""
    lengths = {len(values) for values in (model.widths, model.depths, model.resolutions)} - {1}
    if len(lengths) > 1:
        message = "widths, depths and resolutions are combined entry by entry and differ in length"
        yield Problem(("model",), message, hint="equalize the lists, or write one entry")
    if max(lengths, default=1) > MAX_SUBNETS:
        yield Problem(("model",), f"more than {MAX_SUBNETS:,} members")
    if any(abs(1 / share - round(1 / share)) > 1e-6 for share in model.resolutions):
        message = "must be 1/n for an integer n, because n neighbours are averaged"
        yield Problem(("model", "resolutions"), message, hint="write 1, 0.5 or 0.25")


class MemberSpec(Model):
    """One ONNX model."""

    path: str = Field(description="an ONNX file with one input (rows, ...) and one score for each row and class")
    accuracy: Annotated[Fraction, Field(gt=0, le=1)] = Field(description="its accuracy, as you measured it")
    name: str | None = Field(
        default=None,
        pattern=r"^[\w.+-]+$",
        max_length=80,
        description="its name in reports and responses; by default that of the file",
    )

    @property
    def label(self) -> str:
        """Name of the member."""
        return self.name or PurePath(self.path).stem


Members = Annotated[tuple[MemberSpec, ...], Field(min_length=1, max_length=MAX_MEMBERS)]
Classes = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=80)], ...], Field(min_length=2)]


def find_member_problems(members: Sequence[MemberSpec], classes: Sequence[str]) -> Iterable[Problem]:
    """Yield names that appear twice."""
    labels = [member.label for member in members]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            hint = "write name: with another name"
            yield Problem(("members", index), f"another member is named {label!r}", hint=hint)
    for index, name in enumerate(classes):
        if name in classes[:index]:
            yield Problem(("classes", index), f"class {name!r} appears twice", hint="name each class once")
