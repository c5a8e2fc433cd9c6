"""Whose recipe it was, for a user who keeps nothing."""

from pathlib import Path

import pytest

from wind.code.named_code import is_own, note_own


def test_a_user_without_a_home_has_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    note_own(b"{}")
    assert not is_own(b"{}")
