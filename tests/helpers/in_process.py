"""Command lines in the process of the tests; not a test itself."""

from collections.abc import Callable

from click import Command
from click.testing import CliRunner, Result

Run = Callable[..., Result]


def runner(cli: Command) -> Run:
    """`run("ssl", "--config", PATH)`, paths and numbers as they are; `code=2` expects that exit code."""

    def run(*args: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.stderr
        return result

    return run
