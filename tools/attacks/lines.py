"""Command lines: every command of every method, with values that nobody expects, by its own list of options."""

import os
from pathlib import Path
from random import Random

import click
from tools.attacks.method import Method, Seeds, run
from tools.attacks.outcome import Attempt, Kind

WRITTEN = ("-c", "--checkpoint", "--output", "--log_dir", "--save_root_path")
COSTLY = {"--download", "--compile"}  # one asks the network, the other takes a minute
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
VALUES = (
    "", " ", "-1", "0", "1", "2", "1.5", "-0", "7", "31", "63", "nan", "inf", "-inf", "1e999", "1e-320", "9" * 400,
    str(2**31), str(2**63),
    str(2**64), "1_000", "0x10", "٣", "½", "²", "--", "-", "-x", "--nosuch", "=", "a=b", "*=3", "*=99", "[=1",
    "conv1=2",
    "[a", "[!]", "***", "\0", "\n", "a\nb", "é☃😀", "\udcff", "a" * 300, "a" * 5000, "~", "~/x", "~nobody/x", ".", "..",
    "/",
    "/dev/null", "/dev/full", "/dev/null/x", "/proc/self/mem", "/proc/1/environ", "/dev/stdin", "%s", "{}", "$HOME",
    "../" * 2000, "a/" * 2000, "resnet18.nosuchtag", "resnet18", "resnet", "hf_hub:a/b", "timm/x", "auto", "fp",
    "fp,fp",
    "0w0f", "4w", "99w99f", "4w4f,", "1w1f", "True", "None", "sgd", "adamw", "lars", "cosine", "fp16", "bf16", "packed",
    "tensorboard", "wandb", "all", "digits", "folder", "imagenet", "flowers", "TRAIN.EPOCHS=1", "SEED=x", "X=1",
)  # fmt: skip


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """That of command lines."""

    def line(rng: Random, folder: Path) -> Attempt:
        os.environ.update(ENVIRONMENT)
        method = rng.choice(seeds.methods)
        words = seeds.line(rng.choice(method.lines))
        if "--dry-run" in words and rng.random() < 0.3 and words[0] not in ("convert", "sweep", "draw"):
            place = words.index("--dry-run")
            most = ["--max-steps", "4"] if words[0] not in ("calibrate", "export") else []
            words[place : place + 1] = [*most, "--output", str(folder.parent / "out")]
        (folder.parent / "a folder").mkdir()
        (folder / "text.pth.tar").write_text("no checkpoint")
        os.mkfifo(folder / "fifo")
        (folder / "loop").symlink_to("loop")
        said = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            words, how = spoiled(rng, method, words, folder)
            said.append(how)
        shown = f"{method.program} {words[0]}: {', '.join(said)}"
        named = any(word.split("=")[0] in WRITTEN for word in words)
        writes = named and "--dry-run" not in words
        return Attempt(lambda: run(method, words), shown, sum(map(len, said)), writes=writes)

    return (Kind("command line", line),)


def spoiled(rng: Random, method: Method, words: list[str], folder: Path) -> tuple[list[str], str]:
    """A line with one more value that nobody expects, and what that is."""
    own = [f"{folder}/{name}" for name in ("text.pth.tar", "fifo", "loop", "loop/x", "fifo/x")]
    own += [f"{folder.parent}/{name}" for name in ("a folder", "nosuch")]  # may become a run's
    value = rng.choice(own) if rng.random() < 0.15 else rng.choice(VALUES)
    found = method.group.commands.get(words[0])
    if rng.random() < 0.05 or found is None:
        place = rng.randrange(len(words) + 1)
        return [*words[:place], value, *words[place:]], f"{value[:60]!r} as word {place}"
    if rng.random() < 0.05 and len(words) > 1:
        place = rng.randrange(1, len(words))
        kept = [*words[:place], *words[place + 1 :]]
        if words[place] not in ("--dry-run", "-e", "/dev/null/x", "--limit-train", "--limit-eval"):
            return kept, f"without {words[place][-60:]!r}"
    options = [param for param in found.params if isinstance(param, click.Option)]
    option = rng.choice([option for option in options if not COSTLY & {*option.opts}])
    flag = rng.choice(option.opts)
    if option.name == "output" and value in ("..", "/"):  # good places, but not for an attack
        value = "."
    if words[0] == "demo" and "--output" in option.opts:
        return words, "as it is"
    if option.is_flag:
        return [*words, flag], flag
    taken = [place for place, word in enumerate(words) if word in option.opts]
    if taken and rng.random() < 0.8:
        place = taken[0] + 1
        return [*words[:place], value, *words[place + 1 :]], f"{flag} {value[:60]!r}"
    joined = flag.startswith("--") and rng.random() < 0.2
    return [*words, *([f"{flag}={value}"] if joined else [flag, value])], f"{flag} {value[:60]!r}"
