"""Plugins that are good, broken, doubled, switched off, misspelt."""

from __future__ import annotations

import types
from typing import Any

import pytest

from unfoldkit.api import Check, Kind, Renderer, RunFinished, hookimpl
from unfoldkit.errors import UnfoldError
from unfoldkit.registry import find_misspelt_hooks, hook_names, load_registry

EVENT = RunFinished("k", "plan", "n", 0)


def plugin(name: str = "one", **hooks: Any) -> types.SimpleNamespace:
    """Return a plugin object with one kind of this name, and more hooks."""

    @hookimpl
    def unfold_kinds() -> list[Kind]:
        return [Kind(name, "for tests", "m:S", plan="m:p")]

    return types.SimpleNamespace(**{"unfold_kinds": unfold_kinds, **hooks})


def test_every_registry_is_fresh() -> None:
    """What is registered in one registry is not in the next."""
    assert "one" in load_registry(entry_points=[], extra={"one": plugin()}).kinds
    assert load_registry(entry_points=[]).kinds == {}


def test_the_house_has_its_four_hooks() -> None:
    """The hooks are these four, and no installed plugin has a misspelt one."""
    assert set(hook_names()) == {"unfold_kinds", "unfold_checks", "unfold_renderers", "unfold_run_finished"}
    assert find_misspelt_hooks(load_registry()) == ""


def test_an_unknown_kind_is_rejected_with_a_suggestion() -> None:
    """An unknown kind is rejected with a suggestion."""
    registry = load_registry(entry_points=[], extra={"one": plugin("cascade")})
    with pytest.raises(UnfoldError, match=r'no such kind: "casade" .did you mean "cascade"'):
        registry.kind("casade")


def test_two_owners_of_a_kind_are_both_named() -> None:
    """A kind of two plugins is refused, never one of them taken."""
    registry = load_registry(entry_points=[], extra={"a": plugin("same"), "b": plugin("same")})
    assert "same" not in registry.kinds
    with pytest.raises(UnfoldError, match=r"a \(given\) and by b \(given\).*UNFOLD_DISABLE_PLUGINS=b"):
        registry.kind("same")


def test_kinds_that_fail_are_a_broken_plugin() -> None:
    """A plugin with a hook that raises, or offers something else, is broken by name, and the others are there."""

    @hookimpl
    def raises() -> list[Kind]:
        raise RuntimeError("no")

    @hookimpl
    def offers() -> list[Any]:
        return ["text"]

    bad = {"raises": plugin(unfold_kinds=raises), "offers": plugin(unfold_kinds=offers), "good": plugin()}
    registry = load_registry(entry_points=[], extra=bad)
    assert [item.status for item in registry.plugins] == ["broken", "broken", "ok"]
    assert "RuntimeError: no" in registry.plugins[0].error
    assert "not a Kind of api 1" in registry.plugins[1].error
    assert list(registry.kinds) == ["one"]


def test_a_kind_of_another_api_is_refused() -> None:
    """A plugin made for another version of the contract is broken, not called."""

    @hookimpl
    def unfold_kinds() -> list[Kind]:
        return [Kind("new", "", "m:S", api=2)]

    registry = load_registry(entry_points=[], extra={"new": plugin(unfold_kinds=unfold_kinds)})
    assert registry.plugins[0].status == "broken"


def test_one_failing_hook_leaves_the_others() -> None:
    """What good plugins offer is there though another's hook raises; the failure is a check."""

    @hookimpl
    def fails() -> list[Any]:
        raise ValueError("boom")

    @hookimpl
    def renderers() -> list[Renderer]:
        return [Renderer("csv", "", "m:r")]

    bad, good = plugin("a", unfold_renderers=fails, unfold_checks=fails), plugin("b", unfold_renderers=renderers)
    registry = load_registry(entry_points=[], extra={"bad": bad, "good": good})
    assert [item.name for item in registry.renderers()] == ["csv"]
    assert registry.checks() == [Check("bad", "unfold_checks failed: ValueError: boom", "")]


def test_an_observer_that_fails_is_a_warning() -> None:
    """An exception of an observer is reported, and the next observer still gets the event."""
    heard: list[Any] = []
    messages: list[str] = []

    @hookimpl
    def fails(event: RunFinished) -> None:
        raise ValueError(event.name)

    @hookimpl
    def hears(event: RunFinished) -> None:
        heard.append(event)

    @hookimpl
    def takes_nothing() -> None:
        heard.append("nothing")

    given = {"a": fails, "b": hears, "c": takes_nothing}
    extra = {name: plugin(name, unfold_run_finished=hook) for name, hook in given.items()}
    load_registry(entry_points=[], extra=extra).notify(EVENT, messages.append)
    assert messages == ["the plugin a failed in unfold_run_finished: ValueError('n')"]
    assert sorted(map(str, heard)) == sorted([str(EVENT), "nothing"])


def test_a_misspelt_hook_is_found() -> None:
    """A function that looks like a hook and is none is named with the hook that was meant."""

    def unfold_kind() -> None: ...

    registry = load_registry(entry_points=[], extra={"one": plugin(unfold_kind=unfold_kind)})
    assert find_misspelt_hooks(registry) == 'one: unfold_kind is not a hook (did you mean "unfold_kinds"?)'

    @hookimpl
    def unfold_check() -> list[Check]:
        return []

    marked = plugin(unfold_check=unfold_check)
    assert "unfold_check" in find_misspelt_hooks(load_registry(entry_points=[], extra={"one": marked}))
