"""What the verbs do: profile, train, plan, serve."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from unfold_echo.spec import EchoSpec
from unfoldkit.api import (
    AnyFigure,
    CheckResult,
    Column,
    Edge,
    Figure,
    Graph,
    Metric,
    Node,
    Report,
    Run,
    Series,
    Service,
    Table,
    Verdict,
    fingerprint,
)
from unfoldkit.serving.service import Message, Scope


def profile(spec: EchoSpec, run: Run) -> Report:
    """Measure how long it takes to say the message once."""
    began = run.clock()
    say((spec.message, 0, 0.0))
    seconds = run.clock() - began
    metrics = {"letters": Metric(len(spec.message)), "seconds": Metric(seconds, "s", timed=True)}
    return _report(spec, "profile", Verdict.YES, f"{len(spec.message)} letters", metrics)


def train(spec: EchoSpec, run: Run) -> Report:
    """Say the message ``repeat`` times; what was said before the process was killed is not said again."""
    made_from = fingerprint(spec.message, run.seed)
    names = [f"said/{index}.txt" for index in range(spec.repeat)]
    todo = [index for index, name in enumerate(names) if not run.directory.has(name, made_from=made_from)]

    def keep(position: int, text: str) -> None:
        run.directory.write(names[todo[position]], text.encode(), made_from=made_from)
        run.progress("say", spec.repeat - len(todo) + position + 1, spec.repeat)

    run.engine.map(say, [(spec.message, index, spec.pause) for index in todo], on_result=keep)
    rows = tuple((index + 1, run.directory.read(name).decode()) for index, name in enumerate(names))
    table = Table("said", (Column("time"), Column("text")), rows)
    headline = f"said {spec.repeat} times · saved in {run.directory.path}"
    return _report(spec, "train", Verdict.YES, headline, {"said": Metric(spec.repeat)}, (table,))


def plan(spec: EchoSpec, run: Run) -> Report:
    """Say what it would cost, and whether the budget allows it."""
    voice = next(voice for voice in spec.voices if voice.name == spec.voice)
    price = round(voice.price * spec.repeat, 9)
    ok = price <= spec.budget
    run.log.info("%s says it %d times", voice.name, spec.repeat)
    # 0.3 / 0.1 is a little below 3
    affordable = int(round(spec.budget / voice.price, 9)) if voice.price else spec.repeat
    headline = f"${price:.2f} of ${spec.budget:.2f}"
    if not ok:
        headline = f"${price:.2f} is over the budget of ${spec.budget:.2f}; it allows {affordable} times"
    metrics = {"price": Metric(price, "$", target=f"≤ {spec.budget:g}", ok=ok)}
    counts = tuple(float(count) for count in range(1, spec.repeat + 1))
    series = Series("price", counts, tuple(round(voice.price * count, 9) for count in counts))
    figure = Figure("price", "Price by number of times", "times", "price $", (series,))
    verdict = Verdict.YES if ok else Verdict.NO
    report = _report(spec, "plan", verdict, headline, metrics, figures=(_path_figure(spec, price), figure))
    return _with_decision(report, {"voice": voice.name, "times": spec.repeat, "price": price})


def _path_figure(spec: EchoSpec, price: float) -> Graph:
    """Show the way of the message, and how much of the budget the voice needs."""
    load = price / spec.budget if spec.budget else None
    nodes = (
        Node(name="the script", facts=(f"{len(spec.message)} letters",)),
        Node(name=spec.voice, facts=(f"${price:.2f}",), count=spec.repeat, load=load),
    )
    edges = (Edge("the script", spec.voice),)
    return Graph(
        name="way", title="The path of the message", nodes=nodes, edges=edges, count="times", load="of the budget"
    )


def serve(spec: EchoSpec, run: Run) -> Service:
    """Answer every request with the message."""
    del run
    body = json.dumps({"message": spec.message, "times": spec.repeat}).encode()

    async def app(
        scope: Scope, _receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http":
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"application/json")],
                }
            )
            await send({"type": "http.response.body", "body": body})

    return Service(spec.name, app, paths=("/",))


def check_message() -> CheckResult:
    """Check that a message comes back."""
    return CheckResult(say(("hello", 0, 0.0)) == "hello", "hello came back", "reinstall the plugin")


def say(job: tuple[str, int, float]) -> str:
    """Return the message of ``(message, index, pause)`` after the pause."""
    message, _index, pause = job
    time.sleep(pause)
    return message


def _report(
    spec: EchoSpec,
    verb: str,
    verdict: Verdict,
    headline: str,
    metrics: dict[str, Metric],
    tables: tuple[Table, ...] = (),
    figures: tuple[AnyFigure, ...] = (),
) -> Report:
    subtitle = (f"{len(spec.message)} letters", f"{spec.repeat} times")
    question = "Does the message come back?"
    return Report("echo", verb, spec.name, verdict, headline, subtitle, metrics, tables, figures, question=question)


def _with_decision(report: Report, decision: dict[str, object]) -> Report:
    return replace(report, decision=decision, next="unfold train SPEC")
