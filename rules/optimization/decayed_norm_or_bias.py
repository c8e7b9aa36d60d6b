"""OPT005 decayed-norm-or-bias."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Fix,
    ModelTrace,
    ParameterTrace,
    Patch,
    Severity,
    Trace,
    rule,
)


@rule("OPT005", severity=Severity.INFO, since="0.1", own=["optimizer"])
def decayed_norm_or_bias(trace: Trace, *, least: float = 1e-3) -> Iterator[Finding]:
    """Weight decay pulls at biases and at the scales of normalisation layers as well.

    Decay keeps a function from bending for every sample, and what bends it are the matrices. A bias
    only shifts, and a normalisation's scale γ sets how much of a layer gets through: pulled to 0,
    it makes the layer vanish, and nothing is gained for the generalisation. Two groups are usual: matrices
    with decay, vectors and single numbers without.

    Reported once for each optimizer, as advice, from a `weight_decay` of `least` on, where it trains
    parameters of one dimension or none and of more in one group.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(10):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for _ in range(10):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where it makes no difference that can be measured, as is often so with small decays.

    ## Fix safety
    Only shown: two groups take another form of call, and their own place among the arguments.

    ## References
    He et al. 2018, arXiv:1812.01187, section 3.1 (no bias decay).
    """
    for place, optimizer in enumerate(trace.optimizers):
        decayed: list[tuple[ModelTrace, ParameterTrace]] = []
        largest = 0.0
        for number, group in enumerate(optimizer.groups):
            decay = float(group.get("weight_decay") or 0.0)
            members = [
                (m, p) for m in trace.trained for p in m.parameters if p.group == (place, number)
            ]
            small = [(m, p) for m, p in members if p.dimensions <= 1]
            if decay >= least and len(small) < len(members):
                decayed += small
                largest = max(largest, decay)
        if not decayed or not optimizer.steps:
            continue
        model, first = decayed[0]
        yield Finding(
            f"weight_decay={largest:g} also pulls at {len(decayed)} biases and scales of normalisations, "
            f"{first.name} first: it shrinks what they let through and does not regularise",
            where=optimizer.site or model.place_of(first.name),
            evidence={"weight_decay": largest, "parameters": [p.name for _, p in decayed][:10]},
            fixes=[
                Fix(
                    f"give vectors a group without decay: {optimizer.kind}("
                    '[{"params": [p for p in model.parameters() if p.dim() > 1]}, '
                    '{"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}], '
                    f"lr={optimizer.rate:g}, weight_decay={largest:g})",
                    reason="He et al. 2018, section 3.1: no decay of what has one dimension or none",
                    obstacle="the call takes another form, of groups",
                    patches=[Patch.training("weight-decay", value=largest, matrices_only=True)],
                )
            ],
        )
