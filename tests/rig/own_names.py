"""A name service in this process, for the tests of what programs call. A module that wants the fixtures says `names = own_names.names`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rig.names import observed, service
from shoal.manager import ManagerError
from shoal.manager.names import LocalService, NameService


@pytest.fixture
def local() -> LocalService:
    return observed(LocalService())


@pytest.fixture
def names(local: LocalService) -> Iterator[NameService]:
    """A session of its own."""
    with service(local) as made:
        yield made


def refused(code: str, act: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """What it says when it is refused for that reason."""
    with pytest.raises(ManagerError) as caught:
        act(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)
