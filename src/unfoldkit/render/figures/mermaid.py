"""Write figures as Mermaid diagrams, which GitHub draws in job summaries and pull requests."""

from __future__ import annotations

from unfoldkit.figure_data import AnyFigure, Flow, Graph
from unfoldkit.format import format_number, format_percent
from unfoldkit.render.figures.graph import find_critical

ESCAPES = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", ";": "#59;", "\n": " "}
"""Characters that would end a label or begin Markdown in it."""


def write_mermaid(figure: AnyFigure) -> str:
    """Return a figure as the text of a Mermaid diagram; empty for types that Mermaid does not draw well.

    Args:
        figure: A graph becomes a ``flowchart``, a flow a ``sankey-beta``.
    """
    if isinstance(figure, Graph):
        return _write_graph(figure)
    return _write_flow(figure) if isinstance(figure, Flow) else ""


def _write_graph(graph: Graph) -> str:
    # names are labels only: an id such as "end" is a word of the language
    ids = {node.name: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        times = f" ×{node.count:,}" if node.count != 1 else ""
        facts = [f"**{escape_label(node.name)}**{times}", *map(escape_label, node.facts)]
        if node.load is not None:
            facts.append(f"{escape_label(graph.load)} {format_percent(round(node.load, 2))}")
        if node.share is not None:
            facts.append(f"{escape_label(graph.share)} {format_percent(round(node.share, 2))}")
        lines.append(f'    {ids[node.name]}["{"<br/>".join(facts)}"]')
    for edge in graph.edges:
        weight = f'|"{format_number(edge.weight)}"|' if edge.weight != 1.0 else ""
        lines.append(f"    {ids[edge.source]} -->{weight} {ids[edge.target]}")
    critical = find_critical(graph)
    if critical:
        lines.append(f"    style {ids[critical]} stroke-width:4px")
    return "\n".join(lines)


def _write_flow(flow: Flow) -> str:
    """Write a flow as ``sankey-beta``, which is CSV; Mermaid adds the values to the names."""
    lines = ["sankey-beta", ""]
    values: dict[tuple[str, str], float] = {}
    for link in flow.links:
        values[link.source, link.target] = values.get((link.source, link.target), 0.0) + link.value
    for names, value in values.items():
        if value > 0:
            quoted = ['"' + name.replace('"', '""').replace("\n", " ") + '"' for name in names]
            lines.append(",".join([*quoted, f"{value:.10g}"]))
    return "\n".join(lines)


def escape_label(text: str) -> str:
    """Escape a text for a label between quotation marks."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)
