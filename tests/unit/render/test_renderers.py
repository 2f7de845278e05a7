"""Every format of one report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from html.parser import HTMLParser
from operator import getitem
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from unfoldkit.cli.output import deliver
from unfoldkit.errors import Diagnostic, UnfoldError
from unfoldkit.figure_data import Figure, Series
from unfoldkit.format import format_number
from unfoldkit.plugin_descriptors import resolve
from unfoldkit.render import builtin_renderers, formatting, github, html, junit, md, plan, plot, text
from unfoldkit.render import json as json_format
from unfoldkit.report import Column, Metric, Report, Table, Verdict, from_data, to_data, validate_report
from unfoldkit.safe_io.files import decoding
from unfoldkit.spec.yaml_reader import parse

EVIL = "<b>&|\x1b[31m\n%::"
REPORT = Report(
    kind="echo",
    verb="plan",
    name="hello",
    verdict=Verdict.NO,
    headline="too dear",
    subtitle=("3 times", EVIL),
    metrics={
        "price": Metric(1.25, "$", "≤ 1", ok=False),
        "loss": Metric(0.0, target="≤ 1", ok=True),
        "none": Metric(None),
    },
    tables=(
        Table("plans", (Column("plan"), Column("cost", "$/h", digits=2)), (("a", 1234.5), (EVIL, None)), accent=0),
    ),
    figures=(Figure("f", "F", "x", "y", (Series("s", (1.0, 2.0), (2.0, 4.0)), Series("p", (1.0,), (2.0,), "points"))),),
    lines=(("binding", "the budget"),),
    notes=("measured here",),
    next="unfold train hello.yaml",
    decision={"voice": "no", "times": 3},
    provenance={"seed": 1, "timed": {"seconds": 1.0}, "spec": {"name": "hello"}},
)


@pytest.mark.e2e
@pytest.mark.parametrize("renderer", builtin_renderers(), ids=lambda item: item.name)
def test_a_format_is_the_same_bytes_for_the_same_report(renderer: object) -> None:
    """Every format renders, ends its text with one line break, and does so alike each time."""
    render = resolve(renderer.render)  # type: ignore[attr-defined]
    first = render(REPORT)
    assert first == render(REPORT)
    if isinstance(first, str):
        assert first.endswith("\n")
        assert not first.endswith("\n\n")


def _list_places(value: Any, *place: Any) -> Iterator[tuple[Any, ...]]:
    """List the ways to every value within plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*place, key)
        yield from _list_places(child, *place, key)


@pytest.mark.parametrize("wrong", [None, -1, 1e308, True, "x", [], {"a": 1}, 2**64], ids=repr)
def test_a_value_of_another_type_is_refused_or_rendered(wrong: object) -> None:
    """No report of another program, with a manifest that lists it, ends a renderer."""
    refused = []
    for place in _list_places(to_data(REPORT)):
        data = to_data(REPORT)
        reduce(getitem, place[:-1], data)[place[-1]] = wrong
        try:
            with decoding("report.json"):
                report = from_data(data)
        except UnfoldError:
            refused.append(place)
            continue
        if not list(validate_report(report, report.kind, report.verb)):
            assert all(render(report) for render in (text.render, md.render, junit.render, github.render))
    assert (("lines", 0, 1) in refused) == (wrong != "x")
    assert (("figures", 0, "series", 0, "x", 1) in refused) == (wrong not in (None, -1, 1e308, 2**64) or wrong is True)


@pytest.mark.parametrize("width", [1, 20])
def test_a_table_of_numbers_fits_no_narrow_terminal(width: int) -> None:
    """Its columns have no spare room to share, and nothing that could take it."""
    numbers = Table("t", (Column("a"), Column("b")), ((1.5e300, -2.5e300),))
    assert text.render(replace(REPORT, tables=(numbers,)), width=width).endswith("\nnext: unfold train hello.yaml\n")


def test_the_selected_row_and_the_digits_exist() -> None:
    """A row to accent beyond the table is a flaw, and so are more digits than a float has."""
    table = replace(REPORT.tables[0], columns=(Column("a"), Column("b", digits=18)), accent=2)
    problems = list(validate_report(replace(REPORT, tables=(table,)), "echo", "plan"))
    assert problems == [
        "table plans: a column has fewer than 0 or more than 17 digits",
        "table plans: accent is 2, but it has 2 rows",
    ]


def test_the_question_stands_above_the_answer_and_labels_replace_the_words_of_names() -> None:
    """Pages and Markdown escape both."""
    metrics = {"price": replace(REPORT.metrics["price"], label=f"price {EVIL}")}
    asked = replace(REPORT, question=f"Is it cheap, {EVIL}?", metrics=metrics)
    page, written = html.render(asked), md.render(asked)
    assert 0 < page.index("Is it cheap, &lt;b&gt;") < page.index('class="answer no"')
    assert "<span>price &lt;b&gt;" in page
    assert 0 < written.index("Is it cheap, &lt;b>") < written.index("**no** · too dear")
    assert "question" not in html.render(REPORT).split("</style>")[1]


def test_the_answer_is_the_last_line_before_the_next_command() -> None:
    """Text puts the verdict under its reasons and the next command under that; no colour unless asked."""
    lines = text.render(REPORT).splitlines()
    assert lines[-2:] == ["no · too dear", "next: unfold train hello.yaml"]
    assert any("1,234.50" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b[1" not in text.render(REPORT)
    assert "\x1b[1" in text.render(REPORT, colour=True)
    assert max(map(len, text.render(REPORT, width=60).splitlines())) <= 60


def test_json_reads_back() -> None:
    """JSON holds the whole report and nothing that is not JSON."""
    assert to_data(from_data(json.loads(json_format.render(REPORT)))) == to_data(REPORT)


def test_markdown_has_one_row_a_line() -> None:
    """In Markdown no text of the report breaks a table or becomes HTML."""
    found = md.render(REPORT)
    rows = [line for line in found.splitlines() if line.startswith("| ")]
    assert len(rows) == (2 + 3) + (2 + 2)
    assert "<b>" not in found
    assert "\\|" in found


def test_markdown_has_no_markup_of_a_file() -> None:
    """Names of a file become no link, image, code, emphasis, entity or mention, and no cell by a backslash."""
    names = (
        "![a](http://a.example/b.png)",
        "[a](http://b.example)",
        "**a**",
        "`a`",
        "&lt;b>",
        "a\\\\|b",
        "ask @team/a",
    )
    table = Table("t", (Column("name"), Column("n")), tuple((name, 1) for name in names))
    found = md.render(replace(REPORT, tables=(table,), lines=((names[0], names[1]),), next="unfold plan 'a`b``c'"))
    assert not re.search(r"(?<!\\)\]\(", found)
    rows = [line for line in found.splitlines() if line.startswith("| ")][-len(names) :]
    assert [row.removesuffix(" | 1 |") for row in rows] == [
        r"| ![a\](http://a.example/b.png)",
        r"| [a\](http://b.example)",
        r"| \*\*a\*\*",
        r"| \`a\`",
        r"| &amp;lt;b>",
        r"| a\\\\\|b",
        r"| ask @<!-- -->team/a",
    ]
    assert found.endswith("next: ``` unfold plan 'a`b``c' ```\n")


def test_html_is_one_safe_page() -> None:
    """The page is well nested, loads nothing, runs nothing, and shows text as text."""
    page = html.render(REPORT)
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            assert not {"src", "onload", "onclick"} & {name for name, _ in attrs}

    Tags().feed(page)
    assert "b" in seen
    assert "script" not in seen
    assert "<b>&|" not in page
    assert "&lt;b&gt;&amp;|" in page
    assert "<svg" in page


def test_junit_is_xml_with_one_case_a_target() -> None:
    """The verdict and each metric with a target is a case; those that miss have failed."""
    root = ET.fromstring(junit.render(replace(REPORT, headline=EVIL)))  # noqa: S314 - made here
    suite = root[0]
    assert [case.get("name") for case in suite] == ["verdict", "price", "loss"]
    assert suite.get("failures") == "2"
    assert [len(case) for case in suite] == [1, 1, 0]


def test_diagnostics_are_cases_and_annotations() -> None:
    """A mistake in a spec is a failed case, and an annotation at its file and line; none is one passed case."""
    item = Diagnostic("bad, very: 100%\n", "a,b.yaml", 3, 7, "x", "so")
    suite = ET.fromstring(junit.render_diagnostics([item]))[0]  # noqa: S314 - made here
    assert suite.get("failures") == "1"
    assert ET.fromstring(junit.render_diagnostics([]))[0].get("failures") == "0"  # noqa: S314 - made here
    line = github.render_diagnostics([item])
    assert line == "::error file=a%2Cb.yaml,line=3,col=7::x: bad, very: 100%25%0A (so)\n"


@pytest.mark.parametrize("letter", ["\x1b", "\x85", "\x9b", "\u2028", "\u202e", "\ud800", "\ufffe"])
def test_keys_of_a_spec_cannot_steer_a_terminal_or_break_xml(letter: str) -> None:
    """Unprintable characters of a key or a message are escaped where a format has no escapes of its own."""
    item = Diagnostic(f"bad {letter}", "a.yaml", 3, 7, f"x{letter}y", "so")
    line = github.render_diagnostics([item])
    assert line.removesuffix("\n").isprintable()
    suite = ET.fromstring(junit.render_diagnostics([item]).encode())[0]  # noqa: S314 - made here
    assert str(suite[0].get("name")).isprintable()
    assert ET.fromstring(junit.render(replace(REPORT, name=f"a{letter}")).encode()).tag  # noqa: S314 - made here


@pytest.mark.parametrize(
    ("item", "place"),
    [
        (Diagnostic("m", "a.yaml"), "file=a.yaml"),
        (Diagnostic("m", "a.csv", 3), "file=a.csv,line=3"),
        (Diagnostic("m", "--set a=1"), "title=--set a=1"),
        (Diagnostic("m", "<stdin>", 3, 7), "title=<stdin>%3A3%3A7"),
    ],
)
def test_only_files_are_annotated(item: Diagnostic, place: str) -> None:
    """A mistake in an option or in stdin, which are not files of a repository, has its place as title."""
    assert github.render_diagnostics([item]) == f"::error {place}::m\n"


def test_annotations_are_one_line_each() -> None:
    """GitHub sees the verdict and every metric that misses, and no text of ours ends a command early."""
    lines = github.render(REPORT).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error"]
    assert "price" in lines[1]
    assert github.render(replace(REPORT, verdict=Verdict.YES, metrics={})).startswith("::notice")


def test_a_plan_is_yaml_that_reads_back() -> None:
    """The plan holds decision and provenance without times; a report without a decision has none."""
    data = parse(plan.render(REPORT)).data
    assert data["schema"] == "unfoldkit.plan/1"
    assert data["decision"] == {"voice": "no", "times": 3}
    assert "timed" not in data
    with pytest.raises(UnfoldError, match="makes no plan"):
        plan.render(replace(REPORT, decision=None))


def test_no_plan_is_an_answer_with_its_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the answer is no, ``--out plan.yaml`` writes nothing, and the reasons are shown."""
    target = tmp_path / "plan.yaml"
    renderer = next(each for each in builtin_renderers() if each.name == "plan")
    deliver(replace(REPORT, decision=None), renderer, target)
    assert not target.exists()
    output = capsys.readouterr().err
    assert "binding: the budget\n" in output
    assert "too dear\nwrote no plan" in output


def test_a_report_without_plots_has_no_picture() -> None:
    """A picture of nothing is refused, a picture of something is a PNG."""
    assert plot.render(REPORT).startswith(b"\x89PNG")
    with pytest.raises(UnfoldError, match="has no plot"):
        plot.render(replace(REPORT, figures=()))


@pytest.mark.parametrize("style", ["line", "steps", "points", "bars", "segments"])
def test_every_style_is_drawn(style: str) -> None:
    """Each style of series is drawn, on plain and logarithmic axes, with points that are not finite left out."""
    series = Series("s", (1.0, 2.0, 3.0), (1.0, float("nan"), 10.0), style)  # type: ignore[arg-type]
    for log in (False, True):
        drawn = plot.svg(Figure("f", "F", "x", "y", (series,), log_x=log, log_y=log))
        assert drawn.startswith("<svg")


def test_bars_stand_in_whole_lanes_from_the_beginning_on() -> None:
    """A single lane is labelled with its whole number and no fraction, and the time axis begins at 0."""
    series = (Series("a", (3.0, 4.0), (1.0, 1.0), "segments"), Series("b", (4.0, 9.0), (1.0, 1.0), "segments"))
    drawn = plot.svg(Figure("f", "F", "seconds", "lane", series))
    labels = set(re.findall(r">([0-9.]+)<", drawn))
    assert "1" in labels
    assert "0" in labels
    assert not any("." in label for label in labels), labels


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [(0, None, "0"), (1234, None, "1,234"), (0.0, None, "0"), (1234.5, 1, "1,234.5"), (0.012345, None, "0.0123"),
     (1e-9, None, "1.00e-09"), (2.5e30, None, "2.50e+30"), (float("inf"), None, "∞"), (float("nan"), 2, "–"),
     (-1.5, None, "-1.50")],
)  # fmt: skip
def test_numbers_look_alike_in_every_format(value: float, digits: int | None, expected: str) -> None:
    """Thousands are separated, three significant digits are kept, what is not finite is a sign."""
    assert format_number(value, digits) == expected


def test_cells_show_what_is_absent() -> None:
    """Nothing is a dash, truth is a word, a metric without value is marked so."""
    column = Column("c", "ms")
    assert [formatting.format_cell(value, column) for value in (None, True, False, "x")] == ["–", "yes", "no", "x"]
    assert formatting.format_head(column) == "c ms"
    assert formatting.format_metric(Metric(None, "s")) == "not measured"


def test_lines_differ_by_more_than_their_colour() -> None:
    """Each of 32 lines has its own colour and dashes, so grey paper and colour-blind readers lose none."""
    series = tuple(Series(f"s{place}", (0.0, 1.0), (float(place), 2.0)) for place in range(32))
    drawn = plot.svg(Figure("f", "F", "x", "y", series))
    strokes = re.findall(r'style="fill: none; (?:stroke-dasharray: ([^;]+); )?(?:[^"]*?)stroke: (#\w+)', drawn)
    lines = {pair for pair in strokes if pair[1] in plot.COLOURS}
    assert len(lines) == 32
    assert len({dashes for dashes, _ in lines}) == 4


def test_a_line_of_one_point_is_seen() -> None:
    """A line, or steps, of one point have no length; the point is drawn."""
    for style in ("line", "steps"):
        drawn = plot.svg(Figure("f", "F", "x", "y", (Series("s", (3.0,), (4.0,), style),)))  # type: ignore[arg-type]
        assert "PathCollection" in drawn


def test_a_legend_shows_names_as_they_are() -> None:
    """A name that begins with an underscore, or holds two dollar signs, is in the legend unchanged."""
    names = ("_batch", "$a_$ or $b")
    drawn = plot.svg(Figure("f", "F", "x", "y", tuple(Series(name, (1.0, 2.0), (1.0, 2.0)) for name in names)))
    for name in names:
        assert re.search(rf">\s?{re.escape(name)}</text>", drawn), name


def test_many_series_leave_the_plot_its_height() -> None:
    """A legend of many rows makes a figure taller; names of many bars are upright, each by itself."""
    few, many = (tuple(Series(f"s{place}", (0.0, 1.0), (1.0, 2.0)) for place in range(n)) for n in (4, 60))
    heights = [
        float(re.findall(r'height="([0-9.]+)pt"', plot.svg(Figure("f", "F", "x", "y", series)))[0])
        for series in (few, many)
    ]
    assert heights[1] > heights[0] + 100
    names = tuple(f"stage-{place}" for place in range(50))
    bars = (Series("s", tuple(map(float, range(1, 51))), (1.0,) * 50, "bars"),)
    assert "rotate(-90" in plot.svg(Figure("f", "F", "stage", "ms", bars, names=names))


def test_a_plot_in_a_page_takes_the_ink_of_the_page() -> None:
    """A plot is drawn in the colour of the text around it, and a logarithmic axis has plain numbers."""
    drawn = plot.svg(Figure("f", "F", "x", "y", (Series("s", (1e3, 2e4), (1.0, 2.0)),), log_x=True))
    assert "currentColor" in drawn
    assert plot.INK not in drawn
    assert ">10,000<" in drawn


def test_names_stand_on_the_axis() -> None:
    """Values of named things have the names below them, tilted where they are long, and no numbers."""
    series = (Series("s", (1.0, 2.0), (3.0, 4.5), "bars"),)
    few = plot.svg(Figure("f", "F", "stage", "ms", series, names=("decode", "classify")))
    assert ">decode<" in few
    assert ">1.5<" not in few
    long, series = ("a" * 40, "b" * 40, "c" * 40), (Series("s", (1.0, 2.0, 3.0), (3.0, 4.5, 4.0), "bars"),)
    assert "rotate(-20" in plot.svg(Figure("f", "F", "stage", "ms", series, names=long))


def test_what_is_counted_has_whole_numbers_from_nothing() -> None:
    """Steps of whole numbers, such as instances held, begin at 0 and are labelled without fractions."""
    drawn = plot.svg(Figure("f", "F", "s", "instances", (Series("s", (0.0, 60.0), (6.0, 4.0), "steps"),)))
    assert ">0<" in drawn.replace("−", "-")
    levels = re.findall(r">([0-9.]+)<", drawn)
    assert "6" in levels
    assert not any(level in {"4.25", "4.5", "5.5"} for level in levels)


def test_an_axis_of_one_place_begins_at_nothing() -> None:
    """Where all points coincide, such as a wait of 0 s, the axis has no negative values."""
    for place in (0.0, 5.0):
        drawn = plot.svg(Figure("f", "F", "wait s", "share", (Series("s", (place, place), (0.5, 1.0)),)))
        assert not re.search(r">[-\u2212][0-9.]+<", drawn)
        assert ">0<" in drawn


def test_two_plots_of_a_page_share_no_id() -> None:
    """Each plot's ids and references begin with its name; a screen reader gets it in words."""
    figures = tuple(Figure(name, name, "x", "y", (Series("s", (1.0, 2.0), (2.0, 4.0)),)) for name in ("f", "g"))
    page = html.render(replace(REPORT, figures=figures))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 2
    assert {name.split("-")[0] for name in re.findall(r"url\(#([^)]+)\)", page)} == {"f", "g"}
    assert "s from 2.00 at 1.00 to 4.00 at 2.00" in page


def test_of_many_figures_the_page_shows_those_with_a_target_first() -> None:
    """More than a dozen figures are folded away, and what has a target is never among what is hidden."""
    many = {f"figure_{index}": Metric(float(index)) for index in range(30)} | {
        "late_ms": Metric(3.0, "ms", "≤ 5", ok=True)
    }
    page = html.render(replace(REPORT, metrics=many))
    shown, folded = page.split("<details>")
    assert ">late<" in shown
    assert "figure 29" not in shown
    assert "all 31 numbers" in folded
    assert "figure 29" in folded
    assert "<details>" not in html.render(REPORT)


@pytest.mark.parametrize(
    ("name", "metric", "card"),
    [
        (
            "ttft_p99_ms",
            Metric(447.0, "ms", "≤ 500 ms", ok=True),
            "<span>TTFT p99</span><b>447 ms<span>target ≤ 500 ms ✓",
        ),
        ("cost_usd", Metric(6.95, "$", "≤ 10", ok=True), "<span>cost</span><b>$6.95<span>target ≤ $10 ✓"),
        ("cost_per_hour", Metric(55.0, "$/h"), "<span>cost per hour</span><b>$55.00/h</b>"),
        ("wall_s", Metric(16.9, "s", "≤ 180", ok=True), "<b>16.9 s<span>target ≤ 180 s ✓"),
        ("on_time", Metric(0.9, "", "≥ 0.95", ok=False), "<b>0.900<span>target ≥ 0.95 ✗"),
        ("gpus", Metric(6), "<span>GPUs</span><b>6</b>"),
        ("saving", Metric(None, "$"), "<b>not measured</b>"),
        ("goal", Metric(1.0, "x", "more than the baseline", ok=True), "<span>target more than the baseline ✓"),
    ],
)
def test_a_card_writes_units_as_sentences_do(name: str, metric: Metric, card: str) -> None:
    """A currency sign precedes its number, a bare target has the unit of its metric, and acronyms are capitals."""
    assert card in html.render(replace(REPORT, metrics={name: metric}))


def test_text_and_markdown_write_money_as_a_card_does() -> None:
    """A dollar sign precedes its number in every format."""
    money = replace(REPORT, metrics={"cost": Metric(6.95, "$/h", "≤ 10", ok=True)})
    assert "$6.95/h" in text.render(money)
    assert "$6.95/h" in md.render(money)


def test_a_percent_sign_stays_with_its_number() -> None:
    """No line of a page begins with a percent sign."""
    page = html.render(replace(REPORT, headline="94 % in time", lines=(("a", "of 2 %, or 3 %"),)))
    assert "94\u00a0% in time" in page
    assert "of 2\u00a0%, or 3\u00a0%" in page


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_of_a_table_is_broken(width: int) -> None:
    """At any width every number is complete in its row; columns without room follow below, each row named again."""
    heads = ("policy", *(f"long head {index}" for index in range(12)))
    rows = tuple((f"row {at}", *(10_000.25 * index + at for index in range(12))) for at in range(2))
    columns = tuple(Column(head, digits=2 if index else None) for index, head in enumerate(heads))
    shown = text.render(replace(REPORT, subtitle=(), lines=(), tables=(Table("t", columns, rows),)), width=width)
    assert max(map(len, shown.splitlines())) <= width
    for row in rows:
        assert all(f"{value:,.2f}" in shown for value in row[1:])  # type: ignore[str-format]
    parts = [line for line in shown.splitlines() if line.strip().startswith("row 1")]
    assert len(parts) >= (2 if width < 120 else 1)


def test_nothing_has_no_minus() -> None:
    """What rounds to nothing is shown without a sign."""
    assert format_number(-0.04, 1) == "0.0"


def test_no_line_of_text_begins_with_a_percent_sign() -> None:
    """No line of the text ends between a number and its percent sign, wherever it falls."""
    for length in range(20):
        note = f"{'x' * length} {'50 % and ' * 40}"
        shown = text.render(Report(kind="k", verb="plan", name="n", verdict=Verdict.YES, headline=note, notes=(note,)))
        assert "50 %" in shown
        assert not any(line.lstrip().startswith("%") for line in shown.splitlines())


def test_a_price_of_a_metric_is_written_as_in_sentences() -> None:
    """A price has two decimals or, below ten cents, as many as show two digits, and never an exponent."""
    assert formatting.format_metric(Metric(5.26e-05, "$")) == "$0.000053"
    assert formatting.format_metric(Metric(-2e-7, "$/h")) == "-$0.00000020/h"
    assert formatting.format_metric(Metric(12.5, "$/h")) == "$12.50/h"
