"""The built site is checked: broken links and external resources are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.web import check, hooks

GOOD = '<html><body><h1 id="top">A</h1><a href="#top">up</a><a href="b.html#there">b</a></body></html>'
OTHER = '<html><body><p id="there"></p><a href="https://example.org">away</a><img src="data:,"></body></html>'


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.html", GOOD.replace("b.html", "c.html"), "a.html: no such file: c.html#there"),
        ("a.html", GOOD.replace("#there", "#here"), "a.html: no such place: b.html#here"),
        (
            "a.html",
            GOOD.replace("<h1", '<script src="https://cdn.example.org/x.js"></script><h1'),
            "a.html: loads https",
        ),
        ("a.css", "@import '//fonts.example.org/x.css';", "a.css: loads //fonts.example.org/x.css"),
    ],
)
def test_a_site_that_does_not_hold_together_is_found(tmp_path: Path, name: str, text: str, why: str) -> None:
    """A good site has no mistake; a broken link, a missing anchor and an outside resource are one each."""
    (tmp_path / "a.html").write_text(GOOD, "utf-8")
    (tmp_path / "b.html").write_text(OTHER, "utf-8")
    assert list(check.check(tmp_path)) == []
    (tmp_path / name).write_text(text, "utf-8")
    (found,) = check.check(tmp_path)
    assert found.startswith(why)


def test_every_page_is_in_the_navigation() -> None:
    """The four parts of Diátaxis and the benchmarks hold each page once, under its own heading."""

    def paths(items: object) -> list[str]:
        if isinstance(items, str):
            return [items]
        inner = items.values() if isinstance(items, dict) else items if isinstance(items, list) else ()
        return [path for item in inner for path in paths(item)]

    made = hooks.navigation(hooks.DOCS)
    assert sorted(paths(made)) == sorted(path.relative_to(hooks.DOCS).as_posix() for path in hooks.DOCS.rglob("*.md"))
    assert [next(iter(part)) for part in made] == [
        "Start",
        "Tutorials",
        "How-to",
        "Reference",
        "Explanation",
        "Benchmarks",
    ]


def test_links_out_of_the_docs_become_names() -> None:
    """A link to a file of the checkout, which the site does not hold, is shown as its name; others stay."""
    page = hooks.DOCS / "how-to/x.md"
    assert hooks.adapted("[`a.yaml`](../../configs/a.yaml)", page) == "`a.yaml`"
    assert hooks.adapted("[b](../index.md) [c](https://example.org) [d](#e)", page).count("](") == 3
    assert hooks.adapted("```yaml a.yaml\n", page) == '```yaml title="a.yaml"\n'
