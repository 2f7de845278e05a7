"""Make the gallery page: ``python -m docs.gallery`` plans one spec of each kind and draws its first figures.

Plans take minutes together, so the page is not one of ``python -m docs.generate``. The workflow of the site runs this.
Run it too after a change of a report or of a figure, and look at the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.cli.execution import execute, load_request
from unfoldkit.cli.request import Request
from unfoldkit.figure_data import AnyFigure
from unfoldkit.registry import open_registry
from unfoldkit.render.figures.description import describe_figure
from unfoldkit.render.figures.style import INK
from unfoldkit.render.plot import svg
from unfoldkit.report import Report

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
IMAGES = ROOT / "docs" / "images" / "gallery"
MAX_BYTES = 200_000
HEAD = """# Gallery

One plan of each kind, as its report shows it. Each figure is data in the [report](reference/formats.md):
`--out plan.html` draws it with its values in a table, `--format md` writes it for a pull request, and the terminal
shows it as text. Your own [plugin](how-to/write-a-plugin.md) can return the same types.

"""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A spec, and the names of the figures of its plan to show; a further spec of a kind has a section of its own."""

    spec: str
    figures: tuple[str, ...]
    is_further: bool = False


EXHIBITS = (
    Exhibit("configs/cascade/api-logs.yaml", ("flow", "exits")),
    Exhibit("configs/cascade/wards.yaml", ("models", "patient", "ward"), is_further=True),
    Exhibit("configs/cascade/llm.yaml", ("flow",), is_further=True),
    Exhibit("configs/pipeline/video-monitoring.yaml", ("plan",)),
    Exhibit("configs/tuning/resnet-cifar.yaml", ("cluster", "trials")),
    Exhibit("configs/placement/gangs.yaml", ("gantt",)),
    Exhibit("configs/supernet/fastswitch-resnet50.yaml", ("savings",)),
)


def main(arguments: Sequence[str] = sys.argv[1:]) -> int:
    """Write the page and its pictures; return 2 for arguments, of which there are none."""
    if arguments:
        print(__doc__)
        return 2
    IMAGES.mkdir(parents=True, exist_ok=True)
    sections = [_write_exhibit(exhibit) for exhibit in EXHIBITS]
    PAGE.write_text(HEAD + "\n".join(sections), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and {len(list(IMAGES.glob('*.svg')))} pictures")
    return 0


def plan_spec(spec: str) -> Report:
    """Return the report of the plan of a spec."""
    registry = open_registry(builtin_only=True)
    with tempfile.TemporaryDirectory() as folder:
        request = Request(verb="plan", spec=str(ROOT / spec), run=Path(folder) / "run")
        return execute(request, registry, load_request(request, registry))[0]


def draw_picture(figure: AnyFigure) -> str:
    """Return a figure as an SVG file with colours of its own, for pages from which it cannot inherit colours."""
    drawn = svg(figure).replace("<svg", f'<svg style="color:{INK};background:#f8fafc"', 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}\n'


def _write_exhibit(exhibit: Exhibit) -> str:
    report = plan_spec(exhibit.spec)
    shown = [figure for figure in report.figures if figure.name in exhibit.figures]
    name = report.name if exhibit.is_further else report.kind
    parts = [
        f"{'###' if exhibit.is_further else '##'} {name}\n",
        f"[`{Path(exhibit.spec).name}`](../{exhibit.spec}): {_describe(report)}\n",
    ]
    for figure in shown:
        file = f"{name}-{figure.name}.svg"
        content = draw_picture(figure).encode()
        if len(content) > MAX_BYTES:
            raise ValueError(f"{file} has {len(content)} bytes")
        (IMAGES / file).write_bytes(content)
        text = describe_figure(figure).replace("[", "(").replace("]", ")").replace("\n", " ")
        parts.append(f"**{figure.title}**\n\n![{text}](images/gallery/{file})\n")
    return "\n".join(parts)


def _describe(report: Report) -> str:
    # the folder of the run is a temporary one
    return f"*{report.verdict} · {report.headline.partition(' · saved in')[0]}*"


if __name__ == "__main__":
    sys.exit(main())
