"""`lowbit doctor`: what it finds in installations that are sound, and in those that are not."""

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import lowbit
from lowbit import installation
from lowbit.cli.main import cli

VERSIONS = {"torch": "2.9.0+cpu", "torchvision": "0.24.0+cpu", "click": "8.1"}
REQUIRED = {"lowbit": ["click>=8.1", "torch>=2.9"], "torchvision": ["numpy", "torch==2.9.0"]}


class Entry(SimpleNamespace):
    """An entry point of a method."""

    name, module = "toy", "toy.load"
    dist: Any = SimpleNamespace(version=lowbit.__version__, name="lowbit-toy")

    def load(self) -> None: ...


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is said of a made-up installation: its versions, what cannot be imported and why, its methods."""

    def doctor(versions: dict[str, str], broken: dict[str, str] | None = None, methods: Any = ()) -> str:
        def version(name: str) -> str:
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        def imported(name: str) -> Any:
            reason = (broken or {}).get(name)
            return reason or importlib.import_module(name)

        monkeypatch.setattr(installation, "version", version)
        monkeypatch.setattr(installation, "requires", REQUIRED.get)
        monkeypatch.setattr(installation, "_imported", imported)
        monkeypatch.setattr(installation, "entry_points", lambda group: methods)
        found = installation.doctor()
        result = CliRunner().invoke(cli, ["doctor"])
        assert result.stdout == f"{found}\n" and result.exit_code == (0 if found.healthy else 1)
        assert ("wrong " in result.stdout) != found.healthy
        return result.stdout

    return doctor


def test_this_installation() -> None:
    found = installation.doctor()
    assert [finding.topic for finding in found.findings if finding.state == "wrong"] == []
    said = str(found)
    assert f"lowbit {lowbit.__version__}" in said and "torch and torchvision" in said
    assert {"bsq", "ssql", "us3l", "s2bnn", "sqakd"} <= {finding.topic.split()[0] for finding in found.findings}


def test_a_sound_one(made_up: Callable[..., str]) -> None:
    said = made_up(VERSIONS, methods=())
    assert "ok torch and torchvision: 2.9.0+cpu and 0.24.0+cpu fit" in said
    assert "note methods: none is installed" in said and "click 8.1" in said


@pytest.mark.parametrize(
    ("versions", "broken", "says"),
    [
        ({"torchvision": "0.24.0+cu128"}, {}, "are of different builds; install both from one index"),
        ({"torch": "2.10.0+cpu"}, {}, "do not fit: this torchvision needs torch==2.9.0; install both"),
        (
            {},
            {"torchvision": "RuntimeError: operator torchvision::nms does not exist"},
            "do not fit: torchvision cannot be imported (RuntimeError: operator torchvision::nms does not exist); inst",
        ),
        ({}, {"torch": "OSError: libc10.so"}, "wrong torch: it cannot be imported (OSError: libc10.so); install both"),
        ({"click": "7.0"}, {}, "wrong click: 7.0 is installed, >=8.1 is needed; pip install 'click>=8.1'"),
        ({"click": ""}, {}, "wrong click: not installed; pip install 'click>=8.1'"),
        ({"torchvision": ""}, {}, "wrong torch and torchvision: torchvision is not installed; install both"),
        ({}, {"matplotlib": "ImportError: x"}, "wrong pictures of runs and sweeps: matplotlib cannot be imported"),
    ],
)
def test_a_broken_one(made_up: Callable[..., str], versions: Any, broken: Any, says: str) -> None:
    there = {name: found for name, found in {**VERSIONS, **versions}.items() if found}
    assert says in made_up(there, broken)


def test_methods(made_up: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken(Entry):
        def load(self) -> None:
            raise RuntimeError("no\nsuch operator")

    old = Entry(dist=SimpleNamespace(version="0.1.0", name="lowbit-toy"))
    assert "wrong toy 0.1.0: it is made for lowbit 0.1.0" in made_up(VERSIONS, methods=[old])
    assert "it cannot be imported (no such operator)" in made_up(VERSIONS, methods=[Broken()])
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/__init__.py").write_text("")
    (tmp_path / "toy/cli.py").write_text("class cli: commands = {'go': 1, 'export': 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert f"ok toy {lowbit.__version__}: reads its files; toy export, go" in made_up(VERSIONS, methods=[Entry()])
