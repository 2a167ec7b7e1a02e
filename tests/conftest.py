"""Where tests find real data and recorded numbers; nothing of it is in the repository."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LOWBIT_SHARED", HERE.parent.parent / "shared"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the shared data is at hand, a data test that skips has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("data") and (SHARED / "data").exists():
        report.outcome = "failed"
        report.longrepr = f"skipped although the shared data is here: {report.longrepr}"
    return report


def need(path: Path) -> Path:
    """The path, or a skip that says what is missing (CI has it, and fails when a data test was skipped)."""
    if not path.exists():
        pytest.skip(f"{path.name} is not here; LOWBIT_SHARED may name the folder that holds data/")
    return path


def cache_folder(source: Path) -> Path:
    """A temporary folder of this user and source, kept between runs: unpacking is done once a machine."""
    tag = hashlib.blake2b(f"{source} {os.getuid()}".encode(), digest_size=6).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"lowbit-test-data-{tag}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def unpack_once(target: Path, unpack: Callable[[Path], None]) -> Path:
    """Run `unpack` into a temporary folder and rename it to `target`, so that a killed run leaves nothing half done."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            unpack(Path(temporary))
            try:
                Path(temporary).rename(target)
                Path(temporary).mkdir()
            except OSError:  # another process was first
                pass
    return target


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return need(SHARED / "data")


@pytest.fixture(scope="session")
def cifar10_root(shared_data: Path) -> Path:
    """A `--data` folder holding the real CIFAR-10 in its original files."""
    script = need(shared_data / "unpack_cifar10.py")

    def unpack(to: Path) -> None:
        subprocess.run([sys.executable, str(script), str(to)], check=True, stdout=subprocess.DEVNULL)

    return unpack_once(cache_folder(shared_data) / "cifar10", unpack)


@pytest.fixture(scope="session")
def tiny_imagenet_root(shared_data: Path) -> Path:
    """A `--data` folder holding a real part of Tiny-ImageNet (20 classes) in its raw layout."""
    archive = need(shared_data / "tiny-imagenet-20.tar")

    def unpack(to: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")

    return unpack_once(cache_folder(shared_data) / "tiny-imagenet", unpack)


@pytest.fixture(scope="session")
def authors_resnet20(shared_data: Path) -> Path:
    """The BSQ authors' float ResNet-20: 92.55 % on the CIFAR-10 test set."""
    return need(shared_data / "bsq-resnet20" / "resnet20-cifar10-float.pth.tar")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Folder of a method's recorded numbers: LOWBIT_GOLDEN/<method>/<set>/ or this repository's own copy."""

    def folder(method: str) -> Path:
        other = os.environ.get("LOWBIT_GOLDEN")
        if other is None:
            return HERE / method / "golden"
        base = Path(other)
        for candidate in (base / method / "a", base / method / "b", base / method, base):
            if any(candidate.glob("*.npz")):
                return candidate
        raise FileNotFoundError(f"LOWBIT_GOLDEN={other} holds no recorded numbers of {method}")

    return folder
