"""GRD007 stale-gradient."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)


@rule("GRD007", severity=Severity.ERROR, since="0.1", explains=["learning-rate-too-high"])
def stale_gradient(trace: Trace, edits: SourceEdits, *, steps: int = 3) -> Iterator[Finding]:
    """Gradients of earlier batches are never cleared, so each step follows the sum of all of them.

    `backward()` adds to `.grad`. Without `optimizer.zero_grad()` the step after t batches follows
    g₁ + g₂ + … + gₜ: it grows with t though nothing new was learnt, points where the loss fell long ago,
    and acts like a momentum of 1 without decay. The loss falls at first and then swings or diverges.

    trainlint watches the loop: before a step with new gradients in it, the old ones had neither been set
    to None nor to zero since the step before. Reported after `steps` such steps. Accumulation over
    micro-batches is several backward passes before *one* step, and clears them after it: no finding.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Never for a loop that trains on batches. An experiment that sums the gradients of all data on purpose
    should step once.

    ## Fix safety
    Safe: it is plainly what was meant. No edit is made where several optimizers step, a `GradScaler` or a
    closure does, `step()` stands under an `if`, or `backward()` is called in another function.

    ## References
    PyTorch documentation, `torch.optim.Optimizer.zero_grad`; PyTorch recipe "Zeroing out gradients".
    """
    for incident in trace.of("gradients-left"):
        if incident.count >= steps:
            yield Finding(
                f"{incident.facts['optimizer']}.step() goes by gradients that were left from the steps "
                f"before, {incident.count} times: the step after t batches is the sum of all t",
                where=incident.site,
                evidence={"steps": incident.count, "first_step": incident.step},
                fixes=[
                    explained(
                        loops.zeroed(trace, edits),
                        reason=f"backward() adds to .grad: step {trace.steps} goes by the sum of all "
                        f"{trace.steps} gradients, and shall go by one",
                        patches=[Patch.training("zero-grad")],
                        safety=Safety.SAFE,
                    )
                ],
            )
