"""OPT006 scheduler-misuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    OptimizerTrace,
    Patch,
    Safety,
    ScheduleTrace,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)


@rule("OPT006", severity=Severity.WARNING, since="0.1", explains=["learning-rate-too-low"])
def scheduler_misuse(
    trace: Trace,
    edits: SourceEdits,
    *,
    zero: float = 0.05,
    tail: float = 0.25,
    steps: int = 20,
) -> Iterator[Finding]:
    """The learning rate schedule is not the one that was meant: steps at 0, or in the wrong rhythm.

    A scheduler counts its own steps, and cannot know whether they are batches or epochs. Reported are:

    - a schedule that steps before the optimizer ever did: its first value is never used. Several such
      steps in a row wind a schedule forward to where a run is resumed, and are no finding;
    - a rate of exactly 0 in at least `steps` steps that are `zero` of all: a warm-up from 0 that steps
      once per epoch spends the first epoch so, a decay to 0 that was too short spends the rest so;
    - a rate that is below 10⁻⁴ of its largest for the last `tail` of all steps, at least `steps`: a decay
      that was meant per epoch and is made per batch;
    - OneCycleLR whose `total_steps` are over by the optimizer's count, though it was stepped for a tenth
      of them: it is made to step per batch;
    - CosineAnnealingLR that steps per batch beyond three times its `T_max`: behind it the rate rises
      again.

    The first is not reported with a `GradScaler`, which leaves out first steps by itself.

    ## Bad
    ```python
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
    for epoch in range(3):
        for _ in range(40):
            x = torch.randn(16, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    ```

    ## Good
    ```python
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
    for epoch in range(3):
        for _ in range(40):
            x = torch.randn(16, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    ```

    ## When to ignore it
    Where a phase without steps is meant.

    ## Fix safety
    Safe for the order of the two steps, where they are moved in one function. Unsafe for the rhythm:
    `step()` is moved out of the loop over batches only where a loop over epochs is around it.

    ## References
    PyTorch documentation, `torch.optim`, "How to adjust learning rate".
    """
    for incident in trace.of("scheduled-before-step"):
        if incident.count == 1 and trace.steps > 1:
            yield Finding(
                f"{incident.facts['scheduler']}.step() is called before the first optimizer.step(): the "
                "first learning rate of the schedule is never used, and each comes one step early",
                where=incident.site,
                fixes=[
                    explained(
                        loops.scheduled_after(
                            trace,
                            edits,
                            incident.site,
                            title="call scheduler.step() after optimizer.step()",
                        ),
                        reason="PyTorch documentation, torch.optim: since 1.1 the schedule's first rate is "
                        "that of the first steps, and scheduler.step() moves on to the next",
                        safety=Safety.SAFE,
                    )
                ],
            )
    for place, optimizer in enumerate(trace.optimizers):
        schedules = [s for s in trace.schedules if s.optimizer == place]
        spans = _spans(optimizer, trace.steps)
        at_zero = sum(length for _, length, rate in spans if rate == 0)
        if at_zero >= max(steps, zero * trace.steps):
            yield _at_zero(trace, optimizer, schedules, spans, at_zero)
        elif (since := _collapsed(spans, trace.steps, max(steps, tail * trace.steps))) is not None:
            yield _tail(trace, edits, optimizer, schedules, since)
        else:
            yield from _rhythm(trace, edits, schedules)


def _spans(optimizer: OptimizerTrace, steps: int) -> list[tuple[int, int, float]]:
    """(first step, number of steps, largest rate)."""
    if not any(rates for _, rates in optimizer.rates):
        return []
    starts = [since for since, rates in optimizer.rates if rates]
    ends = [*starts[1:], steps] if starts else []
    largest = [max(rates) for _, rates in optimizer.rates if rates]
    return [
        (start, max(0, end - start), rate)
        for start, end, rate in zip(starts, ends, largest, strict=True)
    ]


def _collapsed(spans: Sequence[tuple[int, int, float]], steps: int, needed: float) -> int | None:
    """The step from which on next to nothing is left of the rate."""
    peak = max((rate for _, _, rate in spans), default=0.0)
    since = steps
    for start, _, rate in reversed(spans):
        if rate >= 1e-4 * peak:
            break
        since = start
    return since if steps - since >= needed else None


def _at_zero(
    trace: Trace,
    optimizer: OptimizerTrace,
    schedules: Sequence[ScheduleTrace],
    spans: Sequence[tuple[int, int, float]],
    at_zero: int,
) -> Finding:
    first, steps = next(start for start, _, rate in spans if rate == 0), trace.steps
    if all(rate == 0 for _, _, rate in spans):
        cure = Fix(
            "set a learning rate above 0",
            reason="the step is w ← w − lr·g: with lr = 0 nothing moves",
            obstacle="which rate suits is measured by a range test",
            patches=[Patch.training("learning-rate", range_test=True)],
        )
    elif first <= spans[0][0]:
        cure = Fix(
            "warm up from above 0: (step + 1) / warm_up, or call scheduler.step() after each batch",
            reason=f"step / warm_up is 0 at step 0, here for {at_zero} steps: lr·g = 0",
            obstacle="the warm-up is a function of the schedule's own",
            patches=[Patch.training("schedule", shape="constant")],
        )
    else:
        cure = Fix(
            f"make the schedule as long as the run, {steps} steps: count as scheduler.step() is called",
            reason=f"it reaches 0 at step {first} of {steps}, and w ← w − 0·g from there on",
            obstacle="its length is computed elsewhere",
            patches=[Patch.training("schedule", shape="constant")],
        )
    return Finding(
        f"the learning rate of {optimizer.kind} is 0 in {at_zero} of {steps} steps, from step {first} "
        f"on{_counted(schedules)}: nothing is learnt in them",
        where=_site(optimizer, schedules),
        evidence={"steps_at_zero": at_zero, "first_step": first},
        fixes=[cure],
    )


def _tail(
    trace: Trace,
    edits: SourceEdits,
    optimizer: OptimizerTrace,
    schedules: Sequence[ScheduleTrace],
    since: int,
) -> Finding:
    steps = trace.steps
    stepped = next((s for s in schedules if s.calls >= 0.9 * s.steps), None)
    reason = (
        f"a rate below 0.0001 of its largest from step {since} of {steps} on moves next to nothing"
    )
    patch = Patch.training("schedule", shape="constant")
    cure = (
        Fix(
            "let the rate decay more slowly",
            reason=reason,
            obstacle="which factor was meant is not seen",
            patches=[patch],
        )
        if stepped is None
        else explained(
            loops.scheduled_by_epoch(
                trace,
                edits,
                stepped.site,
                title="call scheduler.step() once after each epoch, not after each batch",
            ),
            reason=f"{stepped.calls} decays in {stepped.steps} steps: {reason}",
            patches=[patch],
        )
    )
    return Finding(
        f"the learning rate of {optimizer.kind} is below 0.0001 of its largest from step {since} on"
        f"{_counted(schedules)}: the last {steps - since} of {steps} steps learn next to nothing",
        where=_site(optimizer, schedules),
        evidence={"since": since, "steps": steps},
        fixes=[cure],
        confidence=Confidence.LIKELY,
    )


def _rhythm(
    trace: Trace, edits: SourceEdits, schedules: Sequence[ScheduleTrace]
) -> Iterator[Finding]:
    for schedule in schedules:
        if schedule.length is None or not schedule.steps:
            continue
        if (
            schedule.kind == "OneCycleLR"
            and schedule.steps >= schedule.length
            and schedule.calls <= 0.1 * schedule.length
        ):
            yield Finding(
                f"OneCycleLR of {schedule.length} steps was stepped {schedule.calls} times in "
                f"{schedule.steps} steps of its optimizer: the cycle has hardly begun",
                where=schedule.site,
                evidence={"calls": schedule.calls, "steps": schedule.steps},
                fixes=[
                    explained(
                        loops.scheduled_by_batch(
                            trace,
                            edits,
                            schedule.site,
                            title="call scheduler.step() after each batch",
                        ),
                        reason="Smith & Topin 2018: one cycle of total_steps batches, here "
                        f"{schedule.length}; {schedule.calls} were stepped",
                    )
                ],
                confidence=Confidence.LIKELY,
            )
        if (
            schedule.kind == "CosineAnnealingLR"
            and schedule.calls > 3 * schedule.length
            and schedule.calls >= 0.9 * schedule.steps
        ):
            yield Finding(
                f"CosineAnnealingLR with T_max={schedule.length} was stepped {schedule.calls} times, once "
                "per batch: the rate falls to its end and rises again, over and over",
                where=schedule.site,
                evidence={"calls": schedule.calls, "T_max": schedule.length},
                fixes=[
                    explained(
                        loops.scheduled_by_epoch(
                            trace,
                            edits,
                            schedule.site,
                            title="call scheduler.step() once after each epoch, or "
                            f"set T_max={schedule.steps}",
                        ),
                        reason="Loshchilov & Hutter 2017: η falls as ½(1 + cos πt/T_max), and rises again "
                        f"behind t = {schedule.length}",
                        patches=[Patch.training("schedule", shape="constant")],
                    )
                ],
                confidence=Confidence.LIKELY,
            )


def _counted(schedules: Sequence[ScheduleTrace]) -> str:
    if not schedules:
        return ""
    most = max(schedules, key=lambda schedule: schedule.calls)
    return f" ({most.kind} stepped {most.calls} times in {most.steps} steps)"


def _site(optimizer: OptimizerTrace, schedules: Sequence[ScheduleTrace]) -> object:
    return next((s.site for s in schedules if s.site is not None), None) or optimizer.site
