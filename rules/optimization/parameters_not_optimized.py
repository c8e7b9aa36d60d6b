"""OPT001 parameters-not-optimized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Incident,
    ModelTrace,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    optimizers,
    rule,
)


@rule(
    "OPT001",
    severity=Severity.ERROR,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "detached-loss", "learning-rate-too-low"],
    own=["optimizer"],
)
def parameters_not_optimized(
    trace: Trace, edits: SourceEdits, *, share: float = 0.5, times: int = 2
) -> Iterator[Finding]:
    """Parameters get a gradient that no optimizer uses, so that they stay as they were made.

    An optimizer changes the parameters it was given, and no others. Three ways to miss:

    - It was given a part: `Adam(model.head.parameters())`, or a list that was made before a layer was
      added or replaced. The rest gets gradients and never moves.
    - It was given another model: one that was made anew, copied, or loaded after the optimizer.
    - `zero_grad()` stands between `backward()` and `step()`, or `step()` before `backward()` and behind
      the next `zero_grad()`: the step finds nothing.

    A part is an error; where it holds more than `share` of what could be trained it is a warning, since
    then the rest alone may be meant to learn, and computes gradients for nothing. Steps without a
    gradient count from `times` on. Not reported: parameters of an optimizer that has not stepped yet,
    those that something else changes, models of which no parameter is in an optimizer (a frozen critic,
    a teacher), and an optimizer that found gradients at other steps.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        model.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where only the other part shall learn. `requires_grad_(False)` then saves the time and the memory.

    ## Fix safety
    Safe where `zero_grad()` is moved to before `backward()`, or `step()` behind it, and where the optimizer
    is made after the model is complete: all are plainly what was meant. Unsafe where it was given a part of
    the parameters.

    ## References
    PyTorch documentation, `torch.optim`, "Constructing it" and "Per-parameter options".
    """
    for model in trace.trained:
        if model.neglected:
            yield _neglected(trace, edits, model, share)
    for incident in trace.of("zeroed-before-step"):
        if incident.count >= times:
            yield _zeroed(trace, edits, incident)
    left = {model.name for model in trace.models if not model.optimized}
    never = {o.kind for o in trace.optimizers if o.steps and not any(o.backwards)}
    for incident in trace.of("step-without-gradients"):
        others = [name for name in incident.facts["elsewhere"] if name in left]
        if others and incident.count >= times and incident.facts["optimizer"] in never:
            yield _another_model(trace, edits, incident, others)


def _neglected(trace: Trace, edits: SourceEdits, model: ModelTrace, share: float) -> Finding:
    names = set(model.neglected)
    ours = [p for p in model.parameters if p.name in names]
    total = sum(p.elements for p in model.parameters if p.trainable) or 1
    part = sum(p.elements for p in ours) / total
    layers = model.layers_of(ours)
    optimizer = trace.optimizer_of(model)
    made = None if optimizer is None else optimizer.site
    kind = "the optimizer" if optimizer is None else optimizer.kind
    return Finding(
        f"{_named(layers)} had gradients and {'is' if len(layers) == 1 else 'are'} in no optimizer: "
        f"{part:.0%} of the trainable parameters of {model.name} stay as they were made",
        where=made or model.place_of(model.neglected[0]),
        evidence={"share": round(part, 4), "parameters": list(model.neglected)[:10]},
        fixes=[
            _complete(trace, edits, model, kind, part),
            Fix(
                f"say so if it shall stay as it was made: {layers[0]}.requires_grad_(False)",
                reason="PyTorch documentation, autograd mechanics: what is frozen costs no backward pass",
                obstacle="the first fix lets it learn; this is the other choice",
            ),
        ],
        severity=Severity.WARNING if part > share else Severity.ERROR,
        confidence=Confidence.LIKELY,
        starved=part,
    )


def _zeroed(trace: Trace, edits: SourceEdits, incident: Incident) -> Finding:
    later = loops.stepped_later(
        trace,
        edits,
        title="call optimizer.step() behind backward(), before zero_grad() comes again",
    )
    earlier = loops.zeroed_earlier(
        trace, edits, title="call optimizer.zero_grad() before backward(), not after it"
    )
    return Finding(
        f"{incident.facts['optimizer']}.step() found no gradient in the {incident.count} steps that were "
        "looked at, though backward() had left one: it was cleared in between, and nothing is learnt",
        where=incident.site,
        evidence={"times": incident.count, "first_step": incident.step},
        fixes=[
            explained(
                later if later.edits else earlier,
                reason="step() reads .grad: what backward() adds must be there when it does",
                patches=[Patch.training("zero-grad")],
                safety=Safety.SAFE,
            )
        ],
        starved=1.0,
    )


def _another_model(
    trace: Trace, edits: SourceEdits, incident: Incident, others: Sequence[str]
) -> Finding:
    made = incident.facts.get("made")
    return Finding(
        f"{incident.facts['optimizer']} steps without any gradient, and {_named(others)}, which has them, "
        "is in no optimizer: it was given the parameters of another model"
        f"{f', at {made}' if made else ''}",
        where=incident.site,
        evidence={"times": incident.count, "models": list(others)},
        fixes=[
            explained(
                optimizers.made_later(
                    trace,
                    edits,
                    next(
                        (
                            o
                            for o in trace.optimizers
                            if o.kind == incident.facts["optimizer"] and not any(o.backwards)
                        ),
                        None,
                    ),
                    others[0],
                    title="make the optimizer after the model that is trained, of its parameters()",
                ),
                reason="PyTorch documentation, torch.optim, constructing it: an optimizer changes the "
                "parameters that it was given, here those of another object",
                patches=[Patch.training("optimizer-rebuilt")],
                safety=Safety.SAFE,
            )
        ],
        starved=1.0,
    )


def _complete(
    trace: Trace,
    edits: SourceEdits,
    model: ModelTrace,
    kind: str,
    part: float,
) -> Fix:
    """All parameters to the optimizer: it is made later, or given the whole."""
    optimizer = trace.optimizer_of(model)
    reason = (
        f"an optimizer changes what it was given: {part:.0%} of what could learn was not among it"
    )
    patches = [Patch.training("optimizer-rebuilt")]
    title = (
        f"make the optimizer after the last layer is in its place: {kind}(model.parameters(), …)"
    )
    later = optimizers.made_later(trace, edits, optimizer, model.name, title=title)
    if later.edits:
        return explained(later, reason=reason, patches=patches, safety=Safety.SAFE)
    title = f"give the optimizer all parameters: {kind}(model.parameters(), …)"
    whole = optimizers.over_all(trace, edits, optimizer, model, title=title)
    return explained(whole, reason=reason, patches=patches)


def _named(layers: Sequence[str]) -> str:
    if len(layers) <= 3:
        return " and ".join(", ".join(layers).rsplit(", ", 1))
    return f"{layers[0]}, {layers[1]} and {len(layers) - 2} more"
