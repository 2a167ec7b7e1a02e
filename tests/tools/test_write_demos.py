"""The tool that writes the demos' tables and pictures into the READMEs, and what it wrote there."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/write_demos.py"))
METHODS = TOOL["METHODS"]
LARGEST = {"demos.png": 60_000, "demo.png": 40_000}  # bytes
RESULTS = {  # what the panels are drawn from
    "bsq": {"rows": [{"variant": str(n), "top1": 90.0 + n, "bytes": 1000 * n} for n in (9, 5, 4, 3, 2, 1)],
            "layers": [{"layer": "conv1", "bits": 3}, {"layer": "fc", "bits": 2}]},
    "ssql": {"rows": [{"method": m, "variant": v, "probe_top1": 90.0} for m in ("SimSiam", "SSQL") for v in "ab"]},
    "us3l": {"rows": [{"method": "one net", "macs": 2e5, "probe_top1_retrained_bn": 80.0}]},
    "s2bnn": {"rows": [{"method": m, "variant": m, "probe_top1_retrained": 90.0} for m in ("teacher", "contrastive")]},
    "sqakd": {"rows": [{"variant": "lsq", "qat": 97.0, "sqakd": 98.0}], "top1_float": 99.0},
}  # fmt: skip


def test_panels() -> None:
    found = {panel.title.partition(":")[0]: panel.series for panel in TOOL["panels"](RESULTS)}
    assert list(found) == ["BSQ", "SSQL", "US3L", "S2-BNN", "SQAKD"]
    assert found["BSQ"]["float"] == [(9.0, 99.0)] and found["BSQ"]["bits found by BSQ"] == [(2.0, 92.0), (1.0, 91.0)]
    assert found["US3L"] == {"one net": [(0.2, 80.0)]}
    assert found["S2-BNN"] == {"contrastive": [("contrastive", 90.0)], "real-valued teacher": [("contrastive", 90.0)]}
    assert found["SQAKD"]["2 bits, without labels"] == [("LSQ", 98.0)]


def test_tables_and_pictures_are_written_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        run = tmp_path / f"runs/{method}-demo"
        run.mkdir(parents=True)
        (tmp_path / method).mkdir()
        (run / "table.md").write_text(f"| {method} |\n")
        (run / "result.json").write_text(json.dumps(RESULTS[method]))
        Image.new("RGB", (4, 3), "red").save(run / "demo.png")
        (tmp_path / method / "README.md").write_text(f"before\n{TOOL['BEGIN']}old\n{TOOL['END']}\nafter\n")
    assert TOOL["differing"](tmp_path) == list(METHODS)
    TOOL["write"](tmp_path)
    assert TOOL["differing"](tmp_path) == []
    assert "sqakd/README.md differs" in (said := capsys.readouterr().out) and "sqakd/README.md is what" in said
    text = (tmp_path / "us3l/README.md").read_text()
    assert text == f"before\n{TOOL['BEGIN']}| us3l |\n{TOOL['END']}\nafter\n"
    with Image.open(tmp_path / "us3l/demo.png") as small, Image.open(tmp_path / "demos.png") as whole:
        assert small.text["Description"] == "| us3l |" and small.size == (4, 3)  # type: ignore[attr-defined]
        assert small.convert("RGB").getpixel((1, 1)) == (255, 0, 0) and min(whole.size) > 400
    (tmp_path / "us3l/README.md").write_text("no table")
    with pytest.raises(SystemExit, match="markers are missing"):
        TOOL["differing"](tmp_path)


@pytest.mark.parametrize("path", ["demos.png", *(f"{method}/demo.png" for method in METHODS)])
def test_the_pictures_are_small_and_of_the_tables(path: str) -> None:
    """Each is of the run whose table its README shows."""
    shown = [TOOL["readme_table"](ROOT, method) for method in METHODS if path in ("demos.png", f"{method}/demo.png")]
    with Image.open(ROOT / path) as picture:
        assert picture.text["Description"] == "\n\n".join(shown)  # type: ignore[attr-defined]
    assert (ROOT / path).stat().st_size <= LARGEST[Path(path).name]
    assert f"]({Path(path).name})" in (ROOT / path).with_name("README.md").read_text(encoding="utf-8")
