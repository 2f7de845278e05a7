"""The plugin contract."""

from __future__ import annotations

import pytest

from unfoldkit import api


def test_every_name_of_the_contract_is_there() -> None:
    """Each public name resolves, the list is sorted as people look, and no other name does."""
    assert all(getattr(api, name) is not None for name in api.__all__)
    assert dir(api) == sorted(api.__all__)
    with pytest.raises(AttributeError, match="nonesuch"):
        api.nonesuch  # noqa: B018 - the access is the test
