"""The wheels: built from their source distributions, complete, and installed alone into an empty environment."""

import os
import shutil
import subprocess
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("core", "bsq", "ssql", "us3l", "s2bnn", "sqakd")
PROGRAMS = {
    "lowbit": "doctor",
    "bsq": "convert",
    "ssql": "sweep",
    "us3l": "export",
    "s2bnn": "main_moco",
    "sqakd": "main",
}
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not here")]


def uv(*line: object) -> None:
    """Run uv; without a registry, with what it has kept of one."""
    for offline in ((), ("--offline",)):
        command = ["uv", *map(str, line[:1]), *offline, *map(str, line[1:])]
        env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            return
    pytest.fail(f"uv {line[0]}: {done.stderr}")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each folder, made of the source distribution alone."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--all-packages", "--quiet", "--out-dir", folder)
    names = {name: "lowbit" if name == "core" else f"lowbit_{name}" for name in FOLDERS}
    return {name: next(folder.glob(f"{wheel}-*.whl")) for name, wheel in names.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_the_package_and_its_licence(wheels: dict[str, Path], name: str) -> None:
    source = ROOT / name / "src"
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path and ".egg-info" not in path}
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = wheel.namelist()
        info = {path.partition(".dist-info/")[2]: path for path in names if ".dist-info/" in path}
        assert {path for path in names if ".dist-info/" not in path} == wanted
        assert wheel.read(info["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        said = message_from_bytes(wheel.read(info["METADATA"]))
    assert said["License-Expression"] == "Apache-2.0" and said["Author"] and said["Keywords"] and said["Project-URL"]
    assert said["Description-Content-Type"] == "text/markdown" and said.get_payload().startswith("# ")
    assert not [need for need in said.get_all("Requires-Dist") if "@" in need]  # no path of the repository


def test_the_wheels_alone_in_an_empty_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment, place = tmp_path / "environment", tmp_path / "empty"
    place.mkdir()
    uv("venv", "--quiet", environment)
    uv("pip", "install", "--quiet", "--python", environment, *wheels.values())
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}

    def said(program: str, *line: str) -> str:
        done = subprocess.run([scripts / program, *line], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for program, command in PROGRAMS.items():
        assert command in said(program, "--help")
    found = said("lowbit", "doctor").splitlines()
    assert {line.split()[1] for line in found if line.startswith("ok ")} >= {"lowbit", *FOLDERS[1:]}
    assert not list(place.iterdir())
