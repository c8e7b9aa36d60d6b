"""ACT001 dead-relu."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    ModelTrace,
    NotMeasurable,
    Occurrence,
    Patch,
    Severity,
    SiteTrace,
    SourceEdits,
    Trace,
    as_code,
    rule,
)

# A hard sigmoid or a clamp has other zeros, and bounds that need not be any.
_RECTIFIERS = ("relu", "relu6", "clamp", "clamp_min", "threshold")


@rule(
    "ACT001",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "vanishing-gradient",
        "constant-output",
        "no-gradient",
        "learning-rate-too-low",
        "cannot-memorise",
        "input-without-influence",
    ],
    own=["loss", "optimizer", "data"],
    shows="dead",
)
def dead_relu(
    trace: Trace,
    edits: SourceEdits,
    *,
    share: float = 0.5,
    steps: int = 20,
    samples: int = 128,
    units: int = 8,
) -> Iterator[Finding | NotMeasurable]:
    """Most units of a layer are zero for every sample: behind a ReLU they get no gradient, and stay so.

    A ReLU passes no gradient where its input is negative. A unit whose input is negative for all samples
    gets none at all, so its weights never change again: it is dead. One step that is too large does it,
    by driving the bias or the weights far below zero, and so do negative biases at the start. The layer
    then has the width of its units that live.

    trainlint counts, in windows of five recorded steps, the units (channels, features) that were 0 for all
    of their samples. Reported after `steps` steps, where more than the `share` of a layer's units were
    dead in each of the last two windows, which had at least `samples` samples (positions) each; not
    measurable where all had fewer. Not reported: layers of fewer than `units` units, of which three may be
    off by chance (the waist of a squeeze and excitation), layers without a gradient (frozen), experts
    that get few tokens, hinges such as relu(margin − distance), and clamps at other values than 0.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.constant_(model[0].bias, -4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        x = torch.randn(64, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        x = torch.randn(64, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Figures
    - `dead`: the share of the units that were 0 for every sample, in the lesser of the last two windows;
      `dead at first`: in the first window; `windows`: in the latest ones, one after the other.

    ## When to ignore it
    Where units are meant to be rare or gone: sparse autoencoders, pruned layers.

    ## Fix safety
    Only shown: another activation, a lower rate and another initialisation change what is trained.

    ## References
    Lu, Shin, Su & Karniadakis 2019, arXiv:1903.06733 (dying ReLU and initialisation). Maas, Hannun & Ng
    2013 (leaky ReLU). He et al. 2015, arXiv:1502.01852. Share and windows are from a study of 190 sound
    runs (no alarm) and 10 dead ones (all found).
    """
    for model in trace.trained:
        sites = [site for site in model.sites if site.place.operation in _RECTIFIERS and site.seen]
        if sites and 0 < trace.steps < steps:
            yield NotMeasurable(f"{trace.steps} of {steps} steps were seen")
            return
        most = max((max(site.seen) for site in sites), default=samples)
        if most < samples:
            yield NotMeasurable(
                f"units were seen with {most} of {samples} samples or positions in five recorded steps"
            )
        for site in sites:
            windows = [
                dead for dead, seen in zip(site.dead, site.seen, strict=True) if seen >= samples
            ]
            if len(windows) < 2 or min(windows[-2:]) <= share or site.units < units:
                continue
            zero = site.median("zero")
            if zero is None or zero < share or site.median("gradient") is None:
                continue
            yield _finding(edits, model, site, windows)


def _finding(
    edits: SourceEdits, model: ModelTrace, site: SiteTrace, windows: Sequence[float]
) -> Finding:
    dead, first = min(windows[-2:]), windows[0]
    by_steps = first < dead / 2
    since = f", {first:.0%} at first" if by_steps else " from the start"
    return Finding(
        f"{dead:.0%} of the units of {site.place} are 0 for every sample{since}: they get no gradient, "
        "and stay so",
        where=site.site,
        module=site.place.path or None,
        evidence={
            "dead": round(dead, 3),
            "dead_at_first": round(first, 3),
            "windows": [round(value, 3) for value in windows[-4:]],
            "model": model.name,
        },
        fixes=[_slower() if by_steps else _drawn_anew(model, site), _leaky(edits, model, site)],
        confidence=Confidence.LIKELY,
    )


def _slower() -> Fix:
    return Fix(
        "a learning rate ten times lower",
        reason="the steps drove the units below zero for every sample: w − lr·∂L/∂w",
        obstacle="the rate is the optimizer's, which is no part of the model",
        patches=[Patch.training("learning-rate", factor=0.1)],
    )


def _drawn_anew(model: ModelTrace, site: SiteTrace) -> Fix:
    """He's values, and biases of zero, for the layer in front."""
    before = [other for other in model.sites[: model.sites.index(site)] if other.weight]
    weight = before[-1].weight if before else None
    return Fix(
        f"nn.init.kaiming_normal_({as_code(weight or 'weight')}, nonlinearity='relu') and zeros_(bias)",
        reason="He et al. 2015: σ = √(2/n) and no bias leave half of the units of a ReLU active",
        obstacle="which line set these values is not known in a training",
        patches=[]
        if weight is None
        else [Patch.initialise([weight], "kaiming_normal", nonlinearity="relu", bias=0.0)],
    )


def _leaky(edits: SourceEdits, model: ModelTrace, site: SiteTrace) -> Fix:
    path, name = site.place.path, site.place.operation
    # A call in a module's own forward has the parts of that module beside it.
    is_layer = bool(path) and not any(other.startswith(f"{path}.") for other in model.layers)
    title = "LeakyReLU in its place, which passes a gradient below zero as well"
    reason = "Maas et al. 2013: a slope of 0.01 below zero lets a dead unit come back"
    if name not in ("relu", "relu6"):
        return Fix(title, reason=reason, obstacle=f"a {name} takes other arguments")
    if is_layer:
        names = {"relu": "ReLU", "relu6": "ReLU6"}[name], "LeakyReLU"
        patches = [Patch.activation("leaky_relu", modules=[path])]
        place = model.layers.get(path)
    else:
        names, place = (name, "leaky_relu"), site.site
        calls = [Occurrence(path, name, site.place.index)]
        patches = [Patch.activation("leaky_relu", calls=calls)]
    return edits.callee([place], *names, title=title, reason=reason, patches=patches)
