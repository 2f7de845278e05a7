"""What every figure has in common: colours, dashes, hatches, and text that fits into a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    """Shorten text to a width; an ellipsis stands for what is left out."""
    letters = max(2, int(room_pt / (size * LETTER_PT)))
    return text if len(text) <= letters else text[: letters - 1] + "…"
