"""`lowbit.doctor()`: whether what is installed fits together, and what can be done with it here.

Nothing that needs torchvision is imported by this module: a pair of torch and torchvision that does not fit is what it
has to report.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from lowbit import __version__
from lowbit.errors import one_line

OK, NOTE, WRONG = "ok", "note", "wrong"
GROUP = "lowbit.methods"
TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")
SAME_INDEX = "install both from one index: pip install --force-reinstall torch torchvision"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `state`: "ok", "note" (one can live with it) or "wrong"; `advice` may be empty."""

    topic: str
    state: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return one_line(f"{self.state} {self.topic}: {self.text}{f'; {self.advice}' if self.advice else ''}", 500)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.state != WRONG for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def doctor() -> Diagnosis:
    """Look at what is installed: versions, torch and torchvision, devices, extras, methods. Nothing is written."""
    return Diagnosis((_machine(), *_dependencies(), *_torch(), *_extras(), *_methods()))


def _machine() -> Finding:
    text = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding(f"lowbit {__version__}", OK, text)


def _dependencies() -> Iterator[Finding]:
    """Whether each package that ours need is there in a version that they allow."""
    try:
        needed = [Requirement(text) for text in requires("lowbit") or ()]
    except PackageNotFoundError:
        yield Finding("packages", NOTE, "lowbit runs from its source and is not installed", "pip install ./core")
        return
    fits = []
    for need in needed:
        if need.marker is not None and not need.marker.evaluate():
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield Finding(need.name, WRONG, "not installed", f"pip install '{need}'")
            continue
        if need.specifier.contains(Version(found), prereleases=True):
            fits.append(f"{need.name} {found}")
        else:
            yield Finding(
                need.name, WRONG, f"{found} is installed, {need.specifier} is needed", f"pip install '{need}'"
            )
    yield Finding("packages", OK, ", ".join(fits))


def _torch() -> Iterator[Finding]:
    torch = _imported("torch")
    if isinstance(torch, str):
        yield Finding("torch", WRONG, f"it cannot be imported ({torch})", SAME_INDEX)
        return
    yield _pair()
    yield _gpu(torch)
    yield _several(torch)
    yield _compiler()


def _pair() -> Finding:
    """Whether torchvision was built for this torch."""
    topic = "torch and torchvision"
    try:
        ours, theirs = Version(version("torch")), Version(version("torchvision"))
        needed = [Requirement(text) for text in requires("torchvision") or ()]
    except PackageNotFoundError as error:
        return Finding(topic, WRONG, f"{error.name} is not installed", SAME_INDEX)
    pair = f"{ours} and {theirs}"
    for need in needed:
        if need.name == "torch" and not need.specifier.contains(Version(ours.public), prereleases=True):
            return Finding(topic, WRONG, f"{pair} do not fit: this torchvision needs torch{need.specifier}", SAME_INDEX)
    if None not in (ours.local, theirs.local) and ours.local != theirs.local:
        return Finding(topic, WRONG, f"{pair} are of different builds", SAME_INDEX)
    found = _imported("torchvision")
    if isinstance(found, str):
        return Finding(topic, WRONG, f"{pair} do not fit: torchvision cannot be imported ({found})", SAME_INDEX)
    return Finding(topic, OK, f"{pair} fit")


def _gpu(torch: Any) -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        precision = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16"
        return Finding("GPU", OK, f"{len(names)}: {', '.join(dict.fromkeys(names))}; --mixed-precision {precision}")
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        advice = "install a CUDA build of torch and torchvision (pytorch.org lists the indexes)"
        return Finding("GPU", NOTE, "there seems to be one, and this torch is built for the CPU", advice)
    if torch.backends.mps.is_available():
        return Finding("GPU", NOTE, "Apple's is not used (it has no double precision): runs are on the CPU")
    return Finding("GPU", NOTE, "none: runs are on the CPU; --mixed-precision bf16 works there, fp16 does not")


def _several(torch: Any) -> Finding:
    if not torch.distributed.is_available():
        return Finding("several processes", NOTE, "this torch has no torch.distributed: runs have one process")
    backends = [name for name in ("nccl", "gloo") if getattr(torch.distributed, f"is_{name}_available")()]
    return Finding("several processes", OK, f"accelerate launch and torchrun, over {' and '.join(backends)}")


def _compiler() -> Finding:
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    found = next((name for name in names if name and shutil.which(name)), None)
    if found is None:
        return Finding("--compile", NOTE, "no C++ compiler was found, which it needs on the CPU", "install g++")
    return Finding("--compile", OK, f"by {found}")


def _extras() -> Iterator[Finding]:
    there = [name for name in TRACKERS if find_spec(name) is not None]
    if there:
        yield Finding("--tracker", OK, ", ".join(there))
    else:
        yield Finding("--tracker", NOTE, "none is installed; metrics.jsonl needs none", "pip install tensorboard")
    for name, purpose in (("matplotlib", "pictures of runs and sweeps"), ("sklearn", "the digits of demos, t-SNE")):
        found = _imported(name)
        if isinstance(found, str):
            yield Finding(purpose, WRONG, f"{name} cannot be imported ({found})", f"reinstall {name}")
        else:
            yield Finding(purpose, OK, f"by {name} {found.__version__}")


def _methods() -> Iterator[Finding]:
    """Each installed method, and its commands."""
    methods = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    if not methods:
        yield Finding("methods", NOTE, "none is installed: only exports can be read", "install one, such as ./METHOD")
    yield from map(_method, methods)


def _method(entry: EntryPoint) -> Finding:
    package = entry.module.partition(".")[0]
    own = entry.dist.version if entry.dist else "of its source"
    topic = f"{entry.name} {own}"
    if entry.dist and own != __version__:
        advice = f"pip install {entry.dist.name}=={__version__}"
        return Finding(topic, WRONG, f"it is made for lowbit {own}, and lowbit is {__version__}", advice)
    try:
        entry.load()
        commands = sorted(import_module(f"{package}.cli").cli.commands)
    except Exception as error:  # whatever is broken below it
        return Finding(
            topic, WRONG, f"it cannot be imported ({one_line(error, 150)})", "mend what is wrong above first"
        )
    return Finding(topic, OK, f"reads its files; {package} {', '.join(commands)}")


def _imported(name: str) -> Any:
    """A module, or in one line why it cannot be imported."""
    try:
        return sys.modules.get(name) or import_module(name)
    except Exception as error:  # a broken build raises anything
        return one_line(f"{type(error).__name__}: {error}", 150)
