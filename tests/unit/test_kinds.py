"""Descriptors and the resolving of references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unfoldkit.descriptors import Kind, explain_missing_packages, find_distribution, find_extra, resolve
from unfoldkit.errors import ExitCode, UnfoldError, install_command


def test_verbs_are_those_that_are_there() -> None:
    """A kind lists its verbs in the order in which a user meets them."""
    assert Kind("k", "", "m:S", serve="m:s", profile="m:p").verbs == ("profile", "serve")
    assert Kind("k", "", "m:S").verbs == ()


def test_a_reference_leads_to_its_object() -> None:
    """``package.module:attribute`` is imported and returned."""
    assert resolve("unfoldkit.descriptors:Kind") is Kind


@pytest.mark.parametrize(("extra", "hint"), [("ray", install_command("ray")), (None, "pip install it")])
def test_a_missing_package_is_the_callers_fault(extra: str | None, hint: str) -> None:
    """A package that is not installed is told with the extra that brings it."""
    with pytest.raises(UnfoldError, match="'nonesuch'") as caught:
        resolve("nonesuch.module:thing", extra=extra)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.diagnostics[0].hint == hint


@pytest.mark.parametrize(
    ("module", "preferred", "extra"),
    [
        ("boto3", None, "aws"),
        ("botocore", "cascade", "aws"),
        ("matplotlib", None, "plot"),
        ("httptools", None, "serve"),
        ("sklearn", "cascade", "cascade"),
        ("sklearn", "supernet", "supernet"),
        ("numba", "placement", "placement"),
        ("nonesuch", "cascade", ""),
    ],
)
def test_a_module_has_an_extra_that_brings_it(module: str, preferred: str | None, extra: str) -> None:
    """The extra of the running kind is named if it brings the package, otherwise the smallest one."""
    assert find_extra(module, preferred) == extra


def test_an_import_that_fails_in_a_verb_names_the_extra() -> None:
    """A package of an extra is the caller's to install; any other missing module is a fault of the code."""
    with pytest.raises(UnfoldError, match="'sklearn'") as caught:
        fail_to_import("sklearn.svm")
    assert caught.value.diagnostics[0].hint == install_command("cascade")
    assert caught.value.code is ExitCode.USAGE
    with pytest.raises(ModuleNotFoundError):
        fail_to_import("nonesuch")


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("{folder}", "{path}"),
        ("{folder}/gone", "some-thing"),
        ("https://example.org/some_thing-1.whl", "some-thing"),
        (None, "some-thing"),
    ],
)
def test_an_extra_is_installed_from_where_its_distribution_came(
    url: str | None, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a local installation is named while it exists; otherwise the name is, as for one from an index."""
    folder, path = tmp_path / "some_thing-1.dist-info", tmp_path / "a folder"
    folder.mkdir()
    path.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: some-thing\nVersion: 1\n", encoding="utf-8")
    if url is not None:
        record = json.dumps({"url": url.format(folder=path.as_uri())})
        (folder / "direct_url.json").write_text(record, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert install_command("gpu", "some-thing") == f"pip install '{source.format(path=path)}[gpu]'"


def fail_to_import(name: str) -> None:
    with explain_missing_packages("cascade"):
        raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("unfoldkit.descriptors:nonesuch", "unfoldkit.descriptors has no nonesuch"),
        ("unfoldkit.nonesuch:thing", "there is no module unfoldkit.nonesuch"),
    ],
)
def test_a_reference_that_leads_nowhere_is_the_plugins_fault(reference: str, told: str) -> None:
    """A name or module that is not in a package that is there is no missing package: no installing would help."""
    with pytest.raises(UnfoldError, match=told) as caught:
        resolve(reference, extra="ray")
    assert caught.value.code is ExitCode.INTERNAL


def test_a_distribution_is_found_by_its_plugin() -> None:
    """What a reference leads into is shipped by the distribution whose entry point names the same package."""
    found = find_distribution("unfold_echo.verbs:plan")
    assert found is not None
    assert found.name == "unfoldkit"
    assert find_distribution("json.decoder:JSONDecoder") is None
