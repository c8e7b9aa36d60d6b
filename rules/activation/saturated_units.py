"""ACT002 saturated-units."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    ModelTrace,
    Occurrence,
    Patch,
    Severity,
    SiteTrace,
    SourceEdits,
    Trace,
    as_code,
    rule,
)


@rule(
    "ACT002",
    severity=Severity.INFO,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "vanishing-gradient",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
    own=["loss", "optimizer", "data"],
)
def saturated_units(
    trace: Trace, edits: SourceEdits, *, share: float = 0.5, steps: int = 20
) -> Iterator[Finding]:
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
    Unsafe: each of the remedies changes what is trained.

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
                yield _finding(edits, model, sites[0], operation, first, second)


def _half(sites: list[SiteTrace], *, last: bool) -> float | None:
    """The median share of saturated elements in the first or last half of the recorded steps."""
    values = []
    for site in sites:
        middle = len(site.saturated) // 2
        half = site.saturated[middle:] if last else site.saturated[:middle]
        values += [value for value in half if value is not None]
    return sorted(values)[len(values) // 2] if values else None


def _finding(
    edits: SourceEdits,
    model: ModelTrace,
    site: SiteTrace,
    operation: str,
    first: float,
    second: float,
) -> Finding:
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
        fixes=_fixes(edits, model, site, operation),
        confidence=Confidence.LIKELY,
    )


def _fixes(edits: SourceEdits, model: ModelTrace, site: SiteTrace, operation: str) -> list[Fix]:
    before = [other for other in model.sites[: model.sites.index(site)] if other.weight]
    weight = before[-1].weight if before else None
    layer = "" if weight is None else weight.rpartition(".")[0]
    gain = 5 / 3 if operation == "tanh" else 1.0
    path = site.place.path
    is_layer = bool(path) and not any(other.startswith(f"{path}.") for other in model.layers)
    normalise = Fix(
        f"BatchNorm or LayerNorm behind {layer or 'the layer before it'}, or scaled inputs",
        reason="Ioffe & Szegedy 2015: what has variance 1 lies where the slope is near its largest",
        obstacle="the constructor and the forward change together",
        patches=[Patch.norm("batch", after=[layer])] if layer else [],
    )
    xavier = Fix(
        f"nn.init.xavier_normal_({as_code(weight or 'weight')}, nn.init.calculate_gain('{operation}'))",
        reason=f"Glorot & Bengio 2010: σ = {gain:.3g}·√(2/(n + m)) keeps z near 1",
        obstacle="which line set these values is not known in a training",
        patches=[] if weight is None else [Patch.initialise([weight], "xavier_normal", gain=gain)],
    )
    names = (operation, "relu")
    place, modules, calls = site.site, [], [Occurrence(path, operation, site.place.index)]
    if is_layer:
        names = operation.capitalize(), "ReLU"
        place, modules, calls = model.layers.get(path), [path], []
    relu = edits.callee(
        [place],
        *names,
        title="ReLU in its place",
        reason="its slope is 1 for all that is positive (Glorot, Bordes & Bengio 2011)",
        patches=[Patch.activation("relu", modules=modules, calls=calls)],
    )
    return [normalise, xavier, relu]
