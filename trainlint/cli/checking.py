"""`trainlint check`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from trainlint.cli.completing import complete_targets
from trainlint.cli.options import (
    config_option,
    debug_option,
    plots_option,
    report_options,
    rule_options,
    show_info_option,
    split_patterns,
)
from trainlint.cli.terminal import bar_shown, check_shown, console_on
from trainlint.cli.writing import (
    Manner,
    check_writable,
    complain,
    outputs_of,
    say_error,
    write_report,
)
from trainlint.config import FAIL_ON, Config, load_config
from trainlint.errors import UsageError
from trainlint.patterns import rooted

if TYPE_CHECKING:
    from trainlint.baseline import Baseline
    from trainlint.fixes.fixing import Fixed, Wish
    from trainlint.records import Report
    from trainlint.rounds import Earlier, Round


@click.command()
@click.argument("targets", nargs=-1, metavar="TARGET...", shell_complete=complete_targets)
@rule_options
@click.option(
    "--exclude", multiple=True, metavar="PATTERNS", callback=split_patterns,
    help="Pass over these files and folders as well: where a directory is searched, and with --scan.",
)  # fmt: skip
@click.option("--inputs", metavar="SHAPES", help="Inputs such as 2x3x32x32,2x16:long.")
@click.option(
    "--static", is_flag=True, help="Only the graph: the model is not run on real numbers."
)
@click.option(
    "--scan", is_flag=True, help="Named files that hold no model, or are tests, are passed over."
)
@click.option(
    "--importers", is_flag=True,
    help="With --scan: also the files of the project that import the named ones.",
)  # fmt: skip
@click.option("--fail-on", type=click.Choice(FAIL_ON), help="Least severity for exit status 1.")
@click.option(
    "--fail-on-skipped/--no-fail-on-skipped", default=None,
    help="A model that cannot be constructed is an error, exit status 2.",
)  # fmt: skip
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever is found.")
@report_options
@show_info_option
@plots_option
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
@click.option(
    "--watch", is_flag=True,
    help="Check again when a file changes; Ctrl-C ends it, with the exit status of the last check.",
)  # fmt: skip
@config_option
@debug_option
@click.pass_context
def check(ctx: click.Context, /, watch: bool, **options: Any) -> None:
    """Check the models in files, directories, file.py::Name and package.module:attribute.

    Exit status: 0 nothing at or above --fail-on, 1 findings, 2 a usage or configuration error, or a
    target that could not be loaded or analysed. With --diff, 1 where it shows something.
    """
    options["debug"] = options["debug"] or bool(ctx.obj)
    asked = _Asked(**options)
    if watch:
        asked.check_watched()
    config, wanted = asked.configured()
    if watch:
        from trainlint.rounds import check_on_changes

        look = partial(_checked, asked)
        targets = lambda: asked.configured()[1]  # noqa: E731
        ctx.exit(check_on_changes(look, targets, asked.config_path, say_error))
    is_looked_at = any(_may_hold_models(Path(target), config) for target in wanted)
    if asked.scan and not is_looked_at and not asked.importing(wanted, config)[0]:
        ctx.exit(0)
    ctx.exit(_checked(asked).status)


@dataclass(frozen=True)
class _Asked:
    """The options of `check`."""

    targets: tuple[str, ...]
    select: tuple[str, ...]
    extend_select: tuple[str, ...]
    ignore: tuple[str, ...]
    exclude: tuple[str, ...]
    inputs: str | None
    static: bool
    scan: bool
    importers: bool
    fail_on: str | None
    fail_on_skipped: bool | None
    exit_zero: bool
    form: str
    output: tuple[str, ...]
    statistics: bool
    show_info: bool
    plots: bool | None
    baseline: Path | None
    write_baseline: Path | None
    timeout: float | None
    memory_limit: int | None
    probe_steps: int | None
    probe_seconds: float | None
    verify: bool | None
    verify_seconds: float | None
    kfold: int | None
    epochs: float | None
    jobs: int | None
    fix: bool | None
    unsafe_fixes: bool | None
    diff: bool
    fix_only: bool
    interactive: bool
    config_path: Path | None
    debug: bool

    def configured(self) -> tuple[Config, list[str]]:
        """The settings with what overrides them here, and the targets.

        Raises `ConfigError`, and `UsageError` for options that make no sense or exclude each other.
        """
        config = load_config(self.config_path)
        given = {name: getattr(self, name) for name in _OVERRIDING}
        config = msgspec.structs.replace(
            config, **{name: value for name, value in given.items() if value is not None}
        )
        own = [rooted(pattern, Path.cwd()) for pattern in self.exclude]
        config = msgspec.structs.replace(config, exclude=[*config.exclude, *own])
        wanted = list(self.targets) or config.targets
        if not wanted:
            raise UsageError("nothing to check: give a file, or set targets in [tool.trainlint]")
        _check_trainings({"--kfold": self.kfold, "--verify": self.verify}, static=self.static)
        if self.verify_seconds and not config.verify:
            raise UsageError("--verify-seconds is for --verify")
        if self.importers and not self.scan:
            raise UsageError(
                "--importers is for --scan; targets without it are all that is checked"
            )
        if self.epochs and not self.kfold:
            raise UsageError("--epochs is for --kfold; the probe takes --probe-steps")
        wants_report = (
            self.output, self.form != "text", self.statistics, self.kfold, self.write_baseline
        )  # fmt: skip
        _check_fixing(self.fixing, any(wants_report))
        outputs_of(self.output, self.form)
        return config, wanted

    def importing(self, wanted: Sequence[str], config: Config) -> tuple[list[str], bool]:
        """The files with models that import the named ones, and whether there may be more; if asked for."""
        from trainlint.patterns import excludes
        from trainlint.targets.discovery import builds_models, holds_models

        def is_ours(path: Path) -> bool:
            return path.is_file() and not excludes(path, config.exclude)

        named = filter(is_ours, map(Path, wanted)) if self.importers else ()
        building = list(filter(builds_models, named))
        if not building:
            return [], False
        from trainlint.targets.importers import importers_of

        found = importers_of(building, lambda path: is_ours(path) and holds_models(path))
        return [path.as_posix() for path in found.files], found.is_cut

    def known(self, config: Config) -> Path | None:
        """The baseline that is read; not the one that is still to be written for the first time."""
        if self.baseline is None and config.baseline is None:
            return None
        known = Path(self.baseline or config.baseline or "")
        is_own = self.write_baseline is not None and os.path.realpath(known) == os.path.realpath(
            self.write_baseline
        )
        return None if is_own and not known.exists() else known

    @property
    def fixing(self) -> dict[str, bool]:
        """The ways of fixing besides `--fix`, and whether they were asked for."""
        return {
            "--diff": self.diff, "--fix-only": self.fix_only, "--interactive": self.interactive
        }  # fmt: skip

    def check_watched(self) -> None:
        """Raises `UsageError` for what is done once, not again and again."""
        if self.interactive:
            raise UsageError("--watch asks nothing: leave out --interactive")
        if self.write_baseline is not None:
            raise UsageError("--watch would write the baseline anew each time: leave one out")


_OVERRIDING: Final = (
    "fail_on", "fail_on_skipped", "timeout", "memory_limit", "jobs", "probe_steps",
    "probe_seconds", "verify", "verify_seconds", "fix", "unsafe_fixes",
)  # fmt: skip


def _checked(asked: _Asked, earlier: Earlier | None = None) -> Round:
    """Check, and write the report. `earlier` answers for what has not changed since."""
    from trainlint.baseline import read_baseline
    from trainlint.files import Options, file_check
    from trainlint.fixes.fixing import fix_files
    from trainlint.rounds import Round
    from trainlint.rule import STAGES

    config, wanted = asked.configured()
    outputs, _ = outputs_of(asked.output, asked.form)
    written = [] if asked.write_baseline is None else [asked.write_baseline]
    check_writable([*(path for _, path in outputs), *written])
    known = asked.known(config)
    before = None if known is None else read_baseline(known)

    options = Options(
        select=asked.select or None, ignore=asked.ignore,
        extend_select=asked.extend_select, stages=STAGES[:1] if asked.static else STAGES,
        scan=asked.scan, graphs="html" in (asked.form, *(each for each, _ in outputs)),
        config=config, debug=asked.debug,
    )  # fmt: skip
    importers, is_cut = asked.importing(wanted, config)
    if is_cut:
        click.echo(
            f"trainlint: more files than these {len(importers)} may import what was named; a check of "
            "their directory looks at all",
            err=True,
        )
    checked = file_check([*wanted, *importers], asked.inputs, options)
    if earlier is not None:
        checked = earlier.carried(checked)
    with check_shown(is_shown=not asked.interactive) as (progress, advance):
        look = partial(
            checked.report, progress, verify=config.verify and not asked.static, advance=advance
        )
        fixed = None
        if config.fix or any(asked.fixing.values()):
            wish = _wish(
                config, before, advice=asked.show_info, write=not asked.diff,
                interactive=asked.interactive,
            )  # fmt: skip
            fixed = fix_files(checked, wish, progress, look)
        report = look() if fixed is None else fixed.report
    _tell_fixed(report, fixed, diff=asked.diff, offer=bool(asked.unsafe_fixes))
    wrote = fixed.changed if fixed is not None and not asked.diff else []
    return Round(_concluded(asked, config, report, fixed, before), checked, wrote)


def _concluded(
    asked: _Asked, config: Config, report: Report, fixed: Fixed | None, before: Baseline | None
) -> int:
    """Write what was asked for of a report; the exit status."""
    if asked.diff or asked.fix_only:
        complain(report)
        differs = asked.diff and fixed is not None and fixed.changed and not asked.exit_zero
        return 2 if report.has_errors else int(bool(differs))
    if asked.kfold:
        from trainlint.generalization.crossvalidation import with_folds

        with bar_shown("folds") as advance:
            report = with_folds(report, asked.kfold, config, epochs=asked.epochs, progress=advance)
    complain(report)
    if asked.write_baseline is not None:
        from trainlint.baseline import write_baseline

        write_baseline(report, asked.write_baseline)
        said = f"wrote {_findings(len(report.findings))}{_severities(report)}"
        click.echo(f"trainlint: {said} to {asked.write_baseline}", err=True)
        return 2 if report.has_errors else 0
    if before is not None:
        report = _without_known(report, before, str(asked.known(config)))
    if asked.form == "concise":  # its lines have no place for what the other forms say themselves
        from trainlint.report.concise import remarks

        for remark in remarks(report):
            click.echo(f"trainlint: {remark}", err=True)
    status = 0 if asked.exit_zero else report.exit_status(config.fail_on)
    manner = Manner(config.fail_on, asked.show_info, asked.plots, asked.statistics, status)
    outputs, is_elsewhere = outputs_of(asked.output, asked.form)
    write_report(report, asked.form, outputs, manner, is_elsewhere=is_elsewhere)
    return status


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
        repairs.print_diff(fixed.changed, console_on(sys.stdout))
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
        ask=Questions(console_on(sys.stderr), sys.stdin.readline) if interactive else None,
        wanted=lambda report: report if before is None else without(report, before).report,
    )


def _may_hold_models(path: Path, config: Config) -> bool:
    """Whether there is more to do than to look at the text, as a commit hook does most of the time."""
    if not path.is_file():
        return True
    from trainlint.patterns import excludes
    from trainlint.targets.discovery import is_scanned

    return not excludes(path, config.exclude) and is_scanned(path)


def _findings(count: int) -> str:
    return f"{count} finding" + ("" if count == 1 else "s")


def _severities(report: Report) -> str:
    """` (2 errors, 1 info)`: a baseline holds the advice as well, which a report does not show."""
    from trainlint.rule import Severity

    counts = {severity: report.count(severity) for severity in Severity}
    parts = [
        f"{count} {severity}" + ("" if count == 1 or severity == Severity.INFO else "s")
        for severity, count in counts.items()
        if count
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _without_known(report: Report, baseline: Baseline, name: str) -> Report:
    """Without the findings of a baseline; what that did is said on stderr."""
    from trainlint.baseline import remarks, without

    compared = without(report, baseline)
    gone = [f"{entry.target}: {entry.code}" for entry in compared.gone]
    for remark in remarks(name, compared.dropped, gone, compared.moved):
        click.echo(f"trainlint: {remark}", err=True)
    return compared.report
