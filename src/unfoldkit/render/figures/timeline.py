"""Draw a timeline: a row per lane, bars in the colour and hatch of their group, and markers across all lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len

from unfoldkit.figure_data import Bar, Marker, Timeline
from unfoldkit.render.figures.style import (
    COLOURS,
    HATCHES,
    INK,
    LETTER_PT,
    WIDTH_PT,
    fit_legend,
    measure_legend,
    shorten_middle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LANES = 48
"""Lanes that are drawn; the axis names the number of the others."""
MAX_GROUPS = 8
"""Groups with a colour of their own; the rest share the last one."""
LANE_PT = 22.0
MIN_LANE_PT = 11.0
ROW_PT = 14.0
MAX_HEIGHT_PT = 420.0
FREE_ROWS = 3
"""Rows of the legend for which a timeline has room above its lanes."""
LABEL_LETTERS = 21
STEPS = 700
"""Bars of one row and group with a gap below this part of the axis are drawn as one."""
MIN_STEPS = 60
MAX_BARS = 800
LANE_SHAPES = ("D", "x", "^", "o")
MAX_NAMES = 150
MIN_NAME_PT = 8.5
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class StackedBar:
    """A bar with its row among those that share its lane at some time, and their number."""

    bar: Bar
    row: int
    rows: int


def measure_timeline(timeline: Timeline) -> float:
    """Return the height of a timeline in inches."""
    names = list(list_groups(timeline))[:MAX_GROUPS]
    names += dict.fromkeys(marker.name for marker in timeline.markers)
    lanes_pt = measure_lane(timeline) * max(1, min(len(timeline.lanes), MAX_LANES))
    return (lanes_pt + 92 + measure_legend(names, list_lane_labels(timeline), FREE_ROWS)) / 72


def measure_lane(timeline: Timeline) -> float:
    """Return the height of a lane in points: more where bars overlap, less where there are many lanes."""
    by_lane: dict[str, list[Bar]] = {}
    for bar in timeline.bars:
        by_lane.setdefault(bar.lane, []).append(bar)
    rows = max((stack_bars(bars, 0.0)[0].rows for bars in by_lane.values()), default=1)
    room = MAX_HEIGHT_PT / max(1, min(len(timeline.lanes), MAX_LANES))
    return max(MIN_LANE_PT, min(LANE_PT, room), min(ROW_PT * rows, room))


def draw_timeline(axes: Axes, timeline: Timeline) -> None:
    """Draw the lanes from top to bottom, with the names of bars that have room for them."""
    groups = list_groups(timeline)
    lanes = timeline.lanes[:MAX_LANES]
    first, last = get_range(timeline)
    lane_pt = measure_lane(timeline)
    points_per_unit = WIDTH_PT * 0.8 / (last - first)
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    names = 0
    for lane, items in enumerate(_join_bars(timeline, lanes, last - first)):
        for item in items:
            bar, height = item.bar, 0.8 / item.rows
            top = lane - 0.4 + item.row * height
            boxes.setdefault(groups[bar.group], []).append((bar.start, top, bar.end - bar.start, height * 0.92))
            if names < MAX_NAMES:
                names += _name_bar(axes, bar, top + height / 2, height * lane_pt, points_per_unit)
    for number, shapes in boxes.items():
        _draw_bars(axes, number, shapes)
    for index, marker in enumerate(marker for marker in timeline.markers if not marker.lane):
        draw_marker(axes, marker, index)
    _draw_lane_markers(axes, timeline, lanes)
    axes.set_xlim(first, last)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    labels = list_lane_labels(timeline)
    axes.set_yticks(range(len(lanes)), labels)
    axes.grid(visible=False, axis="y")
    hidden = len(timeline.lanes) - len(lanes)
    axes.set_xlabel(timeline.unit + (f" · {hidden:,} more lanes are in the table" if hidden else ""))
    axes.set_title(timeline.title, loc="left", fontsize=11, pad=40)
    _draw_legend(axes, groups, labels)


def get_range(timeline: Timeline) -> tuple[float, float]:
    """Return the first and the last moment of a timeline, with some room behind the last one."""
    moments = [moment for bar in timeline.bars for moment in (bar.start, bar.end)]
    moments += [moment for marker in timeline.markers for moment in (marker.at, marker.end) if moment is not None]
    first, last = min([0.0, *moments]), max(moments, default=1.0)
    return first, last + 0.02 * (last - first) if last > first else first + 1.0


def list_groups(timeline: Timeline) -> Mapping[str, int]:
    """Number the groups that bars have, in their order; those beyond the last colour share it."""
    begun = dict.fromkeys(bar.group for bar in sorted(timeline.bars, key=lambda bar: bar.start))
    names = dict.fromkeys([*timeline.groups, *begun])
    return {name: min(index, MAX_GROUPS - 1) for index, name in enumerate(names) if name in begun}


def stack_bars(bars: Sequence[Bar], gap: float) -> list[StackedBar]:
    """Assign bars of one lane that overlap in time to rows, and join bars of a row that almost touch."""
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.end)):
        row = next((row for row in rows if row[-1].end <= bar.start + 1e-9), None)
        if row is None:
            rows.append([bar])
        elif _is_joined(row[-1], bar, gap):
            row[-1] = replace(row[-1], end=max(bar.end, row[-1].end), name="")
        else:
            row.append(bar)
    return [StackedBar(bar, index, len(rows)) for index, row in enumerate(rows) for bar in row]


def _is_joined(bar: Bar, following: Bar, gap: float) -> bool:
    # only what would be too thin to see
    is_thin = min(bar.end - bar.start, following.end - following.start) < gap
    return bar.group == following.group and is_thin and following.start - bar.end < gap


def _draw_bars(axes: Axes, number: int, boxes: Sequence[tuple[float, float, float, float]]) -> None:
    """Draw the bars of one group, as left, top, width and height, as one shape: a page stays small."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    vertices, codes = [], []
    for left, top, width, height in boxes:
        right, bottom = left + width, top + height
        vertices += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    shape = PathPatch(Path(vertices, codes))
    colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
    shape.set(facecolor=to_rgba(colour, 0.45), edgecolor=INK, hatch=hatch, linewidth=0.5)
    axes.add_patch(shape)


def _name_bar(axes: Axes, bar: Bar, middle: float, height_pt: float, points_per_unit: float) -> bool:
    room, name = (bar.end - bar.start) * points_per_unit, " ".join(bar.name.split())
    if not name or room < cell_len(name) * 7.5 * LETTER_PT + 4 or height_pt < MIN_NAME_PT:
        return False
    axes.text((bar.start + bar.end) / 2, middle, name, fontsize=7.5, ha="center", va="center")
    return True


def _join_bars(timeline: Timeline, lanes: Sequence[str], span: float) -> list[list[StackedBar]]:
    """Stack the bars of each lane; many bars are joined more than few, so that a page stays small."""
    by_lane = timeline.bars_by_lane()
    gap = span / STEPS
    while True:
        stacked = [stack_bars(by_lane[lane], gap) for lane in lanes]
        if sum(map(len, stacked)) <= MAX_BARS or gap >= span / MIN_STEPS:
            return stacked
        gap *= 2


def draw_marker(axes: Axes, marker: Marker, index: int) -> None:
    """Draw a moment as a dashed line, or an interval as a band, across axes; the legend has its name."""
    dashes = ((4, 2), (1.2, 1.2), (6, 1.5, 1.2, 1.5))[index % 3]
    if marker.end is None:
        axes.axvline(marker.at, color=INK, linewidth=1.3, linestyle=(0, dashes), label=f" {marker.name}")
    else:
        axes.axvspan(marker.at, marker.end, facecolor=INK, alpha=0.12, linewidth=0, label=f" {marker.name}")


def _draw_lane_markers(axes: Axes, timeline: Timeline, lanes: Sequence[str]) -> None:
    """Draw the markers of single lanes: a shape for each name, and a line through an interval."""
    rows = {lane: row for row, lane in enumerate(lanes)}
    names = list_lane_marks(timeline)
    for index, name in enumerate(names):
        marks = [item for item in timeline.markers if item.name == name and item.lane in rows]
        spots = [(moment, rows[item.lane]) for item in marks for moment in (item.at, item.end) if moment is not None]
        shape = LANE_SHAPES[index % len(LANE_SHAPES)]
        for item in marks:
            if item.end is not None:
                axes.plot((item.at, item.end), (rows[item.lane],) * 2, color=INK, linewidth=1.3, zorder=4)
        if spots:
            x, y = zip(*spots, strict=True)
            axes.scatter(x, y, s=34, color=INK, marker=shape, linewidths=1.4, zorder=5, label=f" {name}")


def list_lane_marks(timeline: Timeline) -> list[str]:
    """Return the names of the markers of single lanes, each once."""
    return list(dict.fromkeys(marker.name for marker in timeline.markers if marker.lane))


def list_lane_labels(timeline: Timeline) -> list[str]:
    """Return the names of the lanes that are drawn, as short as there is room."""
    return [shorten_middle(lane, LABEL_LETTERS) for lane in timeline.lanes[:MAX_LANES]]


def _draw_legend(axes: Axes, groups: Mapping[str, int], lane_labels: Sequence[str]) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    names: dict[int, str] = {}
    for name, number in groups.items():
        names[number] = OTHERS if number in names else name or "–"
    patches = [
        Patch(
            facecolor=to_rgba(COLOURS[number], 0.45), edgecolor=INK, hatch=HATCHES[number], linewidth=0.5,
            label=name,
        )
        for number, name in names.items()
    ]  # fmt: skip
    handles, _ = axes.get_legend_handles_labels()
    handles = [*(patches if len(patches) > 1 else []), *handles]
    if handles:
        columns, labels = fit_legend([str(handle.get_label()) for handle in handles], lane_labels)
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8.5,
            borderaxespad=0.2, columnspacing=1.2, handlelength=1.8,
        )  # fmt: skip
