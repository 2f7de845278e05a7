"""The documentation matches the code: nothing is undocumented, stale, or a dead link."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.frame import names
from docs import console, generate
from docs.generators.benchmarks import HEADLINES, kind_of
from docs.generators.cli import commands
from tests.support import Unfold
from unfoldkit.cli.app import EPILOG, build_app
from unfoldkit.cli.help_layout import EXIT_CODES, GROUPS
from unfoldkit.cli.help_layout import read_help as first_screen
from unfoldkit.errors import ExitCode
from unfoldkit.registry import hook_names, open_registry

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_generated_pages_are_current() -> None:
    """Every generated file is what the code would write now."""
    assert generate.stale(generate.pages()) == {}


def test_a_stale_page_is_found(tmp_path: Path) -> None:
    """A generated file that was changed, is missing, or belongs to a removed kind is reported."""
    made = {"docs/reference/kinds/a.md": "a\n", "docs/reference/kinds/b.md": "b\n"}
    generate.write(made, tmp_path)
    assert generate.stale(made, tmp_path) == {}
    (tmp_path / "docs/reference/kinds/a.md").write_text("x\n", "utf-8")
    (tmp_path / "docs/reference/kinds/b.md").unlink()
    (tmp_path / "docs/reference/kinds/c.md").write_text("c\n", "utf-8")
    assert set(generate.stale(made, tmp_path)) == {*made, "docs/reference/kinds/c.md"}
    generate.write(made, tmp_path)
    assert generate.stale(made, tmp_path) == {}


@pytest.mark.parametrize("name", hook_names())
def test_every_hook_has_its_section(name: str) -> None:
    """Each hook has a heading of its name and, under it, its signature."""
    assert f"\n## {name}\n\n`{name}(" in page("reference/hooks.md")


def test_every_kind_has_its_page_and_a_link_to_it() -> None:
    """Each kind that loads has a page, and the start page leads to it."""
    for kind in open_registry().kinds:
        assert page(f"reference/kinds/{kind}.md")
        assert f"(reference/kinds/{kind}.md)" in page("index.md"), kind


@pytest.mark.parametrize("name", sorted(open_registry().kinds))
def test_every_key_has_a_meaning(name: str) -> None:
    """The page of a kind explains each key, but for those that may hold a single word."""
    rows = [line.split(" | ") for line in page(f"reference/kinds/{name}.md").splitlines() if line.startswith("| `")]
    assert [cells for cells in rows if not cells[-1].strip(" |") and not re.fullmatch("`[^`]+`", cells[1])] == []


def test_every_kind_stands_in_the_readme() -> None:
    """The README names each kind that loads, and fits on one screen."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert [kind for kind in open_registry().kinds if f"`{kind}`" not in text] == []
    assert len(text) <= 5000


def test_the_changelog_is_short() -> None:
    """The unreleased version has one list of at most 60 bullets and 8,000 characters."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert len(text) <= 8000
    assert len(re.findall(r"^- ", text, re.MULTILINE)) <= 60


def test_fragments_of_the_changelog_are_named_and_short() -> None:
    """A news fragment names an issue, a kind and a type, and is one sentence of at most 30 words."""
    areas = "|".join([*open_registry().kinds, "core", "docs"])
    for path in (ROOT / "changes").glob("*.md"):
        assert re.fullmatch(rf"\d+\.(?:{areas})\.(?:feature|change|removal|fix)\.md", path.name)
        assert len(path.read_text("utf-8").split()) <= 30, path.name


def test_cells_of_the_claims_are_short() -> None:
    """No cell of the claims has more than 20 words; everything else is a note."""
    rows = [line for line in page("explanation/claims.md").splitlines() if line.startswith("| ")]
    cells = [re.sub(r"\[\^\d+\]", "", cell) for row in rows for cell in row.strip("| ").split(" | ")]
    assert [cell for cell in cells if len(cell.split()) > 20] == []


@pytest.mark.parametrize("code", list(ExitCode), ids=lambda code: code.name)
def test_every_exit_code_is_documented_everywhere(code: ExitCode) -> None:
    """The page, the first screen of help, and the foot of each command's help name each exit code."""
    assert f"| `{int(code)}` | {code.name} |" in page("reference/exit-codes.md")
    assert str(int(code)) in dict(EXIT_CODES)
    assert re.search(rf"\b{int(code)} ", EPILOG)


def options() -> Iterator[tuple[str, str]]:
    root: Any = typer.main.get_command(build_app())
    for name, command in commands(root, "unfold"):
        yield from ((name, word) for item in command.params for word in item.opts if item.param_type_name == "option")


@pytest.mark.parametrize(("command", "option"), list(options()))
def test_every_option_is_on_the_page(command: str, option: str) -> None:
    """Each option is under its command, or under those that all verbs share."""
    parts = re.split(r"^## ", page("reference/cli.md"), flags=re.MULTILINE)
    here = [part for part in parts if part.startswith((f"{command}\n", "Options of"))]
    assert any(re.search(rf"{re.escape(option)}[`, ]", part) for part in here)


@pytest.mark.parametrize("name", names())
def test_every_benchmark_has_its_section(name: str) -> None:
    """Each benchmark has a section on the page of its kind."""
    assert f"\n## {name}\n" in page(f"benchmarks/{kind_of(name)}.md")


def test_pages_of_figures_are_short_and_their_rows_exist() -> None:
    """No page of figures has more than 1,500 words and figures, and every headline row is a metric that is stored."""
    for path in (ROOT / "docs/benchmarks").glob("*.md"):
        # bars and dashes of tables are neither
        words = [word for word in path.read_text("utf-8").split() if any(map(str.isalnum, word))]
        assert len(words) <= 1500, path.name
    for name, labels in HEADLINES.items():
        stored = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))["metrics"]
        assert set(labels) <= set(stored), name


def test_every_variable_of_the_environment_is_documented() -> None:
    """Every environment variable of our own that the code reads is on the page."""
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    found = set(re.findall(r"\bUNFOLD_[A-Z_]+\b", source))
    assert [name for name in sorted(found) if f"| `{name}` |" not in page("reference/environment.md")] == []


def test_every_command_is_in_a_group_of_the_first_screen() -> None:
    """No command falls into the group of leftovers, and no group names a command that is gone."""
    root: Any = typer.main.get_command(build_app())
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(root.commands)
    assert "\nMore:" not in first_screen()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(path: Path) -> None:
    """Each link to a file of the checkout leads to one, and each link to a heading to a heading."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text("utf-8")), target


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_is_reached_from_the_start() -> None:
    """Following links from the start page reaches each page of the documentation."""
    seen: set[Path] = set()
    todo = [ROOT / "docs" / "index.md"]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            found = re.findall(r"\]\(([^)#\s:]+\.md)(?:#[^)]*)?\)", path.read_text("utf-8"))
            todo += [(path.parent / target).resolve() for target in found]
    assert set((ROOT / "docs").rglob("*.md")) - seen == set()


def shown() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        for language, _, body in console.BLOCK.findall(path.read_text("utf-8")):
            if language in ("console", "sh", "bash"):
                for line in body.splitlines():
                    yield from ((path.name, words) for words in calls(line, prompt=language == "console"))


def calls(line: str, *, prompt: bool) -> list[str]:
    if prompt and not line.startswith("$ "):
        return []
    parts = re.split(r"&&|\|\||[|;&]", line.removeprefix("$ ").partition(" # ")[0])
    return [re.split(r"\s\d?>", part.strip())[0] for part in parts if part.strip().startswith("unfold ")]


@pytest.mark.parametrize(("file", "line"), sorted(set(shown())))
def test_shown_commands_parse(file: str, line: str) -> None:
    """Each `unfold` command on a page is one that the application takes, with options that exist."""
    root: Any = typer.main.get_command(build_app())
    words = shlex.split(line)[1:]
    known = dict(commands(root, "unfold"))
    while words and f"unfold {words[0]}" not in known:
        assert words[0] in {"--help", "--version", "-h", "-V"}, f"{file}: no command {words[0]!r}"
        words = words[1:]
    if words and not {"--help", "-h"} & set(words):
        root.commands[words[0]].make_context(words[0], words[1:], parent=root.make_context("unfold", [words[0]]))


def test_page_for_authors_builds_the_example(unfold: Unfold, tmp_path: Path) -> None:
    """The template with the files of the page in it is the plugin that CI installs, file for file."""
    assert unfold("plugins", "new", "storage").code == 0
    for step in console.steps(page("how-to/write-a-plugin.md")):
        if step.file:
            (tmp_path / step.file).write_text(step.text, "utf-8")
    example = ROOT / "examples/plugin-storage"
    built, kept = (
        {path.relative_to(top).as_posix(): path.read_text("utf-8") for path in top.rglob("*.*") if own(path)}
        for top in (tmp_path / "unfold-storage", example)
    )
    assert built == kept


def own(path: Path) -> bool:
    return path.is_file() and not {"__pycache__", "build", "dist"} & set(path.parts) and "egg-info" not in str(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", console.pages(installs=False), ids=lambda path: path.stem)
def test_pages_show_what_is_printed(path: Path) -> None:
    """On a page that asks to be run, each command prints what the page shows."""
    assert console.check(path) == []


def test_a_page_that_lies_is_found(tmp_path: Path) -> None:
    """Differing output is reported with what was expected; wildcard lines and files of the page count."""
    good = (
        "```text a.txt\none\ntwo\nthree\n```\n```console\n$ cat a.txt\none\n...\nth...\n$ (exit 3)\n$ echo $?\n3\n```\n"
    )
    assert list(console.run(good, tmp_path, {"PATH": "/usr/bin:/bin"})) == []
    found = list(console.run(good.replace("$?\n3", "$?\n4"), tmp_path, {"PATH": "/usr/bin:/bin"}))
    assert len(found) == 1
    assert "the page shows:\n4" in found[0]


def test_a_page_runs_on_free_ports() -> None:
    """Each port that a page serves on is another one while it runs, alike in every place; other numbers stay."""
    page = "serve a --port 8123\nserve b --port 8124\non http://127.0.0.1:8123/ and :8124, 8123 rows, :81234\n"
    a, b = console.PORT.findall(moved := console.on_free_ports(page))
    assert len({a, b, "8123", "8124"}) == 4
    assert moved == (f"serve a --port {a}\nserve b --port {b}\non http://127.0.0.1:{a}/ and :{b}, 8123 rows, :81234\n")
