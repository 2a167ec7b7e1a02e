"""What all tests share: real data and recorded numbers (nothing of it is in the repository), runs as processes."""

import hashlib
import json
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

import lowbit.curves

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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The nets are small, and on a busy machine two threads wait for each other: they take six times as long."""
    if "torch" in sys.modules:  # else no test of this session uses it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Generator[None, None, None]:
    """Devices and precision are accelerate's global state: every test leaves none to the next."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


PLOT = lowbit.curves.plot_run


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Generator[None, None, None]:
    """The curves of a run take a second to draw, and most runs are made for something else."""
    lowbit.curves.plot_run = lambda folder: None
    yield
    lowbit.curves.plot_run = PLOT


@pytest.fixture
def curves_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test, in this process, end with their `curves.png`."""
    monkeypatch.setattr(lowbit.curves, "plot_run", PLOT)


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


class Started:
    """A run at work, in one process or several."""

    def __init__(self, server: "ForkServer", said: Path, pids: list[int]) -> None:
        self.server, self.path, self.pids = server, said, pids
        self._codes: list[int] | None = None

    def said(self, rank: int = 0, stream: str = "out") -> str:
        path = Path(f"{self.path}.{rank}.{stream}")
        return path.read_text() if path.exists() else ""

    def codes(self) -> list[int]:
        """Exit codes, when all have left."""
        if self._codes is None:
            self._codes = self.server.ask({"wait": self.pids})["codes"]
        return self._codes

    def wait(self, *codes: int) -> "Started":
        """Until all have left, with these exit codes."""
        found = self.codes()
        assert found == list(codes), f"{found}: " + "".join(self.said(rank, "err") for rank in range(len(found)))
        return self


class ForkServer:
    """Starts runs as processes of their own (see fork_server.py)."""

    def __init__(self, folder: Path, process: "subprocess.Popen[str]") -> None:
        self.folder, self.process, self.count = folder, process, 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, args: Sequence[object] = (), world: int = 1, **more: Any) -> Started:
        """Start a command line, or what else the server's program understands."""
        self.count += 1
        said = self.folder / str(self.count)
        request = {"args": [str(arg) for arg in args], "said": str(said), "world": world, **more}
        return Started(self, said, self.ask(request)["pids"])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`terminal(80, lambda: cli(args))`: run a program on a pseudo-terminal of 80 columns (see terminal.py)."""
    on_terminal = runpy.run_path(str(HERE / "terminal.py"))["on_terminal"]
    return lambda columns, program, **more: on_terminal(columns, program, monkeypatch, **more)


SERVERS = pytest.StashKey[dict[Path, "subprocess.Popen[str]"]]()


def program_of(test: Path) -> Path:
    """What serves the tests of a file: the `forked_*.py` of its folder, else of one above."""
    return next(found for folder in test.parents for found in folder.glob("forked_*.py"))


def start_server(program: Path) -> "subprocess.Popen[str]":
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "error::UserWarning:lowbit", str(HERE / "fork_server.py"), str(program)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that are going to be used: their imports take 5 s, beside the tests before."""
    items = [] if session.config.option.collectonly else session.items
    programs = {program_of(item.path) for item in items if "servers" in getattr(item, "fixturenames", ())}
    session.config.stash[SERVERS] = {program: start_server(program) for program in sorted(programs)}


def pytest_unconfigure(config: pytest.Config) -> None:
    for process in config.stash.get(SERVERS, {}).values():
        with process:  # it ends with its stdin, and `with` waits for it
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[Path, ForkServer]:
    """Fork servers by their program."""
    started = pytestconfig.stash[SERVERS].items()
    return {program: ForkServer(tmp_path_factory.mktemp("said"), process) for program, process in started}


@pytest.fixture(scope="module")
def processes(request: pytest.FixtureRequest, servers: dict[Path, ForkServer]) -> ForkServer:
    """Of this folder: `processes.start(("convert", "-d", "digits"), world=2).wait(0, 0)`."""
    return servers[program_of(request.path)]


TIMES = {"seconds", "images_per_second", "run", "lines"}  # what may differ between equal runs


def compare(a: Any, b: Any, where: str) -> None:
    """Equal plain values and tensors."""
    if hasattr(a, "is_floating_point"):
        assert a.equal(b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for name in a.keys() - TIMES:
            compare(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            compare(x, y, f"{where}[{number}]")
    else:
        assert a == b, where


@pytest.fixture(scope="session")
def same_run() -> Callable[[Path, Path], None]:
    """Two run folders are equal: files, every tensor and value of checkpoints, lines of metrics; times excluded."""
    import torch

    from lowbit.metrics import read_metrics

    def same(a: Path, b: Path) -> None:
        def files(folder: Path) -> set[str]:
            """Without the checkpoint before, which is of another moment where saves came at other steps."""
            return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".prev." not in path.name}

        names = files(a)
        assert names == files(b)
        checkpoints = sorted(name for name in names if name.endswith((".tar", ".pth")))
        assert any("checkpoint" in name for name in checkpoints)
        for name in checkpoints:
            compare(*(torch.load(folder / name, weights_only=True) for folder in (a, b)), name)
        compare(*(read_metrics(folder / "metrics.jsonl") for folder in (a, b)), "metrics")
        compare(*(json.loads((folder / "result.json").read_text()) for folder in (a, b)), "result")

    return same
