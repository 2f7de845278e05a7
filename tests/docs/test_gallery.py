"""The gallery: a plan of each kind, with pictures that are small, by themselves, and current."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
import yaml

from docs.gallery import EXHIBITS, IMAGES, MAX_BYTES, PAGE, ROOT, plan_spec
from unfoldkit.figure_data import Timeline
from unfoldkit.registry import open_registry
from unfoldkit.render.figures.description import describe_figure

WORKFLOW = ROOT / ".github" / "workflows" / "docs.yml"
TEXT = PAGE.read_text("utf-8")


def test_every_kind_that_plans_is_shown() -> None:
    """Each kind with a plan has a section, except the example for authors."""
    kinds = {name for name, kind in open_registry(builtin_only=True).kinds.items() if kind.plan} - {"echo"}
    assert kinds == set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE))


def test_pictures_are_small_and_load_nothing() -> None:
    """Each picture is on the page and each of the page is there; one is valid SVG of less than 200 kB."""
    names = re.findall(r"\(images/gallery/([\w.-]+)\)", TEXT)
    assert sorted(names) == sorted(path.name for path in IMAGES.glob("*.svg"))
    assert len(names) == sum(len(exhibit.figures) for exhibit in EXHIBITS)
    for name in names:
        content = (IMAGES / name).read_text("utf-8")
        assert len(content.encode()) < MAX_BYTES
        root = ET.fromstring(content)  # noqa: S314 - made here
        assert root.findtext("{http://www.w3.org/2000/svg}desc")
        assert set(re.findall(r"https?://[^\"' )]+", content)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }


def test_the_site_is_built_with_a_new_gallery() -> None:
    """The workflow that publishes the site plans the specs and draws the pictures before it builds the pages."""
    steps = [step.get("run", "") for step in yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["site"]["steps"]]
    build = next(number for number, step in enumerate(steps) if step.startswith("mkdocs build"))
    assert "python -m docs.gallery" in steps[:build]


@pytest.mark.e2e
def test_the_gallery_shows_what_a_plan_reports_now() -> None:
    """The text under the picture of placements is the description that the plan gives today."""
    figure = next(item for item in plan_spec("configs/placement/gangs.yaml").figures if item.name == "gantt")
    assert isinstance(figure, Timeline)
    assert f"![{describe_figure(figure)}]" in TEXT
