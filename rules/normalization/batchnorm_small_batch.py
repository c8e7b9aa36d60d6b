"""NRM004 batchnorm-small-batch."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Finding, Fix, Incident, Severity, Trace, rule


@rule(
    "NRM004",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "constant-output", "cannot-memorise"],
    own=["data"],
)
def batchnorm_small_batch(
    trace: Trace, *, values: int = 2, share: float = 0.5
) -> Iterator[Finding]:
    """BatchNorm takes its statistics from one or two values a channel.

    In train mode BatchNorm subtracts each channel's mean over batch and positions, and divides by the
    standard deviation. Of two values a and b that leaves +1 and −1 (a hair less for eps), whatever a and
    b are: only which one is larger gets through, and the gradient to either is next to zero. Of one value
    it leaves 0, and PyTorch raises `Expected more than 1 value per channel`, mostly at the last batch of
    an epoch, when the number of samples leaves a rest of one. The running statistics, which evaluation
    uses, are those of all data, so that training and evaluation compute different functions.

    Counted are samples times positions: a batch of 2 images of 32×32 has 2048 values and is fine. Reported
    where the `share` of the recorded steps had at most so many `values`, or where it raised. Layers in eval
    mode (frozen statistics) are left alone.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(40):
        x = torch.randn(2, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(40):
        x = torch.randn(2, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Never where it raises.

    ## Fix safety
    Only shown: another normalisation has other weights, and `drop_last=True` leaves out the rest of each
    epoch.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167. Wu & He 2018, arXiv:1803.08494 (GroupNorm; the error of
    BatchNorm at batches of 2).
    """
    for incident in trace.of("batchnorm-single-value"):
        yield _raised(trace, incident)
    for model in trace.models:
        for site in model.sites:
            total = sum(site.values.values())
            few = sum(count for held, count in site.values.items() if held <= values)
            if total and few > share * total:
                least = min(site.values)
                yield Finding(
                    f"{site.place} has {least} value{'s' if least > 1 else ''} a channel in {few} of "
                    f"{total} recorded steps: what it normalises by them is ±1, whatever the input",
                    where=model.layers.get(site.place.path) or site.site,
                    module=site.place.path or None,
                    evidence={"values_a_channel": least, "steps": few, "recorded": total},
                    fixes=[
                        Fix(
                            "nn.GroupNorm or nn.LayerNorm in its place: they do not look at the batch"
                        ),
                        Fix("or larger batches; gradient accumulation does not help BatchNorm"),
                    ],
                )


def _raised(trace: Trace, incident: Incident) -> Finding:
    module = incident.facts["module"]
    usual = [
        held
        for model in trace.models
        for site in model.sites
        if site.place.path == module
        for held in site.values
    ]
    size = "×".join(map(str, incident.facts["size"]))
    name = module or "BatchNorm"
    if max(usual, default=1) > 1:
        what = f", the rest of an epoch of batches of {max(usual)}"
        fixes = [Fix("DataLoader(..., drop_last=True) for the training data")]
    else:
        what = ""
        fixes = [Fix("batches of more than one sample")]
    fixes.append(Fix("or nn.GroupNorm or nn.LayerNorm, which do not look at the batch"))
    return Finding(
        f"{name} gets one value a channel ({size}) at step {incident.step}{what}: its mean is the value "
        "itself and its deviation 0, and PyTorch raises",
        where=incident.site,
        module=module,
        evidence={"size": incident.facts["size"], "step": incident.step, "values_before": usual},
        fixes=fixes,
        severity=Severity.ERROR,
    )
