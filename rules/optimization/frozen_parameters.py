"""OPT007 frozen-parameters."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    ModelTrace,
    ParameterTrace,
    Patch,
    Severity,
    Trace,
    rule,
)


@rule(
    "OPT007",
    severity=Severity.INFO,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
        "no-gradient",
    ],
    own=(),
)
def frozen_parameters(
    trace: Trace, *, share: float = 0.5, adapters: float = 0.05
) -> Iterator[Finding]:
    """Most of a model that trains is frozen, and not the part that one freezes.

    `requires_grad_(False)` keeps trained layers as they are. Usual are two patterns: the first layers are
    frozen and a new head learns (transfer), or everything is frozen but small parts in between (LoRA,
    adapters, prompts, norms, biases). Where the *last* layer is frozen while earlier ones train, those have
    to find features for a random readout. That comes about when a head is replaced first and all is
    frozen after it, or when the wrong half was frozen.

    Reported from `share` of the elements on. A warning where the last layer that ran is frozen, too, else
    advice. Not reported: a frozen beginning of which the rest learns; models of which less than
    `adapters` learns; parameters that get a gradient later on, as in gradual unfreezing; models that no
    optimizer trains, such as a teacher.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4))
    model[2].requires_grad_(False)
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    For a fixed readout on purpose, or inputs that are fitted to a frozen decoder.

    ## Fix safety
    Only shown: what shall learn is its author's to say, and which line froze it is not seen.

    ## References
    PyTorch documentation, autograd mechanics, "Setting requires_grad". Hu et al. 2021, arXiv:2106.09685
    (LoRA).
    """
    for model in trace.trained:
        frozen = [p for p in model.parameters if not p.trainable and not p.arrived]
        learning = [p for p in model.parameters if p.trainable or p.arrived]
        total = sum(p.elements for p in model.parameters)
        part = sum(p.elements for p in frozen) / total if total else 0.0
        order = _order(model, frozen, learning)
        if part < share or 1 - part < adapters or not order or not any(p.steps for p in learning):
            continue
        if order == sorted(order):
            continue  # a frozen beginning
        last = not order[-1]
        behind = _last(model, frozen)
        name = model.spelled(behind.name.rpartition(".")[0] or behind.name)
        yield Finding(
            f"{part:.0%} of {model.name} is frozen, and not its beginning: {name} is, behind layers that "
            f"learn{'; it is the last, and what it reads out was never fitted' if last else ''}",
            where=model.place_of(behind.name),
            evidence={"share": round(part, 4), "parameters": [p.name for p in frozen][:10]},
            fixes=[
                Fix(
                    f"let it learn: {name}.requires_grad_(True), before the optimizer is made",
                    reason="Yosinski et al. 2014: first layers are what is frozen, and the last one is "
                    "fitted to what it reads",
                    obstacle="the line that freezes it is not seen",
                    patches=[Patch.unfreeze([p.name for p in frozen])],
                )
            ],
            severity=Severity.WARNING if last else Severity.INFO,
            confidence=Confidence.LIKELY if last else Confidence.POSSIBLE,
        )


def _order(
    model: ModelTrace, frozen: list[ParameterTrace], learning: list[ParameterTrace]
) -> list[bool]:
    """Whether the layers with weights learn, in the order in which they run."""
    still, live = {p.name for p in frozen}, {p.name for p in learning}
    names = dict.fromkeys(site.weight for site in model.sites if site.weight is not None)
    return [name in live for name in names if name in still or name in live]


def _last(model: ModelTrace, frozen: list[ParameterTrace]) -> ParameterTrace:
    """The frozen weight that runs last."""
    by_name = {p.name: p for p in frozen}
    ran = [by_name[site.weight] for site in model.sites if site.weight in by_name]
    return ran[-1]
