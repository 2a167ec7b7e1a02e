"""The config mechanism on a small tree: precedence, the chain of files, and every mistake in one line."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from lowbit.config.load import load_config
from lowbit.config.tree import Node, dump_config, leaves
from lowbit.errors import InputError


class Rate(Node):
    BASE: Annotated[float, Field(ge=0)] = 0.1
    TYPE: Literal["cosine", "step"] | None = None


class Train(Node):
    EPOCHS: int = 1
    BATCH_SIZE: int = 1
    SYNC_BN: bool = False
    SCALE: tuple[float, float] = (0.08, 1.0)
    MILESTONES: tuple[int, ...] = ()
    RATE: Rate = Rate()
    RESUME: Any = ""


class Tree(Node):
    SEED: int | None = None
    OUTPUT: str = ""
    LAYERS: dict[str, dict[Literal["w", "a"], int]] = {}  # noqa: RUF012
    TRAIN: Train = Train()


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "configs"
    (folder / "cifar").mkdir(parents=True)
    (folder / "base.yaml").write_text("SEED: 1\nTRAIN:\n  EPOCHS: 400\n  RATE:\n    BASE: 0.05\n")
    (folder / "cifar" / "net.yaml").write_text("BASE_CONFIG: configs/base.yaml\nTRAIN:\n  BATCH_SIZE: 128\n")
    return folder


@pytest.fixture
def load(shipped: Path, tmp_path: Path) -> Callable[..., Tree]:
    """Load from text (written to a file) or, where it names one, from a file."""

    def load(text: str | bytes, *overrides: str, **kwargs: Any) -> Tree:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config(Tree, path, overrides, shipped=shipped, **kwargs)

    return load


def refused(load: Callable[..., Tree], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_are_laid_over_defaults_and_flags_over_arguments_over_files(load: Callable[..., Tree]) -> None:
    text = "BASE_CONFIG: base.yaml\nTRAIN:\n  BATCH_SIZE: 64\n  SYNC_BN: true\n"
    lower = {"TRAIN.EPOCHS": 7, "OUTPUT": "log"}
    config = load(text, "TRAIN.BATCH_SIZE=32", "SEED=3", flags={"SEED": 5}, defaults=lower)
    assert config == Tree(
        SEED=5, OUTPUT="log", TRAIN=Train(EPOCHS=400, BATCH_SIZE=32, SYNC_BN=True, RATE=Rate(BASE=0.05))
    )
    assert config.TRAIN.model_fields_set == {"EPOCHS", "BATCH_SIZE", "SYNC_BN", "RATE"}
    with pytest.raises(ValidationError, match="frozen"):
        config.TRAIN.EPOCHS = 3


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("(0.08, 1.0)", (0.08, 1.0)),
        ("[0.2, 1]", (0.2, 1.0)),
        ("'(1e-1, 5e-1)'", (0.1, 0.5)),
        ("[1e-1, 5e-1]", (0.1, 0.5)),
    ],
)
def test_strings_are_read_as_python_first(load: Callable[..., Tree], written: str, expected: tuple) -> None:
    for config in (load(f"TRAIN:\n  SCALE: {written}\n"), load("SEED: 1\n", f"TRAIN.SCALE={written}")):
        scale = config.TRAIN.SCALE
        assert scale == expected


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("OUTPUT=2024", "2024"),
        ("OUTPUT=runs/a=b", "runs/a=b"),
        ("OUTPUT=no", "no"),
        ("OUTPUT=", ""),
        ("OUTPUT='1'", "1"),
        ("SEED=None", None),
        ("SEED=null", None),
        ("SEED=1_000", 1000),
        ("TRAIN.SYNC_BN=true", True),
        ("TRAIN.SYNC_BN=True", True),
        ("TRAIN.RATE.BASE=5e-4", 5e-4),
        ("TRAIN.RATE.BASE=30", 30.0),
        ("TRAIN.RATE.TYPE=step", "step"),
        ("TRAIN.MILESTONES=60,80", (60, 80)),
        ("LAYERS={conv1: {w: 8, a: 0}}", {"conv1": {"w": 8, "a": 0}}),
    ],
)
def test_arguments(load: Callable[..., Tree], argument: str, value: object) -> None:
    config: Any = load("SEED: 1\nOUTPUT: other\n", argument)
    for key in argument.partition("=")[0].split("."):
        config = getattr(config, key)
    assert config == value
    assert type(config) is type(value)


def test_text_that_looks_like_a_number_stays_text_where_the_key_holds_text(load: Callable[..., Tree]) -> None:
    assert load('OUTPUT: "2024"\n').OUTPUT == "2024"


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("TRAIN.EPOHCS=5", ["'TRAIN.EPOHCS'", "'TRAIN.EPOCHS'"]),
        ("EPOCHS=5", ["'EPOCHS'", "'TRAIN.EPOCHS'"]),
        ("train.rate.base=1", ["'TRAIN.RATE.BASE'"]),
        ("SEED.X=1", ["'SEED.X'", "nearest"]),
        ("TRAIN.EPOCHS=many", ["TRAIN.EPOCHS='many'", "integer"]),
        ("TRAIN.EPOCHS=1.5", ["TRAIN.EPOCHS=1.5", "integer"]),
        ("TRAIN.EPOCHS=True", ["TRAIN.EPOCHS=True", "integer"]),
        ("TRAIN.SYNC_BN=1", ["TRAIN.SYNC_BN=1", "boolean"]),
        ("TRAIN.RATE.BASE=-1", ["TRAIN.RATE.BASE=-1", "greater than or equal to 0"]),
        ("TRAIN.RATE.BASE=.nan", ["TRAIN.RATE.BASE=nan", "finite"]),
        ("TRAIN.RATE.TYPE=cosin", ["'cosin'", "'cosine' or 'step'"]),
        ("TRAIN.SCALE=[1]", ["TRAIN.SCALE=(1,)", "more values"]),
        ("TRAIN.SCALE=[1, 2, 3]", ["TRAIN.SCALE=(1, 2, 3)", "at most 2"]),
        ("TRAIN=5", ["TRAIN=5", "EPOCHS, BATCH_SIZE"]),
        ("TRAIN.RATE=", ["TRAIN.RATE=None", "BASE, TYPE"]),
        ("LAYERS={a: {x: 1}}", ["LAYERS.a.x='x'", "'w' or 'a'"]),
        ("SEED", ["'SEED'", "KEY.PATH=VALUE"]),
        ("=1", ["'=1'", "KEY.PATH=VALUE"]),
        ("BASE_CONFIG=base.yaml", ["BASE_CONFIG", "file"]),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    load: Callable[..., Tree], argument: str, parts: list[str]
) -> None:
    message = refused(load, "SEED: 1\n", argument)
    assert all(part in message for part in parts), message


def test_arguments_that_disagree_are_refused_and_equal_ones_are_not(load: Callable[..., Tree]) -> None:
    assert "SEED=1 and SEED=2 disagree" in refused(load, "{TRAIN: {}}", "SEED=1", "SEED=2")
    assert load("{TRAIN: {}}", "SEED=1", "SEED=1").SEED == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TRAIN:\n  EPOHCS: 3\n", ["mine.yaml", "'TRAIN.EPOHCS'", "'TRAIN.EPOCHS'"]),
        ("BATCH_SIZE: 3\n", ["'TRAIN.BATCH_SIZE'"]),
        ("TRAIN.EPOCHS: 3\n", ["nearest", "'TRAIN.EPOCHS'"]),
        ("1: 3\n", ["unknown key '1'"]),
        ("TRAIN:\n  EPOCHS: ten\n", ["TRAIN.EPOCHS='ten'"]),
        ("TRAIN:\n", ["TRAIN=None", "section"]),
        ("TRAIN: [1]\n", ["TRAIN=(1,)", "section"]),
        ("SEED: 2020-01-01\n", ["SEED=", "integer"]),
        ("OUTPUT: 3\n", ["OUTPUT=3", "string"]),
        ("SEED: x\nTRAIN:\n  EPOCHS: y\n", ["(and 1 more)"]),
        ("SEED: 1\nSEED: 2\n", ["line 2", "duplicate key 'SEED'"]),
        ("TRAIN:\n  EPOCHS: 1\n  EPOCHS: 1\n", ["line 3", "duplicate key 'EPOCHS'"]),
        ("LAYERS: {a: {w: 1, w: 2}}\n", ["duplicate key 'w'"]),
        ("TRAIN:\n\tEPOCHS: 3\n", ["mine.yaml, line 2", "YAML"]),
        ("TRAIN: [1\n", ["YAML"]),
        (b"SEED: \xff\n", ["YAML"]),
        ("SEED: 2020-13-45\n", ["YAML"]),
        ("SEED: 1\n---\nSEED: 2\n", ["YAML", "single document"]),
        ("SEED: !!python/object/apply:os.system ['exit 3']\n", ["YAML", "could not determine a constructor"]),
        ("[" * 600, ["YAML"]),
        ("- SEED\n", ["holds a list", "mapping"]),
        ("SEED\n", ["holds a str", "mapping"]),
        ("", ["is empty"]),
        ("# nothing\n", ["is empty"]),
        ("BASE_CONFIG: 3\n", ["BASE_CONFIG=3", "path"]),
        ("BASE_CONFIG: mine.yaml\n", ["BASE_CONFIG comes back to itself"]),
        ("BASE_CONFIG: absent.yaml\n", ["'absent.yaml' was not found"]),
        ("LAYERS: &a\n  x: *a\n", ["nested too deeply"]),
        ("SEED: !!bool x\n", ["YAML", "'x'"]),
        ("SEED: !!int x\n", ["YAML", "'x'"]),
        ("SEED: !!float ''\n", ["YAML", "tag"]),
        ("SEED: !!timestamp x\n", ["YAML", "tag"]),
        (f"SEED: 0x{'f' * 5000}\n", ["YAML", "a number of 5002 characters"]),
        (f"SEED: 1{':1' * 100_000}\n", ["YAML", "a number of 200001 characters"]),  # to the base 60
        (f"SEED: 1{':1' * 100_000}.5\n", ["YAML", "characters"]),
        (f"SEED: '0x{'f' * 5000}'\n", ["mine.yaml: SEED", "20000 bits"]),
        (f"TRAIN: {{RESUME: '0x{'f' * 5000}'}}\n", ["TRAIN.RESUME", "20000 bits"]),
        (f"? 0x{'f' * 90}{'f' * 900}\n: 1\n", ["YAML", "characters"]),
        (f"TRAIN: {{{'k' * 1000}: 1}}\n", ["'TRAIN.kkk"]),
        ("- " * 100_000, ["nested too deeply"]),
        ("#" * 300_000, ["more than 262144 bytes"]),
    ],
)
def test_a_wrong_file_is_named_in_one_line(load: Callable[..., Tree], text: str, parts: list[str]) -> None:
    message = refused(load, text)
    assert all(part in message for part in parts), message


def test_yaml_aliases_cannot_multiply_without_end(load: Callable[..., Tree]) -> None:
    lines = ["SEED: 1", "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "too many values" in refused(load, "\n".join(lines))


@pytest.mark.parametrize("key", ["BASE_CONFIG", "NOSUCH", "SEED", "TRAIN"])
def test_nor_under_any_key(load: Callable[..., Tree], key: str) -> None:
    """A value that a message would print for ever, and one that holds itself."""
    levels = "\n".join(f"  - &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 30))
    assert "too many values" in refused(load, f"{key}:\n  - &b0 [x]\n{levels}\n")
    assert refused(load, f"{key}: &a [*a]\n")


def test_merge_keys_cannot_multiply_without_end(load: Callable[..., Tree]) -> None:
    lines = [f"a0: &a0 {{{', '.join(f'k{i}: 1' for i in range(30))}}}", f"a1: {{<<: [{', '.join(['*a0'] * 5000)}]}}"]
    assert "too many merged values" in refused(load, "\n".join(lines))


def test_merge_keys_and_anchors_are_allowed(load: Callable[..., Tree]) -> None:
    config = load("TRAIN: &one\n  EPOCHS: 3\n  RATE: {<<: {BASE: 1.0}, TYPE: step}\n")
    assert dump_config(config.TRAIN.RATE) == {"BASE": 1.0, "TYPE": "step"}


def test_where_a_name_is_looked_for(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def batch(name: str) -> int:
        return load_config(Tree, name, shipped=shipped).TRAIN.BATCH_SIZE

    for name in ("configs/cifar/net.yaml", "./configs/cifar/net.yaml", "/x/configs/cifar/net.yaml", "cifar/net.yaml"):
        assert batch(name) == 128, name
    (here / "configs" / "cifar").mkdir(parents=True)
    (here / "configs" / "cifar" / "net.yaml").write_text("TRAIN: {BATCH_SIZE: 5}\n")
    assert batch("./configs/cifar/net.yaml") == 5  # an existing file wins
    assert batch("/x/configs/cifar/net.yaml") == 128
    for name in ("configs/cifar/nte.yaml", "configs/../../secret.yaml", "x" * 5000, "configs", ""):
        with pytest.raises(InputError, match="was not found") as caught:
            batch(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"looked for configs/cifar/nte\.yaml, .*near it: configs/cifar/net\.yaml"):
        batch("configs/cifar/nte.yaml")


def test_a_base_is_looked_for_beside_the_file_first(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    mine = tmp_path / "deep" / "mine.yaml"
    mine.write_text("BASE_CONFIG: base.yaml\n")
    seeds = [load_config(Tree, mine, shipped=shipped).SEED]
    for folder, seed in ((tmp_path, 2), (tmp_path / "deep", 3)):
        (folder / "base.yaml").write_text(f"SEED: {seed}\n")
        seeds.append(load_config(Tree, mine, shipped=shipped).SEED)
    assert seeds == [1, 2, 3]  # shipped, working folder, beside


def test_a_long_way_round_is_still_a_cycle(shipped: Path, tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "./a")):
        (tmp_path / f"{name}.yaml").write_text(f"BASE_CONFIG: {base}.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml -> .*b\.yaml -> .*c\.yaml -> .*a\.yaml"):
        load_config(Tree, tmp_path / "a.yaml", shipped=shipped)


def test_unused_keys_are_listed_once_and_only_where_they_are_set(
    load: Callable[..., Tree], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    load(
        "SEED: 1\n", unused=["TRAIN.RESUME", "TRAIN.RATE"], flags={"TRAIN.RESUME": "x"}, defaults={"TRAIN.RATE.BASE": 1}
    )
    assert caplog.messages == []
    load(
        "TRAIN:\n  RESUME: {any: thing}\n  RATE: {BASE: 1}\n",
        "TRAIN.RATE.TYPE=step",
        unused=["TRAIN.RESUME", "TRAIN.RATE"],
    )
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("mine.yaml: TRAIN.RESUME, TRAIN.RATE.BASE; by the command line: TRAIN.RATE.TYPE")
    caplog.clear()
    load("SEED: 1\n", "TRAIN.EPOCHS=3", unused=lambda config: ["SEED"] if config.TRAIN.EPOCHS == 3 else [])
    assert caplog.messages[0].endswith("mine.yaml: SEED")


def test_unused_keys_are_told_by_the_first_process_alone(
    load: Callable[..., Tree], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        caplog.clear()
        load("SEED: 1\n", unused=["SEED"])
        assert len(caplog.messages) == told


def test_a_dump_reads_back_as_the_same_config(load: Callable[..., Tree]) -> None:
    config = load("OUTPUT: '7'\nLAYERS: {conv1: {w: 8}}\nTRAIN: {MILESTONES: [3, 4], RATE: {TYPE: step}}\n")
    text = json.dumps(dump_config(config))
    assert load(text) == config
    assert set(leaves(Tree)) == {
        *("SEED", "OUTPUT", "LAYERS", "TRAIN.EPOCHS", "TRAIN.BATCH_SIZE", "TRAIN.SYNC_BN", "TRAIN.SCALE"),
        *("TRAIN.MILESTONES", "TRAIN.RATE.BASE", "TRAIN.RATE.TYPE", "TRAIN.RESUME"),
    }
