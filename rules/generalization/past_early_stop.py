"""GEN003 past-early-stop."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Finding, Fix, Generalization, Severity, Trace, as_share, rule


@rule("GEN003", severity=Severity.WARNING, since="0.1", own=["data", "loss"], shows="losses")
def past_early_stop(
    trace: Trace, *, rise: float = 0.02, chance: float = 0.025
) -> Iterator[Finding]:
    """Validation loss has risen since an earlier step, while training loss went on falling.

    From there on, each step makes the model better at its training samples and worse at others. The
    weights of that step are the ones to keep: stopping there is a regularisation that costs nothing (for
    a quadratic loss it acts as weight decay with strength 1 / (learning rate · steps)).

    Validation losses are those of the same samples at each of six checkpoints, so their change is tested
    in pairs (t-test, one-sided p below `chance`), and has to be more than `rise` of the loss of the best
    constant answer. The best of several checkpoints looks better than it is; it is therefore chosen on
    one half of the samples and judged on the other, and the other way round. Silent where training loss
    has risen as well, by half as much or more: that is no overfitting but a step that is too long. Advice
    only where accuracy or R² on validation data is no worse than it was then, and the loss below that of a
    constant answer: what grew is confidence.

    ## Bad
    ```python
    x = torch.randn(264, 40)
    y = (x[:, :4].sum(1) + 2 * torch.randn(264) > 0).long()
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:64], y[:64]), batch_size=32, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[64:], y[64:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    ```

    ## Good
    ```python
    x = torch.randn(2200, 40)
    y = (x[:, :4].sum(1) + torch.randn(2200) > 0).long()
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:2000], y[:2000]), batch_size=64, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[2000:], y[2000:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Figures
    - `rise`: by what the validation loss has risen since its best, in the mean over samples, over that of
      the constant answer; `error`: its standard error; `p`: how likely such a rise is by chance.
    - `constant answer`: the loss of the best answer that ignores the inputs.
    - `patience`, `every`: the advice for early stopping, in checks and in steps between them.

    ## When to ignore it
    When another metric is what counts and still gets better: accuracy may rise while cross entropy, which
    punishes confidence in wrong answers, does so as well. And in training far beyond the point where
    validation loss rises (large models may come down again: "double descent").

    ## Fix safety
    Only shown: where to stop is for the loop to decide, by data of its own.

    ## References
    Prechelt 1998, "Early Stopping - But When?"; Goodfellow, Bengio & Courville 2016, "Deep Learning",
    section 7.8; Nakkiran et al. 2020, arXiv:1912.02292.
    """
    measured = trace.generalization
    if measured is None:
        return
    found = measured.rise()
    if found is None or not (found.mean > rise and found.p < chance):
        return
    best, last = measured.best(), measured.last
    if best is last or not measured.guess:
        return
    if last.train.mean - best.train.mean > found.mean * measured.guess / 2:
        return
    kept = measured.metric_fell() is False and last.validation.mean < measured.guess
    patience, every = _patience(measured), _spacing(measured)
    where = f"at step {best.step}" if best.step else "before any training"
    yield Finding(
        f"validation loss was least {where}, {best.validation.mean:.3g}, and is "
        f"{last.validation.mean:.3g} after {last.step} steps: a rise by {as_share(found.mean)} ± "
        f"{as_share(found.error)} of the loss of a constant answer, while training loss went from "
        f"{best.train.mean:.3g} to {last.train.mean:.3g}"
        + (f"; {measured.metric} is no worse" if kept else ""),
        where=measured.site,
        evidence={
            "steps": last.step,
            "best_step": best.step,
            "best_loss": round(best.validation.mean, 6),
            "last_loss": round(last.validation.mean, 6),
            "constant_answer": round(measured.guess, 6),
            "rise": round(found.mean, 4),
            "error": round(found.error, 4),
            "p": float(f"{found.p:.2g}"),
            "patience": patience,
            "every": every,
        },
        severity=Severity.INFO if kept else None,
        fixes=[
            Fix(
                f"stop at about step {best.step} and keep those weights"
                if best.step
                else f"look at validation more often than each {every} steps: it rises from the start",
                reason=f"Prechelt 1998: {last.step - best.step} steps more cost {as_share(found.mean)} of "
                "a constant answer's loss",
                obstacle="the loop is to keep and restore a state",
            ),
            Fix(
                f"validate each {every} steps, and stop after {patience} times without a lower loss "
                f"(patience={patience})",
                reason="Prechelt 1998: wait as long as the loss scatters from one validation to the next",
                obstacle="the loop is to count, and to keep and restore a state",
            ),
        ],
        confidence=Confidence.LIKELY,
    )


def _patience(measured: Generalization) -> int:
    """The least number of evaluations without a better one that would still have come to the best."""
    least, waiting, longest = float("inf"), 0, 0
    for point in measured.checkpoints:
        if point is measured.best():
            break
        waiting = 0 if point.validation.mean < least else waiting + 1
        least = min(least, point.validation.mean)
        longest = max(longest, waiting)
    return longest + 1


def _spacing(measured: Generalization) -> int:
    points = measured.checkpoints
    return max(1, round((points[-1].step - points[0].step) / (len(points) - 1)))
