"""Whether one input was treated as promised: refused in one line, with nothing written, or accepted and right."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lowbit.cli.program import fail
from lowbit.errors import EXIT_DONE, EXIT_INPUT, MOST, InputError

Act = Callable[[], object]
STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.startfile", "pty.spawn", "socket.connect")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
FOREIGN = re.compile(r"Traceback|Exception ignored|\w*Warning: |^TIFF|^Fax|libpng|libjpeg|^\[W|^\[E")
DIVERGED = "diverged"  # an error of this word is one of training, which is in its folder
KNOWN = ("git", "fc-list")  # the record's revision, matplotlib's fonts
ALLOWED = ("/dev/", "/proc/")
_seen: list[str] = []  # what the audit hook and the sentinel have noticed
_watched: list[Path] = []  # the folder in which files may change; empty: nothing is watched


@dataclass(frozen=True)
class Attempt:
    """One input.

    Attributes:
        act: what reads it.
        said: the input in words.
        size: its bytes, or characters.
        check: of what `act` returned: None, or what is wrong with it.
        must: "refuse": nothing else is right; "accept": likewise.
        writes: whether it may write where it is accepted.
        late: whether it can be found to be bad only on the way, so that other lines may come before the error.
    """

    act: Act
    said: str
    size: int
    check: Callable[[Any], str | None] = lambda result: None
    must: str = ""
    writes: bool = True
    late: bool = False


class Kind(NamedTuple):
    """Inputs of one kind: `make(rng, folder)` writes the input's files below the folder and gives the attempt."""

    name: str
    make: Callable[[Random, Path], Attempt]


def ran() -> str:
    """Files that hold code would run this."""
    _seen.append("code run: the sentinel was called")
    return "ran"


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in STARTS:
        program = " ".join(map(str, args[0] if isinstance(args[0], list | tuple) else args[:2]))
        if not program.startswith(KNOWN):
            _seen.append(f"code run: {event} {program[:100]}")
    elif event == "open":
        path, mode, flags = args
        writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(set(mode or "") & set("wax+"))
        if writes and not isinstance(path, int):
            _outside("written", path)
    elif event in CHANGES:
        _outside(event, args[1] if event in ("os.link", "os.symlink", "shutil.copyfile") else args[0])


def _outside(how: str, path: Any) -> None:
    with contextlib.suppress(ValueError, TypeError, OSError):
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (a Path would call more that is audited)
        fonts = os.environ.get("MPLCONFIGDIR", os.devnull)
        if not place.startswith((str(_watched[0]), fonts, *ALLOWED)) and "__pycache__" not in place:
            _seen.append(f"file written: {how} {place[:100]}")


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every entry below a folder: its kind, and of a file size, time and place on the disk."""
    found: dict[str, tuple[int, ...]] = {}
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                said = entry.stat(follow_symlinks=False)
                is_folder = entry.is_dir(follow_symlinks=False)
                found[entry.path] = (0,) if is_folder else (1, said.st_size, said.st_mtime_ns, said.st_ino)
                if is_folder:
                    waiting.append(entry.path)
    return found


def changed(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], folder: Path) -> str:
    """The first difference in words."""
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            how = "new" if path not in before else "lost" if path not in after else "changed"
            return f"{how} {os.path.relpath(path, folder)}"
    return ""


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[list[Path]]:
    """Both streams, also what libraries write to them, in files beside the folder."""
    paths = [folder.with_suffix(f".{name}") for name in ("out", "err")]
    kept = [os.dup(1), os.dup(2)]
    for number, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    try:
        yield paths
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for number, old in enumerate(kept, start=1):
            os.dup2(old, number)
            os.close(old)


def attempt(kind: Kind, seed: int, number: int, folder: Path, ready: Callable[[], None]) -> dict[str, Any]:
    """Make an input and judge what becomes of it, in a process that then ends.

    Args:
        kind: of the input.
        seed: of all inputs.
        number: of this one.
        folder: empty, for it alone.
        ready: called when the input is made.
    """
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update({"HOME": str(folder), "TMPDIR": str(folder)})
    (folder / "given").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = kind.make(Random(f"{seed} {kind.name} {number}"), folder / "given")
    folder.with_suffix(".said").write_text(given.said[:600], errors="replace")
    before = snapshot(folder)
    sys.addaudithook(_audit)
    result: Any = None
    with captured(folder) as paths:
        ready()
        _watched.append(folder)
        try:
            result = given.act()
            code: int | str = EXIT_DONE
        except InputError as error:
            code = fail(str(error))
            if len(str(error).splitlines()) > 1:
                _seen.append("output: the message has several lines")
        except SystemExit as end:
            code = end.code or 0
        except BaseException as raised:
            code = _place(raised)
        _watched.clear()
    warnings.simplefilter("ignore")
    err = paths[1].read_bytes().decode(errors="replace")
    how = _wrong(given, code, err, result, before, folder)
    became = "broken" if how else "accepted" if code == EXIT_DONE else "refused"
    return {"end": became, "how": how, "said": given.said[:600], "size": given.size, "err": err[-1500:] if how else ""}


def _wrong(
    given: Attempt, code: int | str, err: str, result: Any, before: dict[str, tuple[int, ...]], folder: Path
) -> str:
    """What is broken, or nothing."""
    after = snapshot(folder)
    lost = changed(_below(before, folder / "given"), _below(after, folder / "given"), folder)
    if isinstance(code, str):
        return f"traceback: {code}"
    if _seen:
        return _seen[0]
    if code not in (EXIT_DONE, EXIT_INPUT):
        return f"exit code {code}: {_last_place(err)}"
    if lost:
        return f"file written: {lost} of what was given"
    foreign = [line for line in err.splitlines() if FOREIGN.search(line)]
    if foreign:
        return f"output: a line of others: {foreign[0][:120]}"
    if code == EXIT_INPUT:
        lines, new = err.splitlines(), changed(before, after, folder)
        last, most = lines[-1] if lines else "", max(map(len, lines), default=0)
        if (
            (len(lines) != 1 and not given.late and DIVERGED not in last)
            or not last.startswith("error: ")
            or most > MOST
        ):
            return f"output: {len(lines)} lines, {most} characters: {lines[:1]}"[:200]
        if given.must == "accept":
            return f"refused although it is good: {last[:150]}"
        return f"file written: {new}, though refused" if new and DIVERGED not in last else ""
    if given.must == "refuse":
        return "accepted although it has to be refused"
    if not given.writes and (new := changed(before, after, folder)):
        return f"file written: {new}, by what writes nothing"
    wrong = given.check(result)
    return f"wrong result: {wrong}" if wrong else ""


def _below(found: dict[str, tuple[int, ...]], folder: Path) -> dict[str, tuple[int, ...]]:
    return {path: said for path, said in found.items() if path.startswith(f"{folder}{os.sep}")}


def _place(error: BaseException) -> str:
    """What was raised, and the last place of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/src/" in frame.filename] or frames
    where = f"{ours[-1].filename.rpartition('/src/')[2]}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:120]}"


def _last_place(err: str) -> str:
    found = re.findall(r'File "[^"]*/src/([^"]+)", line (\d+)', err)
    last = err.strip().splitlines()[-1:] or [""]
    return f"{':'.join(found[-1]) if found else '?'} {last[0][:150]}"
