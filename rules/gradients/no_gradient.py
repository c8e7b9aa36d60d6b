"""GRD004 no-gradient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    ModelTrace,
    ParameterTrace,
    Severity,
    Trace,
    rule,
)


@rule(
    "GRD004",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "cannot-memorise", "learning-rate-too-low"],
    own=["loss", "optimizer"],
    shows="gradients",
)
def no_gradient(trace: Trace, *, share: float = 0.05, steps: int = 10) -> Iterator[Finding]:
    """The optimizer holds parameters that no backward pass ever reaches: they stay as they were made.

    A step changes a parameter by its gradient. Where none arrives, the layer keeps its random start,
    and whatever is learnt has to get around it. Either the layer's result is cut off from the loss
    (`detach`, `.data`, `no_grad`, `argmax`, a tensor that is built anew), or the layer was never called,
    or its result goes nowhere.

    Looked at in every step of the optimizer, from `steps` of them on, and all together: an expert or a
    dropped layer that has its turn now and then is no finding. It is an error where the layers ran and
    those behind them do learn, a warning from `share` of the trainable elements on, else advice. Advice
    only, too, for one of many equal layers of which others were called, since its turn may come. Also
    named, as a warning, are weights whose gradient is exactly 0 in every step while other layers have
    one. Not reported: frozen parameters, those in no optimizer, and those that change by other hands, as
    a teacher that follows its student does.

    ## Bad
    ```python
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    head = nn.Linear(32, 2)
    model = nn.ModuleDict({"body": body, "head": head})
    model.forward = lambda x: head(body(x).detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    head = nn.Linear(32, 2)
    model = nn.ModuleDict({"body": body, "head": head})
    model.forward = lambda x: head(body(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where a part is kept as it is on purpose. Then `requires_grad_(False)` says so, and saves its memory.

    ## Fix safety
    Only shown: which cut was meant is its author's to say.

    ## References
    PyTorch documentation, autograd mechanics, "Locally disabling gradient computation".
    """
    for model in trace.trained:
        optimizers = {i for i, o in enumerate(trace.optimizers) if o.steps >= steps}
        looked_at = [
            p
            for p in model.parameters
            if p.trainable and p.group is not None and p.group[0] in optimizers
        ]
        silent = [p for p in looked_at if not p.reached and not _moves(p)]
        if len(silent) == len(looked_at):
            continue  # no loss, then: another fault
        total = sum(p.elements for p in model.parameters if p.trainable)
        ran = [p for p in silent if _ran(model, p)]
        for some, has_run in ((ran, True), ([p for p in silent if p not in ran], False)):
            if some:
                yield _cut(
                    model, some, sum(p.elements for p in some) / total, share, has_run, trace.steps
                )
        if not silent:
            yield from _zero(model, looked_at, total, share)


def _cut(
    model: ModelTrace,
    silent: Sequence[ParameterTrace],
    part: float,
    share: float,
    ran: bool,
    steps: int,
) -> Finding:
    largest = max(silent, key=lambda p: p.elements)
    layers = model.layers_of(silent)
    severity, confidence = Severity.WARNING, Confidence.LIKELY
    if part < share or (not ran and all(_has_turns(model, p) for p in silent)):
        severity, confidence = Severity.INFO, Confidence.POSSIBLE
    elif ran and _are_first(model, silent):
        severity = Severity.ERROR
    why = (
        "they ran, but the loss does not depend on them in a way that autograd can follow"
        if ran
        else "no forward with gradients ran them"
    )
    fixes = [
        Fix(
            f"take out what cuts {layers[-1]} off from the loss: detach(), .data, argmax or a new tensor",
            reason="∂loss/∂w is a product along the graph, and nothing where the graph is cut",
            obstacle="a run shows that it is cut, `trainlint check` of the model shows where",
        )
        if ran
        else Fix(
            f"call {layers[0]} in forward, outside of torch.no_grad()",
            reason="only what ran with a graph before the loss has a gradient by it",
            obstacle="where its result belongs is its author's to say",
        ),
        Fix(
            f"say so if {_these(layers)} shall stay as made: {layers[0]}.requires_grad_(False)",
            reason="PyTorch documentation, autograd mechanics: what is frozen costs no backward pass",
            obstacle="the first fix lets it learn; this is the other choice",
        ),
    ]
    return Finding(
        f"{_named(layers)} got no gradient in any of {steps} steps: "
        f"{part:.0%} of the trainable parameters stay as they were made; {why}",
        where=model.place_of(largest.name),
        evidence={
            "share": round(part, 4),
            "parameters": [p.name for p in silent][:10],
            "steps": steps,
            "ran": ran,
        },
        fixes=fixes,
        severity=severity,
        confidence=confidence,
        starved=part,
        affects=[p.name for p in silent],
    )


def _zero(
    model: ModelTrace, looked_at: Sequence[ParameterTrace], total: int, share: float
) -> Iterator[Finding]:
    """Weights whose gradient is there, and exactly 0."""
    zero = [
        p
        for p in looked_at
        if p.dimensions > 1 and p.arrived >= 5 and not any(p.gradient) and not _moves(p)
    ]
    part = sum(p.elements for p in zero) / total
    if part < share or not any(any(p.gradient) for p in looked_at):
        return
    layers = model.layers_of(zero)
    yield Finding(
        f"the gradient of {_named(layers)} was exactly 0 in each of {len(zero[0].steps)} recorded "
        f"steps: {part:.0%} of the trainable parameters learn nothing",
        where=model.place_of(zero[0].name),
        evidence={"share": round(part, 4), "parameters": [p.name for p in zero][:10]},
        fixes=[
            Fix(
                f"take out the zero behind {layers[-1]}: dead units, weights of 0 or a factor of 0, or a "
                "result of which only a part is used",
                reason="∂loss/∂w is a product along the graph: one factor of 0, and all of it is 0",
                obstacle="which of them it is was not seen",
            )
        ],
        confidence=Confidence.LIKELY,
        starved=part,
        affects=[p.name for p in zero],
    )


def _moves(parameter: ParameterTrace) -> bool:
    """Whether it changes from step to step, though not by the optimizer."""
    norms = [norm for norm in parameter.weight if norm is not None]
    return bool(norms) and max(norms) - min(norms) > 1e-6 * max(norms)


def _ran(model: ModelTrace, parameter: ParameterTrace) -> bool:
    layer = parameter.name.rpartition(".")[0]
    return any(s.weight == parameter.name or (layer and s.place.path == layer) for s in model.sites)


def _are_first(model: ModelTrace, silent: Sequence[ParameterTrace]) -> bool:
    """Whether a layer that has a gradient ran after all of these."""
    names = {p.name for p in silent}
    order = [site.weight for site in model.sites if site.weight is not None]
    last = max((place for place, name in enumerate(order) if name in names), default=len(order))
    reached = {p.name for p in model.parameters if p.arrived}
    return any(name in reached for name in order[last + 1 :]) and not any(
        name in reached for name in order[:last]
    )


def _has_turns(model: ModelTrace, parameter: ParameterTrace) -> bool:
    """Whether it is one of several equal layers, of which others were called."""
    number = re.compile(r"(?<![^.])\d+(?=\.)")
    alike = number.sub("*", parameter.name)
    return alike != parameter.name and any(
        p.arrived and p.elements == parameter.elements and number.sub("*", p.name) == alike
        for p in model.parameters
    )


def _named(layers: Sequence[str]) -> str:
    if len(layers) <= 3:
        return " and ".join(", ".join(layers).rsplit(", ", 1))
    return f"{layers[0]}, {layers[1]} and {len(layers) - 2} more"


def _these(layers: Sequence[str]) -> str:
    return "it" if len(layers) == 1 else "these"
