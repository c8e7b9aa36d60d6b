"""GEN008 capacity-off-optimum."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Finding, Fix, NotMeasurable, Severity, Sweep, rule


@rule("GEN008", severity=Severity.INFO, since="0.1")
def capacity_off_optimum(
    sweep: Sweep, *, errors: float = 1.0, gain: float = 0.02, fewest: int = 3
) -> Iterator[Finding | NotMeasurable]:
    """The same architecture does better on held-out data at another width.

    As a model grows its training error falls, while its validation error falls first and then rises: too
    narrow, it cannot express the regularity; too wide, it has learnt the noise as well. `trainlint sweep`
    measures that curve, a quarter to four times the width on each of k folds with equal steps, and this
    rule says where the model stands on it. It speaks where its validation loss lies more than `errors`
    standard errors above the least: those of the best one's mean (Breiman et al. 1984) and those of the
    difference, paired fold by fold, of `fewest` folds at least; and by more than `gain`, a share of the
    least. The best of several widths is partly so by luck, so what it gains is somewhat too large; wide
    models that are trained on need not follow the curve (Belkin et al. 2019).

    ## Bad
    ```python
    class Regressor(nn.Module):
        def __init__(self, hidden=2):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))

        def forward(self, x):
            return self.body(x)


    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 160).unsqueeze(1)
    y = torch.sin(2 * x) + 0.1 * torch.randn(160, 1)
    data = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    model = Regressor()
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ```

    ## Good
    ```python
    class Regressor(nn.Module):
        def __init__(self, hidden=16):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))

        def forward(self, x):
            return self.body(x)


    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 160).unsqueeze(1)
    y = torch.sin(x) + 0.1 * torch.randn(160, 1)
    data = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    model = Regressor()
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ```

    ## When to ignore it
    Where the gain is smaller than what the width costs, or more data are to come: the best width grows
    with them.

    ## Fix safety
    Shown, not applied: weights that were trained do not fit another width.

    ## References
    - Breiman, Friedman, Olshen & Stone 1984, *Classification and Regression Trees*, section 3.4.3
    - Geman, Bienenstock & Doursat 1992, Neural Computation 4
    - Belkin, Hsu, Ma & Mandal 2019, PNAS 116
    """
    if sweep.over != "width" or sweep.best is None:
        return
    here, best, chosen = sweep.here, sweep.best, sweep.chosen
    if sweep.points[here].reason is not None:
        yield NotMeasurable(f"the model as it is: {sweep.points[here].reason}")
        return
    if sweep.folds < fewest:
        yield NotMeasurable(f"{sweep.folds} folds tell too little of the error")
        return
    own, least = sweep.standing(here), sweep.standing(best)
    is_little = own.above <= gain * abs(least.validation)
    if is_little or own.above <= errors * max(own.above_error, least.validation_error):
        return
    message = (
        f"validation loss is {own.validation:.3g} at {sweep.named(here)} and {least.validation:.3g} at "
        f"{sweep.named(best)}, {own.above:.2g} ± {own.above_error:.2g} less over {sweep.folds} folds"
    )
    fixes = [
        Fix(
            f"take the width at the minimum: {sizes_of(sweep, best)}",
            reason=f"Geman et al. 1992: bias² + variance is least there, over {sweep.folds} folds",
            obstacle="weights that were trained do not fit another width",
        )
    ]
    if chosen is not None and chosen != best:
        message += f"; within one standard error of that is {sweep.named(chosen)}"
        fixes.append(
            Fix(
                f"take the smallest width within one standard error: {sizes_of(sweep, chosen)}",
                reason="Breiman et al. 1984, section 3.4.3: the simplest that cannot be told from the best",
                obstacle="weights that were trained do not fit another width",
            )
        )
    yield Finding(
        message,
        where=sweep.place,
        evidence={
            "validation": own.validation,
            "best": least.validation,
            "above": own.above,
            "above_error": own.above_error,
            "folds": sweep.folds,
            "width": sweep.points[best].value,
        },
        fixes=fixes,
    )


def sizes_of(sweep: Sweep, place: int) -> str:
    """`hidden=32, ff=128`."""
    return ", ".join(f"{name}={value}" for name, value in sweep.points[place].sizes.items())
