"""The envelope that every spec shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
NAME_RULE = "letters, digits, dot, dash and underscore, the first a letter or digit"
Name = Annotated[str, Field(pattern=NAME, max_length=80, description=f"{NAME_RULE}; names the run's folder")]


class Model(BaseModel):
    """A part of a spec: strict, frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> Any:
        """Write defaults as a user would write them (`$1`, not 1.0), so that an editor offers what is valid."""
        found = handler(core_schema)
        defaults = cls.model_construct().model_dump(mode="json", by_alias=True)
        for name, item in handler.resolve_ref_schema(found).get("properties", {}).items():
            if "default" in item and name in defaults:
                item["default"] = defaults[name]
        return found


class Spec(Model):
    """The keys that every kind has."""

    version: Literal[1] = Field(description="version of the spec format")
    kind: str = Field(description="which plugin answers")
    name: Name


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake between parts of a spec; ``path`` leads to the part (keys and indices), ``at_key`` to its key."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    at_key: bool = False


@runtime_checkable
class Checked(Protocol):
    """A spec that can say what does not fit together, all at once."""

    def problems(self) -> Iterable[Problem]:
        """Yield every mistake that the types alone do not show."""
