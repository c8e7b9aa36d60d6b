"""LOS005 broadcast-loss."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Data,
    Finding,
    Fix,
    Incident,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loading_fixes,
    loss_fixes,
    rule,
)

# They may be one term of something else.
MIXING = ("mul", "div", "add")


@rule(
    "LOS005",
    severity=Severity.ERROR,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "learning-rate-too-low"],
    own=["loss", "data"],
)
def broadcast_loss(trace: Trace, edits: SourceEdits, data: Data | None) -> Iterator[Finding]:
    """Predictions (N, 1) meet targets (N,): the loss is taken over an N×N table of each with each.

    Elementwise operations line shapes up from the right, so (N, 1) and (N,) become (N, N): prediction i
    is compared with the target of *every* sample j. The mean over the table is the same for any order of
    the targets, and is least where all predictions are the targets' mean. The loss falls, to the
    variance of the targets, and stays there; nothing raises, and only `mse_loss` and its kind print a
    warning.

    trainlint watches the losses and, outside of models, the `-`, `+`, `*` and `/` that losses are written
    with. Reported is a prediction (it has a gradient, and is no parameter) of shape (N, 1, …) with
    something without a gradient of shape (N, …), or the other way round, N > 1. Tables that are asked
    for, as `x[:, None] - y[None, :]`, have other shapes.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        y = x[:, 0] - x[:, 1]
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        y = x[:, 0] - x[:, 1]
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    When a table of all pairs is meant. `y[None, :]` in place of `y` then says so, to readers as well.

    ## Fix safety
    Safe for a difference or a loss function: the axis of 1 is dropped where the two meet, which is plainly
    what was meant. Unsafe for a product or a sum, and at the targets of the data set, which is where the
    axis is put where no loop of yours holds the loss.

    ## References
    PyTorch documentation, "Broadcasting semantics". For a table the mean of (pᵢ − yⱼ)² is
    mean (pᵢ − ȳ)² + Var y, which is least at pᵢ = ȳ.
    """
    for incident in trace.of("each-with-each"):
        shapes = [tuple(shape) for shape in incident.facts["shapes"]]
        prediction = shapes[incident.facts["prediction"]]
        other = shapes[1 - incident.facts["prediction"]]
        count = prediction[0]
        which = incident.facts["prediction"]
        if len(prediction) > len(other):
            title = "squeeze the prediction: prediction.squeeze(1), or target.unsqueeze(1)"
        else:
            title, which = (
                "squeeze the target: target.squeeze(1), or prediction.unsqueeze(1)",
                1 - which,
            )
        operation = incident.facts["operation"]
        cost = (
            "each sample's figure counts for all others as well"
            if operation in MIXING
            else "each prediction is compared with the targets of all, and can only learn their mean"
        )
        yield Finding(
            f"{operation} of a prediction {_shown(prediction)} and {_shown(other)} gives a table of "
            f"{count} × {count} samples: {cost}",
            where=incident.site,
            evidence={
                "operation": operation,
                "prediction": list(prediction),
                "target": list(other),
                "seen": incident.count,
            },
            fixes=[
                _fix(
                    edits,
                    data,
                    incident,
                    which,
                    title,
                    f"({count}, 1) with ({count},) broadcasts to "
                    f"{count} × {count}; one shape gives {count} differences",
                )
            ],
        )


def _fix(
    edits: SourceEdits, data: Data | None, incident: Incident, which: int, title: str, reason: str
) -> Fix:
    """The axis dropped where the two meet; or, where that is in no file of the user's, of the targets."""
    safety = Safety.SAFE if incident.facts["operation"] not in MIXING else None
    fix = loss_fixes.with_operand(edits, incident.site, which, "{}.squeeze(1)", title=title)
    target = None if data is None else data.train.target
    shape = incident.facts["shapes"][1 - incident.facts["prediction"]]
    is_shorter = (
        which == incident.facts["prediction"]
    )  # the prediction is squeezed: (N, 1) with (N,)
    if data is None or target is None or len(target.shape) + 1 != len(shape):
        return explained(fix, reason=reason, safety=safety)
    change = "unsqueeze" if is_shorter else "squeeze"
    patches = [Patch.training("target-shape", **{change: 1})]
    if not fix.edits:
        sites = [data.train.site]
        if data.validation is not None and data.validation.site is not None:
            sites.append(data.validation.site)
        title = f"y.{change}(1) where the data set is made, for prediction and target of one shape"
        made = loading_fixes.with_tensor(edits, sites, -1, f"{{}}.{change}(1)", title=title)
        fix, safety = (made, None) if made.edits else (fix, None)
    return explained(fix, reason=reason, safety=safety, patches=patches)


def _shown(shape: tuple[int, ...]) -> str:
    return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
