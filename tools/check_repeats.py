"""Check that functions do not repeat each other, and print how many lines of source each package has.

No run of six statements inside functions may stand in two packages, and none of more than twelve twice inside core.

Usage: python tools/check_repeats.py [--sizes]   (exit 1 and one line per breach; --sizes also holds packages to LINES)

What is compared. Each function or method is the sequence of its statements in source order: a simple statement as it
is, a compound one by its header (`if test`, `for target in iter`, `with items`, `try`), followed by what it holds.
Clauses (`else`, `except`, `finally`, `case`) are not statements of their own; an `elif` is an `if`. Left out are
signatures, annotations, docstrings, comments, imports, and classes; a nested function is a sequence of its own.

When two runs are equal. By structure: the same statements once local names (arguments, variables, also those of the
functions around) and constants are renamed in order of appearance, each name or value always to the same. Attributes,
keywords and names from outside the functions, such as those of called functions, stay. Constants keep their type; of an
f-string the expressions count, its text does not. Word for word: nothing renamed, text of f-strings included. A
breach is likeness by structure; where it is word for word its line says so. Only maximal runs are printed.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "bsq", "ssql", "us3l", "sqakd", "s2bnn")
BETWEEN = 6  # statements of the shortest run that may not stand in two packages
INSIDE = 13  # and of the shortest that may not stand twice inside core
# The most lines of source
LINES = {"ssql": 2200, "bsq": 3500, "us3l": 2100, "s2bnn": 1200, "sqakd": 1300, "sqakd/kd": 900}

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = {"body", "orelse", "finalbody", "handlers", "cases"}  # of a compound statement: all but its header
SKIPPED = {"annotation", "ctx", "kind", "returns", "simple", "type_comment", "type_params"}


class Statement(NamedTuple):
    """One statement: its structure, what fills the holes left in it, its f-strings' text, and its lines."""

    shape: str
    holes: tuple[Hashable, ...]
    text: tuple[str, ...]
    first: int
    last: int


class Sequence(NamedTuple):
    """The statements of one function."""

    package: str
    file: str
    statements: list[Statement]


class Repeat(NamedTuple):
    """Run `left[i : i + length]` that is equal to `right[j : j + length]`."""

    left: Sequence
    i: int
    right: Sequence
    j: int
    length: int

    def __str__(self) -> str:
        pair = (self.left.statements[self.i :], self.right.statements[self.j :])
        ours, theirs = (run[: self.length] for run in pair)
        same = all(a[:3] == b[:3] for a, b in zip(ours, theirs, strict=True))
        where = [f"{s.file}:{r[0].first}-{r[-1].last}" for s, r in ((self.left, ours), (self.right, theirs))]
        return f"{where[0]} repeats {where[1]} ({self.length} statements{', word for word' if same else ''})"

    def within(self, other: "Repeat") -> bool:
        """Whether both runs lie inside those of another repeat of the same two functions."""
        return (
            other.i <= self.i <= self.i + self.length <= other.i + other.length
            and other.j <= self.j <= self.j + self.length <= other.j + other.length
        )


# ----------------------------------------------------------------------------------------------------- statements


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes under a function, without those of nested functions and classes (these themselves are included)."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef):
            yield from own_nodes(child)


def local_names(function: Function) -> set[str]:
    """Names that the function binds: arguments, variables, nested functions."""
    names, outside = set(), set()
    for node in own_nodes(function):
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.Global(names=given):
                outside.update(given)
    return names - outside


def describe(value: Any, names: set[str], holes: list[Hashable], text: list[str]) -> str:
    """The structure of a node, a list or a plain field; fills `holes` with local names and constants, in order."""
    match value:
        case ast.Name(id=name) | ast.arg(arg=name) if name in names:
            holes.append(name)
            return "_"
        case ast.Constant():
            kind = type(value.value).__name__
            holes.append((kind, repr(value.value)))
            return kind
        case ast.JoinedStr():
            text += [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values]
            value = [part for part in value.values if not isinstance(part, ast.Constant)]
            return f"f{describe(value, names, holes, text)}"
        case ast.AnnAssign(target=target, value=given):
            return f"Assign([{describe(target, names, holes, text)}],{describe(given, names, holes, text)})"
        case ast.AST():
            skipped = SKIPPED | BLOCKS if isinstance(value, ast.stmt) else SKIPPED
            fields = [field for name, field in ast.iter_fields(value) if name not in skipped]
            return f"{type(value).__name__}({','.join(describe(one, names, holes, text) for one in fields)})"
        case list():
            return f"[{','.join(describe(one, names, holes, text) for one in value)}]"
    return repr(value)


def header_end(node: ast.stmt) -> int:
    """The last line of a statement, without what it holds."""
    if not hasattr(node, "body") and not hasattr(node, "cases"):
        return node.end_lineno or node.lineno
    fields = (field for name, field in ast.iter_fields(node) if name not in BLOCKS)
    parts = (part for field in fields for part in (field if isinstance(field, list) else [field]))
    inner = (one for part in parts if isinstance(part, ast.AST) for one in ast.walk(part))
    return max([node.lineno, *(one.end_lineno or 0 for one in inner if isinstance(one, ast.expr))])


def flatten(block: Iterable[Any]) -> Iterator[ast.stmt]:
    """Statements in source order, compound ones before what they hold."""
    for node in block:
        if isinstance(node, Function | ast.ClassDef | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring, or the `...` of a stub
        if isinstance(node, ast.AnnAssign) and node.value is None:
            continue  # an annotation alone
        if isinstance(node, ast.stmt):
            yield node
        for name in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from flatten(getattr(node, name, ()))


def functions(node: ast.AST, around: frozenset[str] = frozenset()) -> Iterator[tuple[Function, set[str]]]:
    """Every function under a node, with the local names that it sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            names = local_names(child) | around
            yield child, names
            yield from functions(child, frozenset(names))
        else:
            yield from functions(child, around)


def read(root: Path) -> list[Sequence]:
    """The functions of all packages under `root`."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package / "src").rglob("*.py")):
            for function, names in functions(ast.parse(path.read_text(encoding="utf-8"))):
                statements = []
                for node in flatten(function.body):
                    holes: list[Hashable] = []
                    text: list[str] = []
                    shape = describe(node, names, holes, text)
                    statements.append(Statement(shape, tuple(holes), tuple(text), node.lineno, header_end(node)))
                found.append(Sequence(package, path.relative_to(root).as_posix(), statements))
    return found


# ----------------------------------------------------------------------------------------------------------- runs


def canonical(run: list[Statement]) -> Hashable:
    """Equal for two runs exactly if they are equal by structure."""
    order: dict[Hashable, int] = {}
    return tuple((one.shape, *(order.setdefault(hole, len(order)) for hole in one.holes)) for one in run)


def reach(a: list[Statement], b: list[Statement]) -> int:
    """How many statements from the start of both are equal by structure."""
    to: dict[Hashable, Hashable] = {}
    back: dict[Hashable, Hashable] = {}
    for count, (one, other) in enumerate(zip(a, b, strict=False)):
        if one.shape != other.shape:
            return count
        for x, y in zip(one.holes, other.holes, strict=True):
            if to.setdefault(x, y) != y or back.setdefault(y, x) != x:
                return count
    return min(len(a), len(b))


def repeats(sequences: list[Sequence]) -> list[Repeat]:
    """Every maximal run that breaks a rule, in order of place."""
    places: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for which, sequence in enumerate(sequences):
        for i in range(len(sequence.statements) - BETWEEN + 1):
            places[canonical(sequence.statements[i : i + BETWEEN])].append((which, i))
    found: dict[tuple[int, int], list[Repeat]] = defaultdict(list)
    for (f, i), (g, j) in (pair for same in places.values() for pair in combinations(same, 2)):
        left, right = sequences[f], sequences[g]
        if left.package == right.package != "core":
            continue
        length = reach(left.statements[i:], right.statements[j:])
        if f == g:
            length = min(length, j - i)  # a run does not repeat itself
        if length >= (INSIDE if left.package == right.package else BETWEEN):
            found[f, g].append(Repeat(left, i, right, j, length))
    kept = []
    for same_pair in found.values():
        same_pair.sort(key=lambda repeat: -repeat.length)
        maximal: list[Repeat] = []
        for repeat in same_pair:
            if not any(repeat.within(longer) for longer in maximal):
                maximal.append(repeat)
        kept += maximal
    return sorted(kept, key=lambda r: (r.left.file, r.left.statements[r.i].first, r.right.file, r.j))


def sizes(root: Path) -> dict[str, int]:
    """Lines of source (blank ones left out) of each package that is there, and of the room counted by itself."""
    folders = {package: root / package / "src" for package in PACKAGES}
    folders["sqakd/kd"] = root / "sqakd/src/sqakd/kd"
    found = {
        package: sum(bool(line.strip()) for path in folder.rglob("*.py") for line in path.read_bytes().splitlines())
        for package, folder in folders.items()
        if folder.is_dir()
    }
    if "sqakd/kd" in found:
        found["sqakd"] -= found["sqakd/kd"]
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print breaches and sizes; 1 where there is a breach."""
    parser = argparse.ArgumentParser(description="Check that functions do not repeat each other.")
    parser.add_argument("--sizes", action="store_true", help="also fail where a package has too many lines")
    check_sizes = parser.parse_args(arguments).sizes
    breaches = [str(repeat) for repeat in repeats(read(root))]
    lines = sizes(root)
    print("lines of source: " + ", ".join(f"{package} {count}" for package, count in lines.items()))
    if check_sizes:
        over = {package: limit for package, limit in LINES.items() if lines.get(package, 0) > limit}
        breaches += [
            f"{name}: {lines[name]} lines of source, at most {limit} are allowed" for name, limit in over.items()
        ]
    print("\n".join(breaches) if breaches else "repeats: none")
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main())
