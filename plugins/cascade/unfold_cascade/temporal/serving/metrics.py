"""What a server of cases over time tells Prometheus: models asked, exits, purchases, alarms, audits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_cascade.temporal.serving.model import Hour
from unfold_cascade.temporal.serving.plan_loader import Loaded


@dataclass(slots=True)
class Counts:
    """The counters; nothing is counted before ``begin``, while the models are warmed up."""

    names: tuple[tuple[str, str], ...]
    groups: tuple[str, ...]
    stages: tuple[str, ...]
    asked: Any
    answered: Any
    bought: Any
    price: Any
    alarms: Any
    audited: Any
    differs: Any
    hours: Any
    live: bool = False

    def begin(self) -> None:
        """Count from now on."""
        self.live = True

    def count(self, hours: Sequence[Hour]) -> None:
        """Count some hours."""
        for hour in hours if self.live else ():
            self._count(hour)

    def remembered(self, registry: Any, cases: Callable[[], int]) -> None:
        """Tell how many cases are remembered."""
        from prometheus_client import Gauge

        Gauge("unfold_cascade_cases", "Cases that are remembered", registry=registry).set_function(cases)

    def _count(self, hour: Hour) -> None:
        exits = {item.stage: item for item in hour.heard}
        for item in hour.heard:
            self.asked.labels(*self.names[item.model]).inc()
        for item in exits.values():
            self.answered.labels(*self.names[item.model], item.verdict).inc()
        for group in hour.groups:
            self.bought.labels(self.groups[group]).inc()
        self.price.inc(sum(hour.paid))
        self.hours.labels(self.stages[hour.stage]).inc()
        if hour.stage == len(self.stages) - 1:
            self.alarms.inc()
        if hour.audited:
            self.audited.inc()
            self.differs.inc(hour.stage != hour.other)


def counts(loaded: Loaded, registry: Any) -> Counts:
    """Return the counters of a cascade, those of its models at zero."""
    from prometheus_client import Counter

    def counter(name: str, text: str, *labels: str) -> Any:
        return Counter(f"unfold_cascade_{name}", text, labels, registry=registry)

    names = tuple((slot.place.split("/", 1)[0], slot.place.split("/", 1)[1]) for slot in loaded.places)
    asked = counter("asked", "Hours that a model was asked", "stage", "model")
    answered = counter("answered", "Hours that a model decided for its stage", "stage", "model", "verdict")
    for model in [len(names) - 1] if loaded.alone else loaded.asked:
        asked.labels(*names[model])
        for verdict in ("ICK0", "ICK1"):
            answered.labels(*names[model], verdict)
    return Counts(
        names,
        loaded.purchase.names,
        (*(stage.name for stage in loaded.spec.stages), "alarm"),
        asked,
        answered,
        counter("bought", "Purchases of a feature group", "group"),
        counter("price", "What calls and purchases cost"),
        counter("alarms", "Hours in which the last stage said yes"),
        counter("audited", "Hours that the monolith answered too"),
        counter("differs", "Audited hours in which the monolith's stage is another"),
        counter("hours", "Hours by the stage that the case was left in", "stage"),
    )
