"""What a user writes in a spec of kind ``echo``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Duration, Model, Money, Problem, Spec, did_you_mean, format_value


class Voice(Model):
    """Who says the message, and what one call costs."""

    name: str = Field(min_length=1, description="what `voice` calls it")
    price: Money = Field(default=0.01, description="for saying the message once")


class EchoSpec(Spec):
    """Says a message a number of times, if the budget allows."""

    kind: Literal["echo"]
    message: str = Field(min_length=1, max_length=1000, description="what is said")
    repeat: Annotated[int, Field(ge=1, le=100, description="how many times")] = 1
    voices: tuple[Voice, ...] = Field(default=(Voice(name="plain"),), min_length=1, description="who can say it")
    voice: str = Field(default="plain", description="the name of one of the voices")
    pause: Duration = Field(default=0.0, description="between two of them")
    budget: Money = Field(default=1.0, description="the plan says no when the price is above it")

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        names = [voice.name for voice in self.voices]
        if self.voice not in names:
            yield Problem(
                ("voice",), f"no such voice: {format_value(self.voice)}", hint=did_you_mean(self.voice, names)
            )
