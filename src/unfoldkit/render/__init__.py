"""Renderers, one module per format; each turns a :class:`~unfoldkit.report.Report` into text or bytes."""

from __future__ import annotations

from unfoldkit.plugin_descriptors import Renderer


def builtin_renderers() -> tuple[Renderer, ...]:
    """Return the built-in formats."""
    return (
        Renderer("text", "for a terminal", "unfoldkit.render.text:render", (".txt",)),
        Renderer("json", "for programs; schema unfoldkit.report/1", "unfoldkit.render.json:render", (".json",)),
        Renderer("md", "for a job summary or a pull request", "unfoldkit.render.md:render", (".md",)),
        Renderer("html", "one file with the plots inside", "unfoldkit.render.html:render", (".html", ".htm")),
        Renderer("github", "annotations of a GitHub workflow", "unfoldkit.render.github:render"),
        Renderer("junit", "test cases for a CI server", "unfoldkit.render.junit:render", (".xml",)),
        Renderer("png", "the plots alone", "unfoldkit.render.plot:render", (".png",)),
        Renderer(
            "plan",
            "the plan alone, to review, commit and check",
            "unfoldkit.render.plan:render",
            (".yaml", ".yml"),
        ),
    )
