"""Where a manager keeps what, by the variables of its user."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.manager.layout import Layout


@pytest.mark.parametrize("value", ["", "here", "./here"])
def test_a_directory_of_the_XDG_variables_that_is_not_absolute_is_ignored(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOAL_STATE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", value)
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert Layout.of() == Layout(f"{tmp_path}/.local/state/shoal", f"{tmp_path}/.local/state/shoal/run")
