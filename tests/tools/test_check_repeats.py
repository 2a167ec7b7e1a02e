"""A run of statements that stands twice is found whatever its names, and nothing but statements counts."""

import runpy
from pathlib import Path
from textwrap import dedent, indent

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/check_repeats.py"))
SIX = """\
total = 0
for row in rows:
    if row.size > 3:
        total += row.size * scale(3)
result = f"{total} of {len(rows)}"
return result
"""
RENAMED = """\
count = 1
for batch in batches:
    if batch.size > 5:
        count += batch.size * scale(5)
text = f"{count} pictures, {len(batches)} batches"
return text
"""


def put(root: Path, package: str, source: str, name: str = "a") -> None:
    file = root / package / "src" / package / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)


def function(body: str, signature: str = "f(rows)") -> str:
    return f"def {signature}:\n{indent(body, '    ')}"


def found(root: Path) -> list[str]:
    return [str(repeat) for repeat in TOOL["repeats"](TOOL["read"](root))]


def test_repository_has_none() -> None:
    assert found(ROOT) == []


def test_a_run_in_two_packages(tmp_path: Path) -> None:
    put(tmp_path, "bsq", function(SIX))
    put(tmp_path, "ssql", "\n\n" + function(SIX))
    assert found(tmp_path) == [
        "bsq/src/bsq/a.py:2-7 repeats ssql/src/ssql/a.py:4-9 (6 statements, word for word)",
    ]


def test_a_run_in_two_packages_with_other_names_and_constants(tmp_path: Path) -> None:
    put(tmp_path, "core", function(SIX))
    put(tmp_path, "ssql", f"class A:\n{indent(function(RENAMED, 'g(self, batches)'), '    ')}")
    assert found(tmp_path) == ["core/src/core/a.py:2-7 repeats ssql/src/ssql/a.py:3-8 (6 statements)"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("count = 1\n", ""),  # five statements
        ("batch.size >", "batch.length >"),  # another attribute
        ("* scale(5)", "* shrink(5)"),  # another function
        ("> 5", ">= 5"),  # another operator
        ("> 5", "> 5.0"),  # another type
        ("scale(5)", "scale(6)"),  # one value became two
        ("return text", "return count"),  # one name became two
        ("    if ", "    print()\n    if "),  # a statement between
    ],
)
def test_other_runs_are_not_equal(old: str, new: str, tmp_path: Path) -> None:
    assert old in RENAMED
    put(tmp_path, "bsq", function(SIX))
    put(tmp_path, "ssql", function(RENAMED.replace(old, new, 1), "f(batches)"))
    assert found(tmp_path) == []


def test_runs_are_maximal_and_may_start_anywhere(tmp_path: Path) -> None:
    put(tmp_path, "bsq", function("a = first()\nb = 7\n" + SIX))
    put(tmp_path, "ssql", function("other(rows)\nb = 8\n" + SIX))
    assert found(tmp_path) == ["bsq/src/bsq/a.py:3-9 repeats ssql/src/ssql/a.py:3-9 (7 statements)"]


def test_only_the_longest_of_shifted_runs_is_printed(tmp_path: Path) -> None:
    body = "".join(f"show({number})\n" for number in range(10))
    put(tmp_path, "bsq", function(body))
    put(tmp_path, "ssql", function(body))
    assert found(tmp_path) == ["bsq/src/bsq/a.py:2-11 repeats ssql/src/ssql/a.py:2-11 (10 statements, word for word)"]


def test_a_name_of_the_function_around_is_local(tmp_path: Path) -> None:
    body = "a(x.p)\nb(x.q)\nc(x.r)\nd(x.s)\ne(x.t)\nreturn x\n"
    put(tmp_path, "bsq", function(function(body, "inner()"), "outer(x)"))
    put(tmp_path, "ssql", function(body.replace("x", "y"), "f(y)"))
    put(tmp_path, "us3l", function(body.replace("x", "GLOBAL"), "f()"))
    assert len(found(tmp_path)) == 1


def test_what_is_no_statement_does_not_count(tmp_path: Path) -> None:
    source = dedent('''\
        import ast
        import os
        import re
        import sys
        import json
        import math
        from dataclasses import dataclass

        @dataclass
        class Options:
            """Options."""
            a: int = 1
            b: int = 2
            c: int = 3
            d: int = 4
            e: int = 5
            f: int = 6

        def many(a: int = 1, b: int = 2, c: int = 3, d: int = 4, e: int = 5, f: int = 6) -> int:
            """What it does."""
            import re
            import sys  # for its path
            # a comment
            x: int
            a += 1
            b += 1
            def inner(z):
                """Nothing."""
                return z
            c += 1
            d += 1
            return inner(a)
        ''')
    put(tmp_path, "bsq", source)
    put(tmp_path, "ssql", source)
    assert found(tmp_path) == []
    for package in ("bsq", "ssql"):
        put(tmp_path, package, source.replace("    d += 1\n", "    d: int = d + 1\n    e += 1\n"))
    assert len(found(tmp_path)) == 1  # and an annotated assignment does


def test_twice_inside_core_above_twelve(tmp_path: Path) -> None:
    thirteen = "".join(f"x.a{number}(y)\n" for number in range(13))
    put(tmp_path, "core", function(thirteen, "f(x, y)"), "a")
    put(tmp_path, "core", function(thirteen.replace("y", "z"), "f(z, x)"), "b")
    assert found(tmp_path) == ["core/src/core/a.py:2-14 repeats core/src/core/b.py:2-14 (13 statements)"]
    put(tmp_path, "core", function(thirteen.partition("\n")[2], "f(x, y)"), "b")
    assert found(tmp_path) == []


def test_twice_inside_one_function_of_core(tmp_path: Path) -> None:
    thirteen = "".join(f"x.a{number}(y)\n" for number in range(13))
    put(tmp_path, "core", function(thirteen + thirteen, "f(x, y)"))
    assert found(tmp_path) == [
        "core/src/core/a.py:2-14 repeats core/src/core/a.py:15-27 (13 statements, word for word)",
    ]
    put(tmp_path, "core", function("x.a(y)\n" * 25, "f(x, y)"))
    assert found(tmp_path) == []  # a run does not overlap what it repeats


def test_twice_inside_a_method_is_allowed(tmp_path: Path) -> None:
    put(tmp_path, "bsq", function(SIX * 3), "a")
    put(tmp_path, "bsq", function(SIX * 3), "b")
    assert found(tmp_path) == []


def test_sizes_are_checked_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "ssql", "x = 1\n" * 2201)
    put(tmp_path, "core", "x = 1\n" * 9000)
    assert TOOL["main"]([], tmp_path) == 0
    assert capsys.readouterr().out == "lines of source: core 9000, ssql 2201\nrepeats: none\n"
    assert TOOL["main"](["--sizes"], tmp_path) == 1
    assert "ssql: 2201 lines of source, at most 2200 are allowed" in capsys.readouterr().out
    put(tmp_path, "ssql", "x = 1\n\n" * 2200)  # blank lines do not count
    assert TOOL["main"](["--sizes"], tmp_path) == 0


def test_a_breach_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("bsq", "ssql"):
        put(tmp_path, package, function(SIX))
    assert TOOL["main"]([], tmp_path) == 1
    assert "repeats ssql/src/ssql/a.py:2-7" in capsys.readouterr().out
