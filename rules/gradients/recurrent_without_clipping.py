"""GRD005 recurrent-without-clipping."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from trainlint.rule import (
    Confidence,
    Finding,
    ModelTrace,
    Patch,
    Severity,
    SiteTrace,
    SourceEdits,
    Trace,
    explained,
    loops,
    ops,
    rule,
)


@rule("GRD005", severity=Severity.INFO, since="0.1", explains=["exploding-gradient", "non-finite"])
def recurrent_without_clipping(
    trace: Trace, edits: SourceEdits, *, spike: float = 10.0
) -> Iterator[Finding]:
    """A recurrent model trains without gradient clipping, which its kind needs most.

    An RNN applies one matrix W at each of T times, so that the gradient holds products of up to T factors
    W·f′. Where W stretches a direction by 1.1, 100 times make that 1.1¹⁰⁰ = 14 000. The loss has cliffs
    there: nearly everywhere the gradient is small, and a single batch at a cliff throws the weights far
    away. LSTM and GRU cure the vanishing, not this. Clipping, g ← g·min(1, c/‖g‖), keeps the direction
    and bounds the step.

    Advice as a rule, and a warning where spikes were seen: in two recorded steps or more the norm was
    `spike` times that of the steps around it, and above what it was at the start by half as much. Not
    reported where any clipping was seen, also such that holds the norm at one value by hand.

    ## Bad
    ```python
    model = nn.Sequential(nn.LSTM(4, 16, batch_first=True))
    head = nn.Linear(16, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    for _ in range(20):
        x = torch.randn(8, 12, 4)
        loss = F.mse_loss(head(model(x)[0][:, -1]), x[:, -1, :1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.LSTM(4, 16, batch_first=True))
    head = nn.Linear(16, 1)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(20):
        x = torch.randn(8, 12, 4)
        loss = F.mse_loss(head(model(x)[0][:, -1]), x[:, -1, :1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    ```

    ## When to ignore it
    For sequences of a few steps, and where the values are clipped by hand, which is not seen.

    ## Fix safety
    Unsafe: steps above the limit become shorter. It is about twice the median norm that was seen before the
    run diverged, if it did, so that ordinary steps are as before.

    ## References
    Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063. Bengio, Simard & Frasconi 1994. Seed A, problem 3.
    """
    if trace.clips or any("clip" in optimizer.kind.lower() for optimizer in trace.optimizers):
        return
    for model in trace.trained:
        site = next((s for s in model.sites if s.place.operation in ops.RECURRENT), None)
        norms = _norms(model)
        if site is None or len(norms) < 5 or _is_held(norms):
            continue
        usual = median(norms)
        spikes = _spikes(norms, spike)
        seen = f", and {len(spikes)} of {len(norms)} norms stand out" if len(spikes) > 1 else ""
        early = median(loops.before_divergence(norms))
        limit = float(f"{2 * early:.1g}")
        grown = "" if early == usual else " before the run diverged"
        yield Finding(
            f"{_name(site)} trains without gradient clipping: the gradient's norm was "
            f"{usual:.2g} in the median and up to {max(norms):.2g}{seen}; one such step undoes "
            "many others",
            where=model.layers.get(site.place.path) or site.site or model.site,
            module=None,
            evidence={"median_norm": usual, "largest_norm": max(norms), "spikes": len(spikes)},
            fixes=[
                explained(
                    loops.clipped(trace, edits, limit),
                    reason=f"Pascanu et al. 2013: g ← g·min(1, {limit:g}/‖g‖) keeps the direction; the "
                    f"median norm{grown} is {early:.2g}, the largest {max(norms):.2g}",
                    patches=[Patch.training("clip", max_norm=limit)],
                )
            ],
            severity=Severity.WARNING if len(spikes) > 1 else Severity.INFO,
            confidence=Confidence.LIKELY if len(spikes) > 1 else Confidence.POSSIBLE,
        )


def _name(site: SiteTrace) -> str:
    return (
        f"{site.place.path} ({site.place.operation})" if site.place.path else site.place.operation
    )


def _norms(model: ModelTrace) -> list[float]:
    """The norm of the whole gradient at each recorded step."""
    squares: dict[int, float] = {}
    for parameter in model.parameters:
        for step, norm in zip(parameter.steps, parameter.gradient, strict=True):
            if norm is not None:
                squares[step] = squares.get(step, 0.0) + norm * norm
    return [squares[step] ** 0.5 for step in sorted(squares) if squares[step] < float("inf")]


def _is_held(norms: list[float]) -> bool:
    """Whether something holds the norm at one value."""
    largest = max(norms)
    return sum(norm > 0.999 * largest for norm in norms) > max(2, len(norms) // 5)


def _spikes(norms: list[float], times: float) -> list[float]:
    start = median(norms[:10])
    found = []
    for place, norm in enumerate(norms):
        around = [*norms[max(0, place - 3) : place], *norms[place + 1 : place + 4]]
        if len(around) > 3 and norm > times * median(around) and norm > times / 2 * start:
            found.append(norm)
    return found
