"""Descriptors and the resolving of references."""

from __future__ import annotations

import pytest

from unfoldkit.errors import ExitCode, UnfoldError, install_command
from unfoldkit.plugin_descriptors import Kind, find_distribution, resolve


def test_verbs_are_those_that_are_there() -> None:
    """A kind lists its verbs in the order in which a user meets them."""
    assert Kind("k", "", "m:S", serve="m:s", profile="m:p").verbs == ("profile", "serve")
    assert Kind("k", "", "m:S").verbs == ()


def test_a_reference_leads_to_its_object() -> None:
    """``package.module:attribute`` is imported and returned."""
    assert resolve("unfoldkit.plugin_descriptors:Kind") is Kind


@pytest.mark.parametrize(("extra", "hint"), [("ray", install_command("ray")), (None, "pip install it")])
def test_a_missing_package_is_the_callers_fault(extra: str | None, hint: str) -> None:
    """A package that is not installed is reported with the extra that brings it, without the module of the plugin."""
    with pytest.raises(UnfoldError, match=r"^this needs the package 'nonesuch'") as caught:
        resolve("nonesuch.module:thing", extra=extra)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.diagnostics[0].hint == hint


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("unfoldkit.plugin_descriptors:nonesuch", "unfoldkit.plugin_descriptors has no nonesuch"),
        ("unfoldkit.nonesuch:thing", "there is no module unfoldkit.nonesuch"),
    ],
)
def test_a_reference_that_leads_nowhere_is_the_plugins_fault(reference: str, expected: str) -> None:
    """A name or module missing from an installed package is not a missing package: no installation would help."""
    with pytest.raises(UnfoldError, match=expected) as caught:
        resolve(reference, extra="ray")
    assert caught.value.code is ExitCode.INTERNAL


def test_a_distribution_is_found_by_its_plugin() -> None:
    """The distribution of a reference is the one with an entry point in the same package."""
    found = find_distribution("unfold_echo.verbs:plan")
    assert found is not None
    assert found.name == "unfoldkit"
    assert find_distribution("json.decoder:JSONDecoder") is None
