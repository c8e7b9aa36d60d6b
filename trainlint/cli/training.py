"""`trainlint run` and `trainlint sweep`: what trains for longer than a check."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from trainlint.cli.completing import complete_files, complete_targets
from trainlint.cli.options import (
    config_option,
    debug_option,
    numbers,
    plots_option,
    report_options,
    rule_options,
    show_info_option,
    split,
)
from trainlint.cli.terminal import progress_shown
from trainlint.cli.writing import (
    Manner,
    check_writable,
    complain,
    outputs_of,
    write_report,
    write_sweep,
)
from trainlint.config import FAIL_ON, load_config
from trainlint.generalization.swept import OVER
from trainlint.report import SWEEP_FORMAT_NAMES


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script", shell_complete=complete_files)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_files)
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module.")
@click.option("--steps", type=click.IntRange(min=1), help="End it after so many optimizer steps.")
@click.option("--every", type=click.IntRange(min=1), help="Record each so many steps [adaptive].")
@click.option(
    "--no-static", is_flag=True, help="Do not look at the models' graphs before training."
)
@click.option("--timeout", type=click.FloatRange(min=1), help="End it after so many seconds.")
@rule_options
@click.option(
    "--fail-on", type=click.Choice(FAIL_ON), help="Exit with 1 for findings from here on."
)
@report_options
@show_info_option
@plots_option
@config_option
@click.pass_context
def run(
    ctx: click.Context,
    script: str,
    args: tuple[str, ...],
    module: bool,
    steps: int | None,
    every: int | None,
    no_static: bool,
    timeout: float | None,
    select: tuple[str, ...],
    extend_select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: str | None,
    form: str,
    output: tuple[str, ...],
    statistics: bool,
    show_info: bool,
    plots: bool | None,
    config_path: Path | None,
) -> None:
    """Run a training script as it is, watch it train, and say what is wrong.

    Options of trainlint stand before SCRIPT, what follows it is the script's. The report goes to stderr,
    or to --output; of several processes (torchrun ... -m trainlint run SCRIPT), the first one reports.
    Exit status: the script's own; with --fail-on 1 where it is 0 and there are findings.
    """
    from trainlint.running import is_first_of_several, run_script

    outputs, is_elsewhere = outputs_of(output, form)
    check_writable([path for _, path in outputs])
    config = load_config(config_path)
    done = run_script(
        script, args, module=module, steps=steps or 0, every=every or 0,
        static=not no_static, timeout=timeout, select=select or None, ignore=ignore,
        extend_select=extend_select, graphs="html" in (form, *(each for each, _ in outputs)),
        config=config,
    )  # fmt: skip
    status = done.status or (1 if done.report.fails(fail_on or "never") else 0)
    if is_first_of_several():
        try:
            complain(done.report)
            manner = Manner(fail_on or config.fail_on, show_info, plots, statistics, status)
            write_report(
                done.report, form, outputs, manner, is_elsewhere=is_elsewhere, to=sys.stderr
            )
        except Exception as error:  # the script has run: its status is not ours to change
            click.echo(f"trainlint: error: no report: {error}", err=True)
    ctx.exit(status)


@click.command()
@click.argument("target", shell_complete=complete_targets)
@click.option(
    "--over", type=click.Choice(OVER), default=OVER[0], show_default=True, help="What to vary."
)
@click.option(
    "--values", metavar="V,...", callback=numbers,
    help="Factors of the width, strengths of the penalty, or probabilities.",
)  # fmt: skip
@click.option(
    "--width", multiple=True, metavar="NAME,...", callback=split,
    help="What sets the width: integer arguments of the model, or constants of the file [found].",
)  # fmt: skip
@click.option("--kfold", type=int, default=5, show_default=True, metavar="K", help="Folds.")
@click.option("--epochs", type=float, help="Train for so many epochs.")
@click.option("--steps", type=int, help="Train for so many steps [until the loss stops falling].")
@click.option("--seconds", type=float, default=600, show_default=True, help="Time for all of it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds, order and weights.")
@click.option("--jobs", type=click.IntRange(min=1), help="Trainings at once [one a core].")
@click.option(
    "--format", "form", type=click.Choice(SWEEP_FORMAT_NAMES), default="text", show_default=True,
    help="How to write it.",
)  # fmt: skip
@click.option(
    "--output", multiple=True, metavar="[FORMAT:]FILE", shell_complete=complete_files,
    help="Write it to this file; with a FORMAT, one more in that form.",
)  # fmt: skip
@config_option
@debug_option
@click.pass_context
def sweep(
    ctx: click.Context,
    target: str,
    over: str,
    values: tuple[float, ...] | None,
    width: tuple[str, ...],
    kfold: int,
    epochs: float | None,
    steps: int | None,
    seconds: float,
    seed: int,
    jobs: int | None,
    form: str,
    output: tuple[str, ...],
    config_path: Path | None,
    debug: bool,
) -> None:
    """How large should the model be? Train it at several widths, or penalties, on each of K folds.

    TARGET is a file, file.py::Net or package.module:name with a model, a loss, an optimizer and
    train_loader at module level. The widths are 1/4 to 4 times the file's own.
    """
    from trainlint.generalization.sweep import sweep as run_sweep

    outputs, is_elsewhere = outputs_of(output, form, SWEEP_FORMAT_NAMES)
    check_writable([path for _, path in outputs])
    config = load_config(config_path)
    if jobs is not None:
        config = msgspec.structs.replace(config, jobs=jobs)
    with progress_shown("sweeping") as progress:
        report = run_sweep(
            target, over=over, values=values, width=width, kfold=kfold, epochs=epochs, steps=steps,
            seconds=seconds, seed=seed, config=config, progress=progress,
            debug=debug or bool(ctx.obj),
        )  # fmt: skip
    write_sweep(report, form, outputs, is_elsewhere=is_elsewhere)
