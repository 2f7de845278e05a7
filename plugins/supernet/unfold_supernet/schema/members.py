"""Section ``members``: ONNX files of the user's with known accuracy, to serve as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Annotated

from pydantic import Field

from unfoldkit.api import Fraction, Model, Problem

MAX_MEMBERS = 256


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
