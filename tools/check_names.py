"""Check that core knows no method: neither its name nor the paths of its YAML keys.

Usage: python tools/check_names.py   (exit 1 and one line per breach)

- A method's name stands nowhere in core's module names, identifiers, strings, messages and comments. A docstring may
  cite the paper by authors, title and year: a paragraph that names a method holds a year or an arXiv number.
- No path of a YAML key (`TRAIN.EPOCHS`) stands anywhere in core but in `config/keys`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = Path("core/src/lowbit")
# As a word or as a part of one: `ssql`, `ssql_head`, `RSSQL_BYOL`, `SSQLHead`, `BsqLayer`; not `absq` or `BSQRT`.
NAME = re.compile(
    r"(?<![A-Za-z])r?(?:ssql|us3l|sqakd|s2[-_ ]?bnn|bsq)(?![a-z])"
    r"|(?<![A-Z])R?(?:SSQL|US3L|SQAKD|S2[-_ ]?BNN|BSQ)(?![A-Z](?![a-z]))"
    r"|R?(?:Ssql|Us3l|Sqakd|S2[-_ ]?[Bb]nn|Bsq)(?![a-z])"
)
KEY = re.compile(r"\b(?:MODEL|TRAIN|AUG|SSL|QUANT|SEED|OUTPUT)\.[A-Z][A-Z_0-9]*(?:\.[A-Z][A-Z_0-9]*)*")
CITED = re.compile(r"\b(?:19\d\d|20[0-3]\d)\b|arXiv", re.IGNORECASE)  # 2048 is a width
BLANK_LINE = re.compile(r"\n[ \t]*\n")


def docstrings(source: str) -> list[tuple[int, int]]:
    """(First, last) line of every string that stands alone as a statement."""
    alone = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in alone
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def named(source: str) -> Iterator[tuple[int, str, str]]:
    """(Line, name, where it stands) of each method's name that may not stand there."""
    places = {getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING): "a string", tokenize.STRING: "a string"}
    places |= {tokenize.NAME: "an identifier", tokenize.COMMENT: "a comment"}
    alone = docstrings(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in places:
            continue
        is_docstring = token.type == tokenize.STRING and any(a <= token.start[0] <= b for a, b in alone)
        for found in NAME.finditer(token.string):
            before, after = token.string[: found.start()], token.string[found.end() :]
            paragraph = BLANK_LINE.split(before)[-1] + found[0] + BLANK_LINE.split(after)[0]
            if is_docstring and CITED.search(paragraph):
                continue
            where = "a docstring without a citation" if is_docstring else places[token.type]
            yield token.start[0] + before.count("\n"), found[0], where


def check(root: Path = ROOT) -> list[str]:
    """Every breach as `file:line: why`."""
    found = []
    for path in sorted((root / CORE).rglob("*.py")):
        source, inside = path.read_text(encoding="utf-8"), path.relative_to(root / CORE).with_suffix("")
        places = [(1, f"{name!r} in the name of a module") for name in NAME.findall(inside.as_posix())]
        places += [(line, f"{name!r} in {where}") for line, name, where in named(source)]
        if inside.parts[:2] != ("config", "keys"):
            lines = enumerate(source.splitlines(), start=1)
            places += [
                (line, f"key path {key!r} outside config/keys") for line, text in lines for key in KEY.findall(text)
            ]
        found += [f"{path.relative_to(root).as_posix()}:{line}: {why}" for line, why in sorted(places)]
    return found


if __name__ == "__main__":
    breaches = check()
    print("\n".join(breaches) if breaches else "names: in order")
    sys.exit(bool(breaches))
