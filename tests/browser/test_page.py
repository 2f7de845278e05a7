"""The live page in headless Chromium: it loads, it moves when load arrives, and its console stays empty."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.client import Server, rows, serving
from tests.unit.test_figure_data import REPORT as EVERY_FIGURE
from unfoldkit.figure_data import Figure, Series
from unfoldkit.render import html
from unfoldkit.report import Column, Metric, Report, Table, Verdict
from unfoldkit.serving.observability.live_page import HISTORY_EVERY_S

INFER = "/v2/models/total/infer"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a browser: the machine's own Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


def opened(browser: Any, server: Server, messages: list[str], **how: Any) -> Any:
    page = browser.new_context(**how).new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("body.on .tile")
    return page


def requests_shown(page: Any) -> str:
    return str(page.locator(".tile b").first.inner_text())


def until(page: Any, condition: Callable[[], bool]) -> None:
    """Wait for a condition; the page's own policy forbids the browser to evaluate one."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it does not come to pass within ten seconds")


def test_a_page_that_opens_later_shows_what_happened_before(chromium: Any, total: Server) -> None:
    """Its curves begin before it was opened: a burst that is over has a peak."""
    messages: list[str] = []
    time.sleep(HISTORY_EVERY_S + 1)
    for _ in range(20):
        assert total.ask(INFER, rows([1, 2, 3])).status == 200
    time.sleep(2 * HISTORY_EVERY_S)
    page = opened(chromium, total, messages)
    peak = page.locator("section.chart", has_text="responses by status").locator("small")
    until(page, lambda: str(peak.inner_text()).startswith("up to "))
    assert float(str(peak.inner_text()).removeprefix("up to ").removesuffix("/s")) > 2
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_moves_when_load_arrives(chromium: Any, total: Server, scheme: str, tmp_path: Path) -> None:
    """Requests that arrive are shown within seconds, in words, in a line and to a screen reader; nothing is logged."""
    messages: list[str] = []
    page = opened(chromium, total, messages, color_scheme=scheme)
    before = page.screenshot(path=tmp_path / "before.png")
    assert requests_shown(page) == "0"
    for _ in range(5):
        assert total.ask(INFER, rows([1, 2, 3])).status == 200
    until(page, lambda: requests_shown(page) == "5")
    until(page, lambda: len(page.locator("svg path.k0").first.get_attribute("d")) > 20)
    assert page.locator("svg").first.get_attribute("aria-label").startswith("responses by status: 200 ")
    assert page.screenshot(path=tmp_path / "after.png") != before
    assert messages == []


def test_one_is_no_plural(chromium: Any, total: Server) -> None:
    """A count of one is printed in the singular, none and several in the plural."""
    page = opened(chromium, total, [])
    labels = [page.evaluate(f"worded({number}, 'replicas')") for number in (0, 1, 2)]
    assert labels == ["0 replicas", "1 replica", "2 replicas"]


def test_a_phone_shows_it_without_scrolling_sideways(chromium: Any, total: Server) -> None:
    """On a screen of 360 pixels nothing is wider than the screen."""
    page = opened(chromium, total, [], viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_report_on_a_phone_is_no_wider_than_its_screen(chromium: Any, tmp_path: Path) -> None:
    """Long names and paths break, and what is wide scrolls in its own frame, on 360 pixels."""
    folder = "/home/ann/projects/placement/configs/" * 2
    words = ("this many words stand in a column of a table",) * 9
    table = Table("wide", tuple(Column(f"column {place}") for place in range(9)), (words,))
    figure = Figure("f", "F", "x", "y", (Series("s", (1.0, 2.0), (2.0, 4.0)),))
    after = f"unfold plan {folder}gangs.yaml --run runs/gangs"
    name, line = "a-name-of-sixty-four-letters-" + "x" * 35, ("note", "w" * 90)
    report = Report(
        "echo", "plan", name, Verdict.YES, f"saved in runs/{name}", tables=(table,), figures=(figure,), lines=(line,),
        next=after,
    )  # fmt: skip
    (tmp_path / "report.html").write_text(html.render(report))
    page = chromium.new_page(viewport={"width": 360, "height": 700})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_long_heads_of_numbers_do_not_make_a_table_wide(chromium: Any, tmp_path: Path) -> None:
    """Eight columns with the heads of policies over time fit a screen of 1,200 pixels without scrolling."""
    heads = ("accuracy %", "macro F1", "utility", "AUPRC", "alerts per 100 h", "price saving x", "FLOPs saving x")
    table = Table("policies", (Column("policy"), *map(Column, heads)), (("single model: sepsis/glance", *[12.3] * 7),))
    (tmp_path / "report.html").write_text(html.render(Report("echo", "plan", "n", Verdict.YES, "h", tables=(table,))))
    page = chromium.new_page(viewport={"width": 1200, "height": 700})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("(frame => frame.scrollWidth - frame.clientWidth)(document.querySelector('div.wide'))") == 0


def test_a_printed_report_holds_every_column(chromium: Any, tmp_path: Path) -> None:
    """On paper nothing scrolls, so the columns of a wide table fit the width of an A4 page."""
    page = chromium.new_page(viewport={"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.goto(written(tmp_path, broad()))
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    last = page.locator("td").last.bounding_box()
    assert last["x"] + last["width"] <= 718


def test_on_a_phone_the_first_column_leaves_room_for_the_next(chromium: Any, tmp_path: Path) -> None:
    """The column that stays in sight, whatever it holds, takes less than half of 360 pixels."""
    page = chromium.new_page(viewport={"width": 360, "height": 700})
    page.goto(written(tmp_path, broad()))
    assert page.locator("td").first.bounding_box()["width"] < 180


def every_figure(folder: Path) -> str:
    report = replace(
        EVERY_FIGURE,
        subtitle=("every type of figure",),
        metrics={"price": Metric(1.25, "$", "≤ 1", ok=False)} | {f"more_{index}": Metric(1.0) for index in range(20)},
        tables=(broad(),),
        lines=(("binding", "the budget"),),
        next="unfold train hello.yaml",
        provenance={"seed": 1},
    )
    plot = Figure(
        "plot", "Plot", "x", "y", (Series("s", (1.0, 2.0), (2.0, 4.0)), Series("p", (1.0,), (2.0,), "points"))
    )
    (folder / "every.html").write_text(html.render(replace(report, figures=(*report.figures, plot))))
    return (folder / "every.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1000])
def test_axe_finds_nothing_serious(chromium: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """axe-core finds no serious and no critical violation on a report with every type of figure, open or closed."""
    from axe_playwright_python.sync_playwright import Axe

    page = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    page.goto(every_figure(tmp_path))
    for summary in page.locator("summary").all():
        summary.click()
    found = [item for item in Axe().run(page).response["violations"] if item["impact"] in ("serious", "critical")]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found] == []


def test_a_report_opens_without_a_network(chromium: Any, tmp_path: Path) -> None:
    """A page with every type of figure requests nothing but itself, logs nothing, and draws all its figures."""
    context = chromium.new_context()
    context.set_offline(True)
    page = context.new_page()
    requested: list[str] = []
    logged: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: logged.append(message.text))
    page.goto(every_figure(tmp_path))
    assert [url.rpartition("/")[2] for url in requested] == ["every.html"]
    assert logged == []
    assert all(figure.bounding_box()["height"] > 60 for figure in page.locator("figure svg").all())
    assert page.locator("figure svg").count() == 6


@pytest.mark.parametrize(("width", "media"), [(320, "screen"), (718, "print")])
def test_figures_fit_small_screens_and_paper(chromium: Any, tmp_path: Path, width: int, media: str) -> None:
    """On 320 pixels and on paper nothing is wider than the page; on paper the values are under the figures."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(media=media)
    page.goto(every_figure(tmp_path))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if media == "print":
        assert all(table.is_visible() for table in page.locator("details.values table").all())


def test_a_keyboard_reaches_every_figure(chromium: Any, tmp_path: Path) -> None:
    """The tab key stops at each figure and at the values under it."""
    page = chromium.new_page()
    page.goto(every_figure(tmp_path))
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + (document.activeElement.ariaLabel ?? '')"))
    assert {"FIGURET", "FIGUREF", "FIGUREG", "FIGURES", "FIGUREI", "FIGUREPlot", "SUMMARY"} <= reached


def broad() -> Table:
    columns = (Column("policy"), *(Column(f"figure {place} per 100 h") for place in range(7)))
    return Table("policies", columns, (("last stage alone: sepsis/watch then sepsis/full", *[1234.5] * 7),))


def written(folder: Path, table: Table) -> str:
    path = folder / "report.html"
    path.write_text(html.render(Report("echo", "plan", "hello", Verdict.YES, "it is", tables=(table,))))
    return path.as_uri()


def test_the_page_reports_a_lost_server_and_recovers(chromium: Any, total: Server) -> None:
    """When the server ends, the page reports it instead of showing old figures as new ones."""
    page = opened(chromium, total, [])
    assert total.end() == 0
    page.wait_for_selector("body.off", timeout=5000)
    assert "no connection" in page.inner_text("#state")


def test_the_token_is_asked_for(chromium: Any) -> None:
    """Behind a token the page asks for it, refuses a wrong one, and shows the figures with the right one."""
    with serving("total", "token=secret") as server:
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        for given, state in (("wrong", "the token is not right"), ("secret", "live")):
            page.wait_for_selector("#ask:not([hidden])")
            page.fill("#token", given)
            page.click("button")
            until(page, lambda: page.inner_text("#state") == state)  # noqa: B023 - called at once
        assert requests_shown(page) == "0"
