"""Check the direction of imports: each layer of core imports only from those above it, methods import core alone.

Usage: python tools/check_layers.py   (exit 1 and one line per breach)
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Top to bottom; one tuple is one layer, whose members do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "options", "outcome"),
    ("files", "paths"),
    ("metrics",),
    ("curves",),
    ("config",),
    ("data",),
    ("checkpoint",),
    ("models",),
    ("quant",),
    ("losses",),
    ("train",),
    ("evaluate",),
    ("cost",),
    ("slim",),
    ("export",),
    ("loading", "installation"),
    ("description",),
    ("prediction",),
    ("demo",),
    ("cli",),
    ("__main__",),
    ("functions",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
METHODS = ("ssql", "us3l", "sqakd", "s2bnn", "bsq")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every (line, dotted module) that a file imports, anywhere in it, `from a.b import c` as a.b.c and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "." * node.level


def breach(package: str, layer: str, module: str) -> str | None:
    """Why `module` may not be imported from `layer` of `package`; None where it may."""
    top, _, rest = module.partition(".")
    if top.startswith("."):
        return "relative import"
    if package == "lowbit":
        if top in METHODS:
            return "core imports a method"
        target = rest.split(".")[0]
        if top == "lowbit" and target:
            if target not in LEVEL:
                return f"layer {target!r} is not in the list of tools/check_layers.py"
            if target != layer and LEVEL[target] >= LEVEL[layer]:
                return f"layer {layer!r} may not import {target!r}"
    elif top in METHODS and top != package:
        return "a method imports another method"
    return None


def check(root: Path = ROOT) -> list[str]:
    """Every breach as `file:line: why`."""
    found = []
    for package, folder in [("lowbit", root / "core/src/lowbit"), *((m, root / m / "src" / m) for m in METHODS)]:
        for path in sorted(folder.rglob("*.py")):
            layer = path.relative_to(folder).parts[0].removesuffix(".py")
            if layer == "__init__":
                continue
            if package == "lowbit" and layer not in LEVEL:
                found.append(f"{path.relative_to(root)}:1: {layer!r} is not in the list of tools/check_layers.py")
                continue
            for line, module in imports(path):
                why = breach(package, layer, module)
                if why:
                    found.append(f"{path.relative_to(root)}:{line}: {why}")
    return found


if __name__ == "__main__":
    breaches = check()
    print("\n".join(breaches) if breaches else "layers: in order")
    sys.exit(bool(breaches))
