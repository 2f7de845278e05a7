"""Packages that only extras bring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unfoldkit.errors import (
    ExitCode,
    UnfoldError,
    explain_missing_packages,
    find_extra,
    install_command,
    require_packages,
)


def test_a_required_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states what needs the distribution, the key, and the command that installs it; others pass."""
    require_packages("this test", "pytest", "json")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UnfoldError, match="a folder of images needs the package 'pillow'") as caught:
        require_packages("a folder of images", "PIL", key="data.source")
    assert caught.value.code is ExitCode.USAGE
    assert (caught.value.diagnostics[0].key, caught.value.diagnostics[0].hint) == (
        "data.source",
        install_command("images"),
    )


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
    with pytest.raises(UnfoldError, match="'scikit-learn'") as caught:
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
