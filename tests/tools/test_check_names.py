"""Core may not know a method: each place where a name or a YAML key path can stand is looked at."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/check_names.py"))


def found(root: Path, source: str, name: str = "train/loop.py") -> list[str]:
    file = root / "core/src/lowbit" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return [line.removeprefix("core/src/lowbit/") for line in TOOL["check"](root)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def train_bsq():\n    pass\n", "1: 'bsq' in an identifier"),
        ("class RSSQLHead:\n    pass\n", "1: 'RSSQL' in an identifier"),
        ("x = 1\ny = x.Us3lNet\n", "2: 'Us3l' in an identifier"),
        ('x = {"SSQL_BYOL": 1}\n', "1: 'SSQL' in a string"),
        ('raise ValueError(f"S2-BNN wants {1}")\n', "1: 'S2-BNN' in a string"),
        ("x = 1  # as in sqakd\n", "1: 'sqakd' in a comment"),
        ('"""Losses.\n\nAs in s2bnn.\n"""\n', "3: 's2bnn' in a docstring without a citation"),
        ('def f():\n    """As BSQ does.\n\n    Yang, 2021.\n    """\n', "2: 'BSQ' in a docstring without a citation"),
        ('"""BSQ over 2048 features."""\n', "1: 'BSQ' in a docstring without a citation"),
        ('x = 1\n"""The name of SSQL\'s."""\n', "2: 'SSQL' in a docstring without a citation"),
    ],
)
def test_a_method_is_named(source: str, expected: str, tmp_path: Path) -> None:
    assert found(tmp_path, source) == [f"train/loop.py:{expected}"]


@pytest.mark.parametrize(
    "source",
    [
        '"""Losses.\n\nYang et al.,\n"BSQ: Exploring Bit-Level Sparsity", ICLR 2021.\n"""\n',
        'def f():\n    """The loss of US3L (arXiv:1234.56789)."""\n',
        "absq = ABSQRT = subsquare = bsqrt = 1\n",
        'x = "the absq of 2021"  # two bits\n',
    ],
)
def test_citations_and_other_words_are_allowed(source: str, tmp_path: Path) -> None:
    assert found(tmp_path, source) == []


def test_a_year_excuses_docstrings_alone(tmp_path: Path) -> None:
    source = 'x = "BSQ, 2021"\ny = 1  # BSQ, 2021\n'
    assert found(tmp_path, source) == ["train/loop.py:1: 'BSQ' in a string", "train/loop.py:2: 'BSQ' in a comment"]


def test_a_module_is_named_after_a_method(tmp_path: Path) -> None:
    assert found(tmp_path, "", "quant/bsq.py") == ["quant/bsq.py:1: 'bsq' in the name of a module"]


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ('"""Reads `SSL.SETTING.MLP`."""\n', "SSL.SETTING.MLP"),
        ("x = 1  # QUANT.W_BITS\n", "QUANT.W_BITS"),
        ('x = f"{1} for TRAIN.EPOCHS"\n', "TRAIN.EPOCHS"),
        ("x = config.OUTPUT.DIR\n", "OUTPUT.DIR"),
    ],
)
def test_a_key_path_stands_in_config_keys_alone(source: str, key: str, tmp_path: Path) -> None:
    assert found(tmp_path, source, "config/keys.py") == found(tmp_path, source, "config/keys/ssl.py") == []
    assert found(tmp_path, source) == [f"train/loop.py:1: key path {key!r} outside config/keys"]


def test_sections_and_attributes_are_no_key_paths(tmp_path: Path) -> None:
    assert found(tmp_path, 'x = "TRAIN"\nx.SSL.type = MODEL.eval()\n"""The end of QUANT. Next."""\n') == []


def test_methods_may_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "bsq/src/bsq").mkdir(parents=True)
    (tmp_path / "bsq/src/bsq/planes.py").write_text('"""BSQ, TRAIN.EPOCHS."""\n')
    assert found(tmp_path, "") == []
