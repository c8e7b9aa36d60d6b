"""The command line. No logic here: each command reads its options and hands over."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click
import msgspec

from trainlint import __version__
from trainlint.config import FAIL_ON, Config, load_config
from trainlint.errors import TrainlintError, UsageError
from trainlint.generalization.swept import OVER
from trainlint.report import FORMAT_NAMES, rendered

if TYPE_CHECKING:
    from rich.console import Console

    from trainlint.baseline import Baseline
    from trainlint.fixes.fixing import Fixed, Wish
    from trainlint.records import Report


class _Group(click.Group):
    """Turns errors into one line on stderr and exit status 2; `--debug` anywhere shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("trainlint: interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if "--debug" in sys.argv:
                import traceback

                traceback.print_exc()
            text = f"error: {error}"
            if not isinstance(error, TrainlintError):
                text = (
                    f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"
                )
            click.echo(f"trainlint: {text}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trainlint")
@click.option("--debug", is_flag=True, help="Show tracebacks of trainlint's own errors.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Find what keeps a PyTorch model from learning, before you spend a GPU-hour.

    `trainlint check` runs your code, as pytest does: it imports the file and builds the model, in a
    child process.
    """
    ctx.obj = debug
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="trainlint")


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """`>` for `▸` and the like on a terminal that knows ASCII only; what has no likeness by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    shown = (
        _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs
    )
    return "".join(shown), error.end


_PLAIN: Final = {
    "·": "-", "│": "|", "─": "-", "▸": ">", "█": "#", "▏": "|", "…": "...", "×": "x", "→": "->",
    "≤": "<=", "≥": ">=", "−": "-", "•": "*",
    "±": "+/-", "▲": "^", "○": "o", "●": "*", "┄": "-", "λ": "lambda",
    "⅛": "1/8", "¼": "1/4", "½": "1/2", "¾": "3/4",
}  # fmt: skip
codecs.register_error("trainlint", _in_plain_signs)


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--values {text}: numbers, separated by commas") from None


def _selector_option(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        name,
        multiple=True,
        metavar="RULES",
        callback=_split,
        help=text,
        shell_complete=_complete_rules,
    )


def _complete_rules(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from trainlint.registry import all_rules

    names = [name for rule in all_rules() for name in (rule.code, rule.name)]
    return [name for name in names if name.startswith(incomplete)]


def _report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How and where to write the report."""
    form = click.option(
        "--format", "form", type=click.Choice(FORMAT_NAMES), default="text", show_default=True,
        help="How to write the report.",
    )  # fmt: skip
    output = click.option(
        "--output", multiple=True, metavar="[FORMAT:]FILE",
        help="Write the report to this file; with a FORMAT, one more in that form.",
    )  # fmt: skip
    statistics = click.option(
        "--statistics", is_flag=True, help="Only count the findings of each rule."
    )
    return form(output(statistics(command)))


_plots_option: Final = click.option(
    "--plots/--no-plots", default=None,
    help="Draw all pictures of a watched training, or none [where a finding needs one].",
)  # fmt: skip


@main.command()
@click.argument("targets", nargs=-1, metavar="TARGET...")
@_selector_option("--select", "Only these: codes, prefixes, names, families or ALL; by commas.")
@_selector_option("--extend-select", "These as well.")
@_selector_option("--ignore", "Not these.")
@click.option("--inputs", metavar="SHAPES", help="Inputs such as 2x3x32x32,2x16:long.")
@click.option(
    "--static", is_flag=True, help="Only the graph: the model is not run on real numbers."
)
@click.option(
    "--scan", is_flag=True, help="A file that is named, but holds no model, is passed over."
)
@click.option("--fail-on", type=click.Choice(FAIL_ON), help="Least severity for exit status 1.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever is found.")
@_report_options
@click.option("--show-info", is_flag=True, help="Show advice, too.")
@_plots_option
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Leave out the findings in this file."
)
@click.option(
    "--write-baseline", type=click.Path(path_type=Path),
    help="Write all findings to this file, for --baseline.",
)  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=1), help="Seconds for each model [120].")
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Memory for each child process.",
)
@click.option(
    "--probe-steps", type=click.IntRange(min=0), metavar="N",
    help="Optimizer steps of the probe; 0 for none [50].",
)  # fmt: skip
@click.option(
    "--probe-seconds", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Seconds of the probe at most [30].",
)  # fmt: skip
@click.option(
    "--verify/--no-verify", default=None,
    help="Try the fixes of errors and warnings on copies, and say which are proved to help.",
)  # fmt: skip
@click.option(
    "--verify-seconds", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Seconds of --verify at most [120].",
)  # fmt: skip
@click.option(
    "--kfold", type=click.IntRange(min=2), metavar="K",
    help="Cross-validate what has no error, on K folds of its training data.",
)  # fmt: skip
@click.option(
    "--epochs", type=click.FloatRange(min=0, min_open=True), metavar="E",
    help="Epochs of each training of --kfold [as many steps as the probe].",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(min=1),
    help="Files checked, or folds trained, at once [one a core].",
)  # fmt: skip
@click.option(
    "--fix/--no-fix", default=None,
    help="Write fixes to the files: those that pass a check of the edited text.",
)  # fmt: skip
@click.option(
    "--unsafe-fixes/--no-unsafe-fixes", default=None,
    help="With --fix, --diff: also fixes that change the model.",
)  # fmt: skip
@click.option("--diff", is_flag=True, help="Show what --fix would change, and write nothing.")
@click.option("--fix-only", is_flag=True, help="As --fix, without a report of what is left.")
@click.option("--interactive", is_flag=True, help="As --fix, but ask before each fix.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Read this file.")
@click.option("--debug", is_flag=True, help="Show tracebacks of trainlint's own errors.")
@click.pass_context
def check(
    ctx: click.Context,
    targets: tuple[str, ...],
    select: tuple[str, ...],
    extend_select: tuple[str, ...],
    ignore: tuple[str, ...],
    inputs: str | None,
    static: bool,
    scan: bool,
    fail_on: str | None,
    exit_zero: bool,
    form: str,
    output: tuple[str, ...],
    statistics: bool,
    show_info: bool,
    plots: bool | None,
    baseline: Path | None,
    write_baseline: Path | None,
    timeout: float | None,
    memory_limit: int | None,
    probe_steps: int | None,
    probe_seconds: float | None,
    verify: bool | None,
    verify_seconds: float | None,
    kfold: int | None,
    epochs: float | None,
    jobs: int | None,
    fix: bool | None,
    unsafe_fixes: bool | None,
    diff: bool,
    fix_only: bool,
    interactive: bool,
    config_path: Path | None,
    debug: bool,
) -> None:
    """Check the models in files, directories, file.py::Name and package.module:attribute.

    Exit status: 0 nothing at or above --fail-on, 1 findings, 2 a usage or configuration error, or a
    target that could not be loaded or analysed. With --diff, 1 where it shows something.
    """
    config = load_config(config_path)
    overrides = {
        "fail_on": fail_on, "timeout": timeout, "memory_limit": memory_limit, "jobs": jobs,
        "probe_steps": probe_steps, "probe_seconds": probe_seconds, "verify": verify,
        "verify_seconds": verify_seconds, "fix": fix, "unsafe_fixes": unsafe_fixes,
    }  # fmt: skip
    config = msgspec.structs.replace(
        config, **{name: value for name, value in overrides.items() if value is not None}
    )
    wanted = list(targets) or config.targets
    if not wanted:
        raise UsageError("nothing to check: give a file, or set targets in [tool.trainlint]")
    _check_trainings({"--kfold": kfold, "--verify": verify}, static=static)
    if verify_seconds and not config.verify:
        raise UsageError("--verify-seconds is for --verify")
    if epochs and not kfold:
        raise UsageError("--epochs is for --kfold; the probe takes --probe-steps")
    asked = {"--diff": diff, "--fix-only": fix_only, "--interactive": interactive}
    is_fixing = config.fix or any(asked.values())
    _check_fixing(asked, bool(output or form != "text" or statistics or kfold or write_baseline))
    if scan and not any(_may_hold_models(Path(target)) for target in wanted):
        ctx.exit(0)
    from trainlint.api import file_check
    from trainlint.baseline import read_baseline
    from trainlint.baseline import write_baseline as write_report_as_baseline
    from trainlint.fixes.fixing import fix_files
    from trainlint.rule import STAGES

    outputs, is_elsewhere = _outputs(output, form)
    _check_writable([*(path for _, path in outputs), *([write_baseline] if write_baseline else [])])
    known = config.baseline if baseline is None else str(baseline)
    before = None if known is None else read_baseline(Path(known))

    checked = file_check(
        wanted, inputs, select=select or None, ignore=ignore, extend_select=extend_select,
        stages=STAGES[:1] if static else STAGES, scan=scan,
        graphs="html" in (form, *(each for each, _ in outputs)),
        config=config, debug=debug or bool(ctx.obj),
    )  # fmt: skip
    with _checking(is_shown=not interactive) as (progress, advance):
        look = partial(
            checked.report, progress, verify=config.verify and not static, advance=advance
        )
        fixed = None
        if is_fixing:
            wish = _wish(config, before, advice=show_info, write=not diff, interactive=interactive)
            fixed = fix_files(checked, wish, progress, look)
        report = look() if fixed is None else fixed.report
    _tell_fixed(report, fixed, diff=diff, offer=bool(unsafe_fixes))
    if diff or fix_only:
        _complain(report)
        differs = diff and fixed is not None and fixed.changed and not exit_zero
        ctx.exit(2 if report.has_errors else int(bool(differs)))
    if kfold:
        from trainlint.generalization.crossvalidation import with_folds

        with _bar("folds") as advance:
            report = with_folds(report, kfold, config, epochs=epochs, progress=advance)
    _complain(report)
    if write_baseline is not None:
        write_report_as_baseline(report, write_baseline)
        click.echo(
            f"trainlint: wrote {len(report.findings)} findings to {write_baseline}", err=True
        )
        ctx.exit(2 if report.has_errors else 0)
    if before is not None:
        report = _without_known(report, before, str(known))
    if form == "concise":  # its lines have no place for what the other forms say themselves
        from trainlint.report.concise import remarks

        for remark in remarks(report):
            click.echo(f"trainlint: {remark}", err=True)
    manner = _Manner(config.fail_on, show_info, plots, statistics)
    _write_all(report, form, outputs, manner, is_elsewhere=is_elsewhere)
    ctx.exit(0 if exit_zero else report.exit_status(config.fail_on))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module.")
@click.option("--steps", type=click.IntRange(min=1), help="End it after so many optimizer steps.")
@click.option("--every", type=click.IntRange(min=1), help="Record each so many steps [adaptive].")
@click.option(
    "--no-static", is_flag=True, help="Do not look at the models' graphs before training."
)
@click.option("--timeout", type=click.FloatRange(min=1), help="End it after so many seconds.")
@_selector_option("--select", "Only these: codes, prefixes, names, families or ALL; by commas.")
@_selector_option("--extend-select", "These as well.")
@_selector_option("--ignore", "Not these.")
@click.option(
    "--fail-on", type=click.Choice(FAIL_ON), help="Exit with 1 for findings from here on."
)
@_report_options
@click.option("--show-info", is_flag=True, help="Show advice, too.")
@_plots_option
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Read this file.")
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

    outputs, is_elsewhere = _outputs(output, form)
    _check_writable([path for _, path in outputs])
    config = load_config(config_path)
    done = run_script(
        script, args, module=module, steps=steps or 0, every=every or 0,
        static=not no_static, timeout=timeout, select=select or None, ignore=ignore,
        extend_select=extend_select, config=config,
    )  # fmt: skip
    status = done.status or (1 if done.report.fails(fail_on or "never") else 0)
    if is_first_of_several():
        try:
            _complain(done.report)
            manner = _Manner(fail_on or config.fail_on, show_info, plots, statistics, status)
            _write_all(done.report, form, outputs, manner, is_elsewhere=is_elsewhere, to=sys.stderr)
        except Exception as error:  # the script has run: its status is not ours to change
            click.echo(f"trainlint: error: no report: {error}", err=True)
    ctx.exit(status)


@main.command()
@click.argument("target")
@click.option(
    "--over", type=click.Choice(OVER), default=OVER[0], show_default=True, help="What to vary."
)
@click.option(
    "--values", metavar="V,...", callback=_numbers,
    help="Factors of the width, strengths of the penalty, or probabilities.",
)  # fmt: skip
@click.option(
    "--width", multiple=True, metavar="NAME,...", callback=_split,
    help="What sets the width: integer arguments of the model, or constants of the file [found].",
)  # fmt: skip
@click.option("--kfold", type=int, default=5, show_default=True, metavar="K", help="Folds.")
@click.option("--epochs", type=float, help="Train for so many epochs.")
@click.option("--steps", type=int, help="Train for so many steps [until the loss stops falling].")
@click.option("--seconds", type=float, default=600, show_default=True, help="Time for all of it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds, order and weights.")
@click.option("--jobs", type=click.IntRange(min=1), help="Trainings at once [one a core].")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="How to write it.",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Write it to this file.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Read this file.")
@click.option("--debug", is_flag=True, help="Show tracebacks of trainlint's own errors.")
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
    output: Path | None,
    config_path: Path | None,
    debug: bool,
) -> None:
    """How large should the model be? Train it at several widths, or penalties, on each of K folds.

    TARGET is a file, file.py::Net or package.module:name with a model, a loss, an optimizer and
    train_loader at module level. The widths are 1/4 to 4 times the file's own.
    """
    from trainlint.generalization.sweep import sweep as run_sweep

    _check_writable([output] if output is not None else [])
    config = load_config(config_path)
    if jobs is not None:
        config = msgspec.structs.replace(config, jobs=jobs)
    with _progress("sweeping") as progress:
        report = run_sweep(
            target, over=over, values=values, width=width, kfold=kfold, epochs=epochs, steps=steps,
            seconds=seconds, seed=seed, config=config, progress=progress,
            debug=debug or bool(ctx.obj),
        )  # fmt: skip
    if output is not None:
        from trainlint.report.sweeping import as_text

        text = report.to_json() if form == "json" else as_text(report, _piped_width())
        output.write_text(text + "\n", encoding="utf-8")
    elif form == "json":
        click.echo(report.to_json())
    else:
        from trainlint.report.sweeping import print_sweep

        print_sweep(report, _console(sys.stdout))


def _check_trainings(asked: Mapping[str, Any], *, static: bool) -> None:
    """Raises `UsageError` for what trains a model that is not to be run."""
    for name, is_given in asked.items():
        if is_given and static:
            raise UsageError(
                f"{name} trains the model, --static does not even run it: leave one out"
            )


def _check_fixing(asked: Mapping[str, bool], wants_report: bool) -> None:
    """Raises `UsageError` for ways of fixing that exclude each other, or where nobody can be asked."""
    given = [name for name, is_given in asked.items() if is_given]
    if "--diff" in given and len(given) > 1:
        raise UsageError(f"--diff writes nothing: leave out {given[0]} or {given[1]}")
    if wants_report and given and given[0] != "--interactive":
        raise UsageError(
            f"{given[0]} writes no report: leave out --format, --output, --statistics, --kfold and "
            "--write-baseline"
        )
    if "--interactive" in given and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("--interactive needs a terminal to ask in; --diff shows the fixes")


def _tell_fixed(report: Report, fixed: Fixed | None, *, diff: bool, offer: bool) -> None:
    """What was done, on stderr; with `diff`, what would be, as a patch on stdout.

    Where nothing was asked to be done, an `offer` says what could be.
    """
    from trainlint.report import repairs

    if fixed is None:
        if offer:
            click.echo(f"trainlint: {repairs.offer(report)}", err=True)
        return
    for remark in repairs.remarks(fixed, wrote=not diff):
        click.echo(f"trainlint: {remark}", err=True)
    if diff and sys.stdout.isatty():
        repairs.print_diff(fixed.changed, _console(sys.stdout))
    elif diff:
        click.echo(repairs.unified(fixed.changed), nl=False)


def _wish(
    config: Config, before: Baseline | None, *, advice: bool, write: bool, interactive: bool
) -> Wish:
    """Which fixes to apply."""
    from trainlint.baseline import without
    from trainlint.fixes.fixing import Wish
    from trainlint.report.repairs import Questions

    return Wish(
        unsafe=config.unsafe_fixes,
        advice=advice,
        write=write,
        ask=Questions(_console(sys.stderr), sys.stdin.readline) if interactive else None,
        wanted=lambda report: report if before is None else without(report, before)[0],
    )


@contextmanager
def _progress(
    verb: str = "checking", *, is_shown: bool = True
) -> Iterator[Callable[[str], None] | None]:
    """What is being checked, on stderr, and only where that is a terminal."""
    if not (is_shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("importing torch") as status:
        yield lambda what: status.update(f"{verb} {what}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float, str], None] | None]:
    """How much of a long work is done, on stderr, and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)


@contextmanager
def _checking(
    *, is_shown: bool = True
) -> Iterator[tuple[Callable[[str], None] | None, Callable[[float, str], None] | None]]:
    """What is being checked, and once that is done, how many of the fixes were tried."""
    with ExitStack() as first, ExitStack() as second:
        progress = first.enter_context(_progress(is_shown=is_shown))
        bars: list[Callable[[float, str], None]] = []

        def advance(share: float, text: str) -> None:
            if not bars:
                first.close()  # a terminal shows one of them at a time
                bar = second.enter_context(_bar("fixes"))
                assert bar is not None
                bars.append(bar)
            bars[0](share, text)

        yield progress, None if progress is None else advance


def _outputs(values: tuple[str, ...], form: str) -> tuple[list[tuple[str, Path]], bool]:
    """(form, file) of each --output, and whether one takes the terminal's place.

    Raises `UsageError` for several files without a form.
    """
    outputs = []
    plain = 0
    for value in values:
        prefix, separator, name = value.partition(":")
        if separator and name and prefix in FORMAT_NAMES:
            outputs.append((prefix, Path(name)))
        else:
            plain += 1
            outputs.append((form, Path(value)))
    if plain > 1:
        raise UsageError(
            f"one file for --format {form}; others with their form: --output sarif:FILE"
        )
    return outputs, plain == 1


def _may_hold_models(path: Path) -> bool:
    """Whether there is more to do than to look at the text, as a commit hook does most of the time."""
    if not path.is_file():
        return True
    from trainlint.targets.discovery import holds_models

    return holds_models(path)


def _check_writable(files: list[Path]) -> None:
    """Before anything is run: the report of a long one must not be lost."""
    for file in files:
        if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            reason = "is a directory" if file.is_dir() else "no such folder, or not writable"
            raise UsageError(f"cannot write {file}: {reason}")


def _without_known(report: Report, baseline: Baseline, name: str) -> Report:
    """Without the findings of a baseline; what that did is said on stderr."""
    from trainlint.baseline import without

    report, dropped, gone = without(report, baseline)
    if dropped:
        click.echo(f"trainlint: {dropped} findings stand in {name}, and are left out", err=True)
    for entry in gone:
        text = f"{entry.target}: {entry.code} of {name} no longer occurs"
        click.echo(f"trainlint: {text}", err=True)
    return report


def _complain(report: Report) -> None:
    """One line on stderr for each target that could not be checked, and what it printed last."""
    for target in report.targets:
        if target.status == "error":
            click.echo(f"trainlint: error: {target.target}: {target.reason}", err=True)
            for line in target.output.strip().splitlines()[-5:]:
                click.echo(f"    | {line[:200]}", err=True)


@dataclass(frozen=True)
class _Manner:
    """How a report is written, in whatever form."""

    fail_on: str
    show_info: bool
    plots: bool | None
    statistics: bool = False
    status: int | None = None


def _write_all(
    report: Report,
    form: str,
    outputs: list[tuple[str, Path]],
    manner: _Manner,
    *,
    is_elsewhere: bool,
    to: TextIO | None = None,
) -> None:
    """To each file, and to the terminal unless one of them takes its place."""
    if not is_elsewhere:
        _write(report, form, to or sys.stdout, manner)
    for each, path in outputs:
        try:
            stream = path.open("w", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        with stream:
            _write(report, each, stream, manner)


def _write(report: Report, form: str, stream: TextIO, manner: _Manner) -> None:
    if manner.statistics and form in ("text", "concise", "json"):
        from trainlint.report import statistics

        text = statistics.render(report, form, show_info=manner.show_info)
    elif form == "text":
        from trainlint.report.text import print_report

        print_report(
            report, _console(stream), show_info=manner.show_info, fail_on=manner.fail_on,
            plots=manner.plots, status=manner.status,
        )  # fmt: skip
        return
    else:
        text = rendered(report, form, show_info=manner.show_info, fail_on=manner.fail_on)
    if text:
        stream.write(text + "\n")


def _console(stream: TextIO) -> Console:
    """Colours on a terminal; else none, and a width that can be set."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, soft_wrap=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(file=stream, highlight=False, emoji=False, width=_piped_width(), no_color=True)


def _piped_width() -> int:

    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else 100


@main.command()
@click.argument("rule", shell_complete=_complete_rules)
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text",
    show_default=True, help="How to write it.",
)  # fmt: skip
@click.option(
    "--example", type=click.Choice(["bad", "good"]), help="Only this example, as a file that runs."
)
@click.option(
    "--full", is_flag=True, help="Also how it is judged, options, related rules and references."
)
def explain(rule: str, form: str, example: str | None, full: bool) -> None:
    """Explain a rule: what the fault does to training, the formula, examples, when to ignore it.

    RULE is a code or name (saturating-stack). A family or prefix (ARC), or a word that names have in
    common (dropout), lists its rules.
    """
    from trainlint.report import explanation

    found = explanation.rules_named(rule)
    if example is not None:
        click.echo(explanation.example(found, example), nl=False)
    elif form == "text":
        explanation.print_rules(found, _console(sys.stdout), full=full)
    else:
        click.echo(explanation.as_json(found) if form == "json" else explanation.as_markdown(found))


@main.command()
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
def rules(form: str) -> None:
    """List the rules."""
    from trainlint.registry import all_rules

    if form == "json":
        rows = [
            {
                "code": rule.code, "name": rule.name, "family": rule.family,
                "severity": str(rule.severity), "stages": list(rule.stages),
                "summary": rule.summary, "since": rule.since,
                "options": dict(rule.options),
            }
            for rule in all_rules()
        ]  # fmt: skip
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    from trainlint.report.explanation import print_table

    print_table(all_rules(), _console(sys.stdout))


@main.command("new-rule")
@click.argument("family")
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), default=Path("rules"),
    show_default=True, help="Root of the rule pack.",
)  # fmt: skip
def new_rule(family: str, name: str, directory: Path) -> None:
    """Write the skeleton of a rule: trainlint new-rule normalization batchnorm-on-output."""
    from trainlint.scaffold import write_rule

    click.echo(f"wrote {write_rule(directory, family, name)}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(trainlint completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "trainlint", "_TRAINLINT_COMPLETE").source())
