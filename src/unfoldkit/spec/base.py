"""The base classes of specs: strict models, and the keys that every kind has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
NAME_RULE = "letters, digits, dot, dash and underscore, the first a letter or digit"
Name = Annotated[str, Field(pattern=NAME, max_length=80, description=NAME_RULE)]


class Model(BaseModel):
    """A part of a spec: strict and frozen, without unknown keys and NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> Any:
        """Write defaults as in a spec (`$1`, not 1.0), so that editors offer valid values."""
        schema = handler(core_schema)
        defaults = cls.model_construct().model_dump(mode="json", by_alias=True)
        for name, entry in handler.resolve_ref_schema(schema).get("properties", {}).items():
            if "default" in entry and name in defaults:
                entry["default"] = defaults[name]
        return schema


class Spec(Model):
    """The keys that every kind has."""

    version: Literal[1] = Field(description="version of the spec format")
    kind: str = Field(description="the kind of question, which selects the plugin")
    name: Name = Field(description=f"{NAME_RULE}; names the run's folder")


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake between parts of a spec.

    Args:
        path: Keys and indices of the part at fault.
        message: What is wrong.
        hint: What to do.
        at_key: Point to the key of the part instead of its value.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    at_key: bool = False


@runtime_checkable
class Checked(Protocol):
    """A spec that checks whether its parts fit together."""

    def problems(self) -> Iterable[Problem]:
        """Yield every mistake that types alone cannot express."""
