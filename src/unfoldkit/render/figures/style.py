"""What every figure has in common: colours, dashes, hatches, and text that fits into a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# medium tones, which are legible on white and on black
COLOURS = ("#0891b2", "#857d77", "#d97706", "#8b5cf6", "#16a34a", "#ef4444", "#3b82f6", "#a16207")
# colour alone does not distinguish lines that overlap, in grey print, or for colour-blind readers
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")
INK = "#1f2937"
# no dots: matplotlib writes each as a path of its own
HATCHES = ("", "//", "\\\\", "xx", "--", "||", "++", "/")
WIDTH_PT = 547.0
"""Width of a figure."""
LEGEND_LETTERS = 104
"""Letters of a legend in one line, with HANDLE_LETTERS for the sample beside each name."""
HANDLE_LETTERS = 8
LEGEND_ROW_PT = 14.0
MAX_ROWS = 3
"""Rows of names that are too long for two columns."""
LETTER_PT = 0.58
"""Mean width of a letter, as a share of the font size."""
STYLE: dict[Any, Any] = {
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "unfoldkit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # two prices in one text are not a formula
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def thin_points(x: Sequence[float], y: Sequence[float], limit: int) -> tuple[list[float], list[float]]:
    """Return about ``limit`` of many points: of each group of neighbours the lowest and the highest one, in order."""
    width = math.ceil(2 * len(x) / limit)
    if width <= 2:
        return list(x), list(y)
    kept = set()
    for start in range(0, len(x), width):
        group = [index for index in range(start, min(start + width, len(x))) if math.isfinite(y[index])]
        if group:
            kept |= {min(group, key=lambda index: y[index]), max(group, key=lambda index: y[index])}
    order = sorted({0, len(x) - 1} | kept)
    return [x[index] for index in order], [y[index] for index in order]


def open_sheet(axes: Axes, height_pt: float) -> None:
    """Turn axes into a sheet without ticks, in points from the upper left corner."""
    axes.set_xlim(0, WIDTH_PT)
    axes.set_ylim(height_pt, 0)
    axes.set_axis_off()


def write(axes: Axes, x: float, y: float, text: str, *, size: float = 9.0, **style: Any) -> None:
    """Write text on a sheet; by default its left end, centred vertically, is at the position."""
    axes.text(x, y, text, fontsize=size, **{"va": "center", "ha": "left", **style})


def shorten_to(text: str, room_pt: float, size: float = 9.0) -> str:
    """Shorten text to a width; an ellipsis stands for what is left out. A wide letter counts as two."""
    text, letters = " ".join(text.split()), max(2, int(room_pt / (size * LETTER_PT)))
    return text if cell_len(text) <= letters else set_cell_size(text, letters - 1).rstrip() + "…"


def fit_legend(names: Sequence[str], beside: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Return the columns of a legend, and its names, shortened where no column has room.

    Args:
        names: What the legend explains.
        beside: Labels of the vertical axis, beside which the legend is not.
    """
    room = LEGEND_LETTERS - max(map(cell_len, beside), default=0)
    lengths = [cell_len(name) + HANDLE_LETTERS for name in names]
    if sum(lengths) <= room:
        columns = max(1, len(names))
    else:
        fitting = [count for count in (4, 3, 2) if count * max(lengths) <= room]
        columns = fitting[0] if fitting else min(2, math.ceil(len(names) / MAX_ROWS))
    letters = max(lengths, default=0) if sum(lengths) <= room else room // columns - HANDLE_LETTERS
    short = [shorten_middle(name, letters) for name in names]
    # matplotlib leaves names with a leading underscore out of legends
    return columns, [f" {name}" if name.startswith("_") else name for name in short]


def measure_legend(names: Sequence[str], beside: Sequence[str] = (), free_rows: int = 1) -> float:
    """Return the height in points of a legend's rows, without those that a figure has room for anyway."""
    rows = math.ceil(len(names) / fit_legend(names, beside)[0]) if names else 0
    return LEGEND_ROW_PT * max(0, rows - free_rows)


def shorten_middle(text: str, letters: int) -> str:
    """Shorten a name to a number of letters from its middle: the ends of serial names are what differs."""
    text = " ".join(text.split())
    if cell_len(text) <= letters:
        return text
    tail, tail_letters = "", max(1, (letters - 1) // 2)
    for letter in reversed(text):
        if cell_len(letter + tail) > tail_letters:
            break
        tail = letter + tail
    return set_cell_size(text, letters - 1 - cell_len(tail)).rstrip() + "…" + tail
