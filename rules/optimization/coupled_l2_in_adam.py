"""OPT008 coupled-l2-in-adam."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Fix,
    OptimizerTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    optimizers,
    rule,
)

DECOUPLING = frozenset({"NAdam", "RAdam"})
COUPLED = frozenset({"Adam", "Adamax", "Adagrad", "RMSprop"})
# What is usual with AdamW.
USUAL = 0.01


@rule("OPT008", severity=Severity.INFO, since="0.1", own=["optimizer"])
def coupled_l2_in_adam(
    trace: Trace, edits: SourceEdits, *, least: float = 1e-6
) -> Iterator[Finding]:
    """Adam's `weight_decay` is an L2 penalty that Adam then divides by the size of the gradients.

    SGD with L2 takes η·λ of every weight. Adam's step is η·m/√v, where m and v are averages of the gradient
    and of its square, and λ·w is part of that gradient: weights with large gradients are hardly
    decayed, those with small ones strongly, whatever their size. AdamW takes η·λ·w from the weights beside
    the step, the same share of each, so that λ can be chosen for itself.

    Reported as advice for Adam, Adamax, NAdam, RAdam, Adagrad and RMSprop of torch's own with a
    `weight_decay` above `least` that is not declared decoupled.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(10):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(10):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    To repeat results that were had with it.

    ## Fix safety
    Unsafe: λ means something else then, 0.01 is usual with AdamW. An edit is made for Adam, whose other
    arguments are AdamW's.

    ## References
    Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    for optimizer in trace.optimizers:
        decays = [
            decay
            for group in optimizer.groups
            if (decay := float(group.get("weight_decay") or 0.0)) > least
            and not group.get("decoupled_weight_decay")
        ]
        if decays and optimizer.kind in DECOUPLING | COUPLED and optimizer.steps:
            yield Finding(
                f"{optimizer.kind} divides weight_decay={max(decays):g} by the size of the gradients: "
                "weights with large gradients are hardly decayed",
                where=optimizer.site,
                evidence={"weight_decay": max(decays)},
                fixes=[_decoupled(edits, optimizer, max(decays))],
            )


def _decoupled(edits: SourceEdits, optimizer: OptimizerTrace, decay: float) -> Fix:
    reason = (
        "Loshchilov & Hutter 2019: beside the step each weight loses lr·λ of itself, not "
        f"lr·{decay:g}·w/√v"
    )
    if optimizer.kind in DECOUPLING:
        title = f"decouple the decay of {optimizer.kind}: decoupled_weight_decay=True"
        changed = optimizers.with_option(
            edits, optimizer, "decoupled_weight_decay", True, title=title
        )
        return explained(
            changed,
            reason=reason,
            patches=[Patch.training("optimizer-options", decoupled_weight_decay=True)],
        )
    return explained(
        optimizers.decoupled(
            edits,
            optimizer,
            USUAL,
            title=f"use AdamW in place of {optimizer.kind}, with weight_decay={USUAL:g}",
        ),
        reason=reason,
        patches=[Patch.training("weight-decay", value=USUAL, apart=True)],
    )
