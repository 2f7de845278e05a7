"""The pages of what plugins and programs rely on: hooks, exit codes, formats, the schema of a report."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from docs.generators.markdown import code, example, fenced, fields, prose, table
from unfoldkit import errors, figure_data, hookspec, plugin_descriptors, report, run_context, run_directory
from unfoldkit.plugin_descriptors import Renderer, resolve
from unfoldkit.registry import hook_names, open_registry
from unfoldkit.render import builtin_renderers
from unfoldkit.serving.service import Service
from unfoldkit.testing.conformance import first_report

HOOKS = """# Hooks

A plugin is a distribution with an entry point in the group `unfoldkit` that names a module. That module holds
functions marked with `hookimpl`, under the names below; each may leave arguments out. [How to write a
plugin](../how-to/write-a-plugin.md) goes from nothing to a working kind. `unfold doctor` reports a misspelt hook.

"""
CODES = """# Exit codes

The answer to the question in a spec is in the exit code, so that a script or a CI job needs nothing else.
`--exit-zero` makes 1 into 0.

"""
FORMATS = """# Formats

`--format NAME` picks one; without it, the ending of `--out FILE` does; without both it is `text`. Plugins may add
formats through the [hook `unfold_renderers`](hooks.md).

"""
SAMPLES = {"text": "", "json": "json", "md": "markdown", "github": "", "junit": "xml", "plan": "yaml"}


def hooks() -> str:
    """Return the reference of the hooks and of what they hand over."""
    parts = [_hook(name) for name in hook_names()]
    described = (
        plugin_descriptors.Kind,
        plugin_descriptors.Check,
        plugin_descriptors.CheckResult,
        plugin_descriptors.Renderer,
        plugin_descriptors.RunFinished,
    )
    parts += [f"## {item.__name__}\n\n{prose(item)}\n\n{fields(item)}" for item in described]
    parts += [
        f"## {item.__name__}\n\n{prose(item)}\n\n{_members(item)}" for item in (run_context.Run, run_directory.RunDir)
    ]
    parts.append(f"## Service\n\n{prose(Service)}\n\n{fields(Service)}")
    return HOOKS + "\n".join(parts)


def _members(item: type) -> str:
    """Return a table of what an object offers: its fields by type, its methods by their first sentence."""
    held = [(code(one.name), code(str(one.type))) for one in dataclasses.fields(item)]
    found = [(name, one) for name, one in vars(item).items() if inspect.isfunction(one) and not name.startswith("_")]
    can = [(code(_call(name, one)), prose(one).partition("\n")[0]) for name, one in found]
    return table(("member", "type, or what it does"), [*held, *can])


def _call(name: str, function: Any) -> str:
    return f"{name}({', '.join(list(inspect.signature(function).parameters)[1:])})"


def _hook(name: str) -> str:
    function = getattr(hookspec, name)
    signature = f"{name}{inspect.signature(function)}".replace("'", "")
    return f"## {name}\n\n{code(signature)}\n\n{prose(function)}\n\n{example(function)}"


def exit_codes() -> str:
    """Return the table of the exit codes."""
    rows = [(code(str(int(item))), item.name, meaning) for item, meaning in code_meanings().items()]
    return CODES + table(("code", "name", "meaning"), rows)


def code_meanings() -> dict[errors.ExitCode, str]:
    """Return the sentence that stands under each code in ``errors.py``."""
    tree = ast.parse(inspect.getsource(errors.ExitCode))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for statement, after in itertools.pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[errors.ExitCode[statement.targets[0].id]] = str(ast.literal_eval(ast.unparse(after)))
    return found


def formats() -> str:
    """Return the formats, one real report in each, and the schema of a report."""
    renderers = builtin_renderers()
    rows = [(code(item.name), item.summary, code(" ".join(item.suffixes))) for item in renderers]
    parts = [table(("format", "for", "ending of `--out`"), rows), _samples(renderers), _schema()]
    return FORMATS + "\n".join(parts)


def _samples(renderers: tuple[Renderer, ...]) -> str:
    found = sample()
    texts = [
        f"### {item.name}\n\n{fenced(resolve(item.render)(found), SAMPLES[item.name])}"
        for item in renderers
        if item.name in SAMPLES
    ]
    head = (
        "## The same report in each\n\nThe plan of the smallest example of the kind `echo`, without its provenance.\n"
    )
    return "\n".join([head, *texts])


def sample() -> report.Report:
    """Return the plan of the first example of ``echo``."""
    with tempfile.TemporaryDirectory() as folder:
        return first_report(open_registry().kind("echo"), Path(folder) / "run")


def _schema() -> str:
    head = (
        "## Schema of a report\n\n"
        f"`--format json` writes the fields of `Report` in this order, after `schema`, which is {code(report.SCHEMA)}. "
        "What a clock measured is marked `timed`; the rest is the same for the same spec and seed. "
        f"The key `type` of a figure is one of {', '.join(code(name) for name in figure_data.TYPES)}; "
        "a figure without it is a plot.\n"
    )
    described: tuple[Any, ...] = (
        report.Report, report.Metric, report.Table, report.Column, figure_data.Figure, figure_data.Series,
        figure_data.Graph, figure_data.Node, figure_data.Edge, figure_data.Timeline, figure_data.Bar,
        figure_data.Marker, figure_data.Flow, figure_data.Stop, figure_data.Link, figure_data.StepArea,
        figure_data.Panel, figure_data.IntervalPlot, figure_data.Interval,
    )  # fmt: skip
    values = json.dumps([str(item) for item in report.Verdict])
    parts = [f"### {item.__name__}\n\n{prose(item)}\n\n{fields(item)}" for item in described]
    return "\n".join([head, *parts, f"### Verdict\n\n{prose(report.Verdict)} One of {code(values)}.\n"])
