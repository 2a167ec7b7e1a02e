"""How a program runs a command line and ends: each error one line on stderr, exit codes as in `lowbit.errors`."""

import os
import sys
from typing import Any

import click

from lowbit.cli.parsing import Command
from lowbit.errors import EXIT_DONE, EXIT_INPUT, EXIT_STOPPED, MOST, InputError, Stopped, one_line
from lowbit.train import console, signals


class Group(click.Group):
    """A program: its commands are `Command`s, its errors one line, its exit codes those of `lowbit.errors`.

    Without a command it prints its help and is done.
    """

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"invoke_without_command": True, **kwargs})

    def script(self) -> None:
        """The console script: stop signals are caught from here on."""
        signals.guarded(lambda: self(prog_name=self.name))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of the line."""
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            console.say(ctx.get_help())
        return result

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command line and leave the process with its exit code (whatever `standalone_mode` says)."""
        console.configure_logging(self.name or "lowbit")
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            code = result if isinstance(result, int) else EXIT_DONE
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            code = fail(f"{error.format_message()} ({command} --help lists what is allowed)", usage=True)
        except click.ClickException as error:
            code = fail(error.format_message(), usage=True)
        except InputError as error:
            code = fail(str(error))
        except (Stopped, click.Abort, KeyboardInterrupt) as stop:
            console.checked()
            console.report(f"stopped: {one_line(stop) or 'by a signal'}")
            code = EXIT_STOPPED
        except RuntimeError as error:
            if "torchvision::" not in str(error):  # its operators, of a torch that it was not built for
                raise
            code = fail(f"torch and torchvision do not fit ({error}): `lowbit doctor` says what to do")
        finally:
            console.checked()
        sys.exit(code)


def fail(message: str, *, usage: bool = False) -> int:
    """Print a one-line error, once for all processes that find it; returns the exit code of bad input.

    A wrong command line (`usage`) is reported by the first process of each machine, since all were given the same.
    """
    console.refused()
    process = sys.modules.get("lowbit.train.process")  # not imported: this process has not met others yet
    if os.environ.get("LOCAL_RANK", "0") == "0" if usage else process is None or process.first_to_say(message):
        console.report(f"error: {one_line(message, MOST - len('error: '))}")
    return EXIT_INPUT
