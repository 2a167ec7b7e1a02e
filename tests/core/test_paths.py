"""Paths as users write them: the home folder, and what no system call takes."""

import errno
import os
from pathlib import Path

import pytest

from lowbit.paths import user_path


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/me")
    written = ("~", "~/a", "a/~", "auto", "", "~nobody-here/a")
    assert [user_path(text) for text in written] == ["/srv/me", "/srv/me/a", "a/~", "auto", "", "~nobody-here/a"]


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "missing/" + "a" * 256, "a\0b", "\ud800", "a/" * 3000])
def test_what_no_path_can_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give"):
        user_path(str(tmp_path / name) if "/" not in name else f"{tmp_path}/{name}")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for text in ("loop", "loop/inside"):
        with pytest.raises(ValueError, match="cannot be reached"):
            user_path(str(tmp_path / text))
    (tmp_path / "away").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for text in ("away", "file/inside"):  # nothing is there: the caller's business
        assert user_path(str(tmp_path / text)) == str(tmp_path / text)


def test_folders_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="may not be searched"):
        user_path(str(tmp_path))
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ValueError, match="cannot be reached: Permission denied"):
        user_path(str(tmp_path / "x"))
