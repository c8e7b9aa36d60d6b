"""`trainlint.check`: the whole line from targets to a ranked report, for files and for live models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainlint.choices import known_words
from trainlint.config import Config
from trainlint.errors import UsageError
from trainlint.files import FileTarget, Options, Progress, file_check
from trainlint.given import given_inputs, given_loss, instance_of
from trainlint.loss.uses import Recipe
from trainlint.probe.setup import Setup
from trainlint.ranking import report_on
from trainlint.records import Report
from trainlint.registry import ignored_in
from trainlint.rule import STAGES, Settings
from trainlint.verification.verifying import Verified

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from trainlint.capture.inputs import Inputs
    from trainlint.subject import Analysis
    from trainlint.verification.changes import Progress as Advance


def check(
    target: nn.Module | Callable[[], nn.Module] | FileTarget | Sequence[FileTarget],
    inputs: Any = None,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
    train_loader: Any = None,
    val_loader: Any = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    config: Config | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scan: bool = False,
    verify: bool | None = None,
    graphs: bool = False,
    progress: Progress | None = None,
    advance: Callable[[float, str], None] | None = None,
    debug: bool = False,
) -> Report:
    """Check a live model, its class or factory, or files, directories and `package.module:attribute`.

    `inputs` are a tensor, a tuple of arguments, a dict of keyword arguments or a callable that returns
    one of these; for files a text such as `2x3x32x32,2:long`. Without them they are synthesised. A live
    model is checked in this process and is as before afterwards; files run in child processes.

    `loss` is what the live model is trained on, called as (output, target): the outputs are judged as what
    it is given, and the gradients are its own. `targets` belong to the inputs; without them, some that suit
    the loss are made up. `optimizer` is one or a function of the model that makes one; `train_loader` and
    `val_loader` give batches, pass after pass: tuples whose last element is the target and whose others are
    the model's inputs, or dicts. A file's are found in the file.

    `stages` are `static`, the graph alone; `data`, what the loaders give; `signal`, one forward and
    backward on real weights; and `probe`, some steps of training, where there is something to train with.

    With `graphs`, the results of the targets hold their graphs, which an HTML report draws.

    With `scan`, files that hold no model are passed over as in a directory, and are no error.

    With `verify` (None: as `config` has it), the fixes of errors and warnings are tried on copies, beside
    the unchanged model: each then has `verified`, or an `attempt`, and those proved to help come first.
    `progress` is told what is done, `advance` of the share of the fixes that are tried, and of how many.

    Raises `UsageError`, which is a `ValueError`, for a target that does not exist, for directories none of
    which holds a model, and for an unknown rule or stage.
    """
    asked = Asked(
        targets=targets, loss=given_loss(loss), optimizer=optimizer, train_loader=train_loader,
        val_loader=val_loader, select=select, ignore=ignore, extend_select=extend_select,
        stages=known_words(stages, STAGES, "stage"), config=config or Config(), options=options,
        scan=scan, verify=verify, graphs=graphs, progress=progress, advance=advance, debug=debug,
    )  # fmt: skip
    return verified_check(target, inputs, asked).report


@dataclass(frozen=True, kw_only=True)
class Asked(Options):
    """The options of `check`, which says what each means."""

    targets: Any = None
    loss: Callable[..., Any] | None = None
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None
    train_loader: Any = None
    val_loader: Any = None
    verify: bool | None = None
    progress: Progress | None = None
    advance: Advance | None = None

    @property
    def recipe(self) -> Recipe:
        """What a live model is trained on."""
        setup = Setup(self.loss, self.optimizer, self.train_loader, self.val_loader)
        return Recipe(loss=self.loss, targets=self.targets, explicit=True, setup=setup)

    @property
    def verifies(self) -> bool:
        """Whether fixes are tried. Raises `UsageError` where that is asked for, and cannot be done."""
        trains = "probe" in self.stages
        if self.verify and not trains:
            raise UsageError("fixes are verified by training, which these stages leave out")
        return (self.config.verify and trains) if self.verify is None else self.verify


def verified_check(target: Any, inputs: Any, asked: Asked) -> Verified:
    """As `check`, with what fixes make of a target together, where they were tried."""
    verifies = asked.verifies
    if callable(target) or hasattr(target, "named_parameters"):
        return _verified_live(target, inputs, asked, verifies=verifies)
    training = asked.loss, asked.targets, asked.optimizer, asked.train_loader, asked.val_loader
    if any(part is not None for part in training):
        raise UsageError(
            "loss, targets, optimizer and loaders belong to a live model; a file shows its own"
        )
    files = file_check(target, inputs, asked)
    if not verifies:
        return Verified(files.report(asked.progress))
    return files.verified(asked.progress, asked.advance)


def _verified_live(target: Any, inputs: Any, asked: Asked, *, verifies: bool) -> Verified:
    rules, options = asked.selected()
    config = asked.config
    settings = Settings(
        rules, options, asked.stages, config.probe_steps, config.probe_seconds, asked.graphs
    )
    recipe = asked.recipe
    model = instance_of(target)
    given = given_inputs(model, inputs)
    analysis = _analysis(model, given, settings, recipe, asked.progress)
    findings = [(finding.reported, finding.starved) for finding in analysis.findings]
    ignored = ignored_in(config.per_file_ignores)
    report = report_on(findings, [analysis.result], rules, ignored=ignored)
    if not verifies:
        return Verified(report)
    from trainlint.verification.live import verified_live

    known = [finding for finding, _ in findings]
    return verified_live(report, known, model, given, recipe, settings, config, asked.advance)


def _analysis(
    model: nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    recipe: Recipe,
    progress: Progress | None,
) -> Analysis:
    from trainlint.preserve import preserved
    from trainlint.subject import analyze

    with preserved(model):
        return analyze(
            model,
            inputs,
            target=type(model).__name__,
            settings=settings,
            recipe=recipe,
            progress=progress,
        )
