"""LOS007 target-out-of-range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Data,
    Finding,
    Fix,
    Graph,
    Incident,
    Losses,
    LossTrace,
    Patch,
    Safety,
    Severity,
    Site,
    SourceEdits,
    Trace,
    explained,
    heads,
    loss_fixes,
    ops,
    rule,
)

_INDEXED = ("cross_entropy", "nll_loss")
_ARRANGED = ops.REARRANGEMENTS | {"log_softmax"}


@rule(
    "LOS007",
    severity=Severity.ERROR,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "non-finite", "learning-rate-too-high"],
    own=["loss", "data"],
)
def target_out_of_range(
    trace: Trace,
    edits: SourceEdits,
    data: Data | None,
    losses: Losses | None,
    *,
    margin: float = 0.25,
) -> Iterator[Finding]:
    """Targets are no classes of the model, no probabilities, or are all ignored.

    Cross entropy over C scores takes class numbers 0 … C − 1. Labels from 1 to C, a mask with 255 for
    "unknown", or one output too few raise `Target 10 is out of bounds` at the first sample that has one,
    perhaps hours into a run; on a GPU a failed assertion ends the process with no word about either
    number. trainlint reads classes and targets from the frame that raised.

    Binary cross entropy on scores does not check its targets: −t·log σ(z) − (1 − t)·log(1 − σ(z)) with
    t = 255 (a mask that was not divided) or t = −1 falls without a bound as z grows, so that loss and
    weights run away. Reported outside of [0, 1] by more than `margin`, since noisy labels up to 1.2 are a
    known trick for GANs, and only where the loss is a plain mean: with weights or `reduction="none"`
    such samples may be masked.

    Where every target of a batch is `ignore_index`, the mean over no sample is 0/0: one such batch turns
    all weights to NaN.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for _ in range(20):
        x = torch.randn(16, 8)
        mask = (x[:, :1] > 0).float() * 255
        loss = F.binary_cross_entropy_with_logits(model(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for _ in range(20):
        x = torch.randn(16, 8)
        mask = (x[:, :1] > 0).float() * 255
        loss = F.binary_cross_entropy_with_logits(model(x), mask / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Never where it raises. A loss that is meant to reward z without a bound is no cross entropy.

    ## Fix safety
    Unsafe: whether the labels or the number of outputs are wrong depends on the data. Edits are made at the
    loss for labels that count from 1, masks up to 255, -1 and 1, and `ignore_index`, and at the last layer.

    ## References
    The documentation of torch.nn.CrossEntropyLoss (`ignore_index`, and "C = number of classes") and
    torch.nn.BCEWithLogitsLoss ("targets should be numbers between 0 and 1").
    """
    for incident in trace.of("targets-refused"):
        if incident.facts["loss"] in _INDEXED:
            yield _no_class(edits, incident, data, losses)
        else:
            yield _refused(edits, incident)
    for loss in trace.objectives:
        targets = loss.targets
        if targets is None:
            continue
        if loss.kind in _INDEXED and targets.ignored and loss.is_plain:
            yield _all_ignored(loss, targets.ignored)
        is_outside = targets.least < -margin or targets.largest > 1 + margin
        if loss.kind == "binary_cross_entropy_with_logits" and loss.is_plain and is_outside:
            yield _unbounded(edits, loss, targets.least, targets.largest)


def _no_class(
    edits: SourceEdits, incident: Incident, data: Data | None, losses: Losses | None
) -> Finding:
    facts = incident.facts
    classes, least, largest = facts["classes"], facts["least"], facts["largest"]
    others = facts["others"]
    names = ", ".join(map(str, others))
    if least >= 1 and largest == classes:
        title = f"count from 0: targets - 1, as classes go from 0 to {classes - 1}, not from 1 to {classes}"
        fix = loss_fixes.with_operand(edits, incident.site, 1, "{} - 1", title=title)
    elif len(others) == 1 and (others[0] < 0 or (others[0] == 255 and classes != 255)):
        title = (
            f"leave them out: ignore_index={others[0]}, if it stands for samples without a class"
        )
        fix = loss_fixes.with_argument(
            edits, incident.site, facts["loss"], "ignore_index", str(others[0]), title=title
        )
    elif least >= 0:
        target = None if data is None else data.train.target
        most = largest if target is None else max(largest, int(target.largest))
        title = f"give the last layer {most + 1} outputs, if {most} is a class"
        fix = _wider(edits, losses, classes, most + 1, title)
    else:
        title = f"number the targets from 0 to {classes - 1}"
        fix = Fix(title, obstacle="which class each number stands for is its author's to say")
    many = "s" if len(others) > 1 else ""
    return Finding(
        f"{facts['loss']} has {classes} scores a sample, classes 0 … {classes - 1}, and gets the "
        f"target{many} {names} ({facts['outside']} of {facts['targets']} in the batch of step "
        f"{incident.step}): it raises, on a GPU an assertion that names neither",
        where=incident.site,
        evidence={
            "loss": facts["loss"],
            "classes": classes,
            "least": least,
            "largest": largest,
            "outside": facts["outside"],
            "step": incident.step,
        },
        fixes=[explained(fix, reason=f"−log p_y has no entry y outside of 0 … {classes - 1}")],
    )


def _wider(edits: SourceEdits, losses: Losses | None, classes: int, wanted: int, title: str) -> Fix:
    """As many outputs as there are classes, in the one layer that makes the scores."""
    call = None if losses is None else losses.sole
    graph = None if losses is None else losses.graph
    made_by = [] if call is None or graph is None else _heads(graph, call.scores)
    if graph is None or len(made_by) != 1:
        return Fix(title, obstacle="which layer makes the scores is not seen at the loss")
    [head] = made_by
    layer, path = graph.layer(head), graph.operation(head).module
    name = next((n for n in ("out_features", "out_channels") if hasattr(layer, n)), "")
    if not name or getattr(layer, name) != classes or len(graph.built_together(head)) != 1:
        return Fix(title, obstacle=f"no layer of its own makes the {classes} scores")
    return edits.argument(
        graph.constructed(head),
        1,
        name,
        wanted,
        current=classes,
        title=f"{name}={classes} → {wanted} in {graph.label(head)}, if {wanted - 1} is a class",
        safety=Safety.UNSAFE,
        patches=[Patch.rebuilt(path, **{name: wanted})] if path else [],
    )


def _heads(graph: Graph, scores: Any) -> list[Any]:
    return [scores] if graph.is_weighted(scores) else heads(graph, scores, _ARRANGED)


def _refused(edits: SourceEdits, incident: Incident) -> Finding:
    facts = incident.facts
    return Finding(
        f"{facts['loss']} expects targets in [0, 1] and gets {facts['least']:g} … {facts['largest']:g} "
        f"({facts['outside']} of {facts['targets']} outside, at step {incident.step}): it raises",
        where=incident.site,
        evidence={
            "loss": facts["loss"],
            "least": facts["least"],
            "largest": facts["largest"],
            "outside": facts["outside"],
            "step": incident.step,
        },
        fixes=[_into_bounds(edits, incident.site, facts["least"], facts["largest"])],
    )


def _unbounded(edits: SourceEdits, loss: LossTrace, least: float, largest: float) -> Finding:
    return Finding(
        f"{loss.kind} expects targets in [0, 1] and gets {least:g} … {largest:g}: the loss falls without a "
        "bound as the scores grow, and nothing raises",
        where=loss.site,
        evidence={"loss": loss.kind, "least": least, "largest": largest},
        fixes=[_into_bounds(edits, loss.site, least, largest)],
    )


def _into_bounds(edits: SourceEdits, site: Site | None, least: float, largest: float) -> Fix:
    reason = "−t·log σ(z) − (1 − t)·log(1 − σ(z)) has a least value for 0 ≤ t ≤ 1 alone"
    changes = {(-1.0, 1.0): "({} + 1) / 2", (1.0, 2.0): "{} - 1"}
    change = "{} / 255" if least >= 0 and largest == 255 else changes.get((least, largest))
    if change is None:
        return Fix(
            "bring the targets to 0 and 1, or to probabilities between them",
            reason=reason,
            obstacle=f"what {least:g} … {largest:g} stand for is its author's to say",
        )
    title = f"bring the targets into [0, 1]: {change.format('targets')}"
    return explained(loss_fixes.with_operand(edits, site, 1, change, title=title), reason=reason)


def _all_ignored(loss: LossTrace, steps: int) -> Finding:
    return Finding(
        f"every target was ignore_index in {steps} batch{'es' if steps > 1 else ''}: the mean over no "
        "sample is 0/0, a NaN that the step writes into all weights",
        where=loss.site,
        evidence={"loss": loss.kind, "batches": steps},
        fixes=[
            Fix(
                "leave such batches out, or take reduction='sum' divided by max(1, number of targets)",
                reason="a mean over n samples is Σ/n, and 0/0 = NaN for n = 0",
                obstacle="where the batches are made is not seen at the loss",
            )
        ],
    )
