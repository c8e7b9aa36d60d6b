"""NRM004 batchnorm-small-batch."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Fix,
    Incident,
    Patch,
    Safety,
    Severity,
    Site,
    SourceEdits,
    Trace,
    rule,
)


@rule(
    "NRM004",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "constant-output",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
    own=["data"],
)
def batchnorm_small_batch(
    trace: Trace, edits: SourceEdits, *, values: int = 2, share: float = 0.5
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
    Unsafe: another normalisation has other weights, and `drop_last=True` leaves out the rest of each epoch.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167. Wu & He 2018, arXiv:1803.08494 (GroupNorm; the error of
    BatchNorm at batches of 2).
    """
    for incident in trace.of("batchnorm-single-value"):
        yield _raised(trace, edits, incident)
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
                    fixes=[_group_norm(edits, model.layers.get(site.place.path)), _larger(16)],
                )


def _raised(trace: Trace, edits: SourceEdits, incident: Incident) -> Finding:
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
        fixes = [_drop_last(trace, edits)]
    else:
        what = ""
        fixes = [_larger(16)]
    made = [model.layers[module] for model in trace.models if module in model.layers]
    fixes.append(_group_norm(edits, made[0] if len(made) == 1 else None))
    return Finding(
        f"{name} gets one value a channel ({size}) at step {incident.step}{what}: its mean is the value "
        "itself and its deviation 0, and PyTorch raises",
        where=incident.site,
        module=module,
        evidence={"size": incident.facts["size"], "step": incident.step, "values_before": usual},
        fixes=fixes,
        severity=Severity.ERROR,
    )


def _drop_last(trace: Trace, edits: SourceEdits) -> Fix:
    """The rest of each epoch left out, at the one loader that is shuffled, or the only one."""
    random = [loader for loader in trace.loaders if loader.sampler == "RandomSampler"]
    loaders = random or list(trace.loaders)
    return edits.argument(
        loaders[0].site if len(loaders) == 1 else None,
        8,
        "drop_last",
        True,
        current=False,
        title="DataLoader(..., drop_last=True) for the training data",
        safety=Safety.UNSAFE,
        reason="one value has no variance: the last batch of one sample is left out of each epoch",
        patches=[Patch.training("drop-last")],
    )


def _larger(size: int) -> Fix:
    return Fix(
        f"larger batches, of {size} samples or more; gradient accumulation does not help BatchNorm",
        reason="Wu & He 2018, figure 1: below 16 samples the error of BatchNorm grows steeply",
        obstacle="how much memory there is, only you know",
        patches=[Patch.training("batch-size", value=size)],
    )


def _group_norm(edits: SourceEdits, made: Site | None) -> Fix:
    """GroupNorm with 32 groups, or as many as divide the channels, where their number is written."""

    def rewrite(call: ast.Call, source: str) -> str | None:
        match = re.match(r"([\w.]*\b)BatchNorm[123]d\(", source)
        given = [*call.args, *(k.value for k in call.keywords if k.arg == "num_features")]
        if match is None or len(given) != 1 or len(call.args) + len(call.keywords) != 1:
            return None
        if not isinstance(given[0], ast.Constant) or not isinstance(given[0].value, int):
            return None
        channels = given[0].value
        return f"{match[1]}GroupNorm({math.gcd(32, channels)}, {channels})"

    return edits.replaced_calls(
        [(made, rewrite)],
        title="nn.GroupNorm in its place, or nn.LayerNorm: they do not look at the batch",
        reason="Wu & He 2018: mean and variance of 32 groups of channels of one sample",
    )
