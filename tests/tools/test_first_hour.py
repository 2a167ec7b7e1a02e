"""The tool that runs the README's ten commands on one's own pictures: what it copies, makes and counts."""

import io
import runpy
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/first_hour.py"))


def test_ten_commands_lead_to_a_prediction() -> None:
    """Each reads what one before it wrote."""
    lines = TOOL["commands"]((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(lines) == TOOL["COMMANDS"] == 10
    assert all(line.split()[0] in ("lowbit", "bsq") and "\\" not in line for line in lines)
    made = {"pictures"}
    for line in lines:
        words = line.split()
        values = {flag: words[at + 1] for at, flag in enumerate(words[:-1]) if flag.startswith("-")}
        read = [values[flag] for flag in ("--model", "--data") if flag in values]
        read += words[2:4] if words[1] == "predict" else words[2:] if words[1] in ("show", "plot") else []
        assert {path.partition("/")[0] for path in read} <= made, line
        made |= {values[flag] for flag in ("-c", "--output") if flag in values}
    assert "found.csv" in made


def test_the_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for wnid in (*TOOL["CLASSES"], "n0"):
            for number in range(101):
                entry = tarfile.TarInfo(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{number:03}.JPEG")
                entry.size = 4
                tar.addfile(entry, io.BytesIO(f"{number:04}".encode()))
    TOOL["write_pictures"](tmp_path / "a.tar", tmp_path / "pictures")
    found = [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert len(found) == 200 and {path.parent.name for path in found} == {"goldfish", "stork"}
    assert [path.read_text() for path in sorted((tmp_path / "pictures/val/stork").iterdir())][::19] == ["0080", "0099"]
    tarfile.open(tmp_path / "few.tar", "w").close()
    with pytest.raises(SystemExit, match="holds 0 pictures"):
        TOOL["write_pictures"](tmp_path / "few.tar", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_recorded(tmp_path: Path) -> None:
    text = TOOL["table"]({"lowbit predict A B #3": (12.4, 20.6), "lowbit doctor #0": (3, 2)})
    assert text.splitlines()[2:] == ["| `lowbit predict` | 12 | 21 |", "| `lowbit doctor` | 3 | 2 |"]
    rows = "picture,class_1,probability_1\nx/stork/1.png,stork,0.9\nx/stork/2.png,goldfish,0.6\n"
    (tmp_path / "found.csv").write_text(rows)
    assert TOOL["right"](tmp_path / "found.csv").startswith("1 of 2")
    (tmp_path / "found.csv").write_text("picture,class_1\nx/stork/1.png,0\n")
    with pytest.raises(SystemExit, match="names no classes"):
        TOOL["right"](tmp_path / "found.csv")
