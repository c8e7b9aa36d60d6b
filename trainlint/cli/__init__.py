"""The command line. No logic here: each command reads its options and hands over."""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from trainlint import __version__
from trainlint.cli.checking import check
from trainlint.cli.completing import VARIABLE, register
from trainlint.cli.lessons import explain, new_rule, rules
from trainlint.cli.options import debug_option
from trainlint.cli.terminal import PLAIN_SIGNS
from trainlint.cli.training import run, sweep
from trainlint.cli.writing import say_error
from trainlint.errors import UsageError


class _Group(click.Group):
    """Turns errors into one line on stderr and exit status 2; `--debug` anywhere shows the traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if VARIABLE in os.environ:
            register()
        return super().main(*args, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        path = name.partition("::")[0]
        is_unknown = self.get_command(ctx, name) is None and not ctx.resilient_parsing
        if is_unknown and (path.endswith(".py") or Path(path).exists()):
            ctx.fail(f"No such command {name!r}. To check it: trainlint check {shlex.quote(name)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("trainlint: interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            say_error(error)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trainlint")
@debug_option
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Find what keeps a PyTorch model from learning, before you spend a GPU-hour.

    `trainlint check` runs your code, as pytest does: it imports the file and builds the model, in a
    child process.
    """
    ctx.obj = debug
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_SIGNS)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell: eval "$(trainlint completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "trainlint", VARIABLE).source())


for command in (check, run, sweep, explain, rules, new_rule, completion):
    main.add_command(command)
