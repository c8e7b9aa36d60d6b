"""ACT002 saturated-units."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Finding, Fix, Severity, SiteTrace, Trace, rule


@rule(
    "ACT002",
    severity=Severity.INFO,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "vanishing-gradient", "cannot-memorise"],
    own=["loss", "optimizer", "data"],
)
def saturated_units(trace: Trace, *, share: float = 0.5, steps: int = 20) -> Iterator[Finding]:
    """Most units of a hidden sigmoid or tanh stay in its flat part, where hardly a gradient passes.

    The slope of a sigmoid is at most 1/4, and 0.018 at |z| = 4; that of a tanh is 1 at 0 and 0.071 at |z|
    = 2. Beyond these, less than 7% of the largest slope is left, and what lies before the layer learns so
    much more slowly. Inputs on a large scale, large initial weights and steps that are too large lead
    there, and the small gradient keeps the units where they are.

    Reported after `steps` steps, where more than the `share` of the elements lay beyond, in the median of
    the first and of the second half of the run, and the result goes into the weights of another layer.
    Not reported: gates, whose result multiplies something else (LSTM, GRU, highway, squeeze and
    excitation) and which are meant to be open or shut; and the model's last activation, where saturation
    means that the model is sure. It is advice: networks with saturated tanh units can learn well.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(40):
        x = torch.randn(64, 8) * 50 + 100
        loss = F.cross_entropy(model(x), (x[:, 0] > 100).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(40):
        x = torch.randn(64, 8) * 50 + 100
        loss = F.cross_entropy(model((x - 100) / 50), (x[:, 0] > 100).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where a layer is meant to give signs or bits, as in hashing.

    ## Fix safety
    Only shown: each of the remedies changes what is trained.

    ## References
    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    if trace.steps < steps:
        return
    for model in trace.trained:
        groups: dict[tuple[str, str], list[SiteTrace]] = {}
        for site in model.sites:
            if site.feeds:
                groups.setdefault((site.place.path, site.place.operation), []).append(site)
        for (_, operation), sites in groups.items():
            # The calls of a loop through time are one layer; its gates are none.
            if any(site.feeds != "weights" for site in sites):
                continue
            first, second = _half(sites, last=False), _half(sites, last=True)
            if first is not None and second is not None and min(first, second) > share:
                yield _finding(sites[0], operation, first, second)


def _half(sites: list[SiteTrace], *, last: bool) -> float | None:
    """The median share of saturated elements in the first or last half of the recorded steps."""
    values = []
    for site in sites:
        middle = len(site.saturated) // 2
        half = site.saturated[middle:] if last else site.saturated[:middle]
        values += [value for value in half if value is not None]
    return sorted(values)[len(values) // 2] if values else None


def _finding(site: SiteTrace, operation: str, first: float, second: float) -> Finding:
    bound = "|z| > 4" if operation == "sigmoid" else "|z| > 2"
    return Finding(
        f"{second:.0%} of the elements of {site.place} lie in its flat part ({bound}), {first:.0%} in the "
        "first half of the run: less than 7% of the largest slope is left for what lies before it",
        where=site.site,
        module=site.place.path or None,
        evidence={
            "saturated": round(second, 3),
            "saturated_in_first_half": round(first, 3),
            "operation": operation,
        },
        fixes=[
            Fix(
                "normalise what arrives: nn.BatchNorm1d or nn.LayerNorm before it, or scaled inputs"
            ),
            Fix(f"nn.init.xavier_normal_(weight, nn.init.calculate_gain('{operation}')) before it"),
            Fix("nn.ReLU() in its place"),
        ],
        confidence=Confidence.LIKELY,
    )
