"""GRD009 clipped-after-step."""

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


@rule(
    "GRD009",
    severity=Severity.ERROR,
    since="0.1",
    explains=["exploding-gradient", "learning-rate-too-high"],
)
def clipped_after_step(trace: Trace, edits: SourceEdits, *, times: int = 2) -> Iterator[Finding]:
    """Gradients are clipped after the optimizer has used them, so that nothing is clipped.

    `clip_grad_norm_` shortens the `.grad` that is there. `optimizer.step()` must find the short one: in
    the order backward, step, clip it has found the long one already, and `zero_grad()` throws the clipped
    one away. The loop looks protected against exploding gradients, and is not.

    Reported where the call came with no backward pass since the optimizer's last step, `times` times or
    more. Not reported: a call with a limit of infinity, which only asks for the norm; gradients that no
    `backward()` made; and parameters of which another optimizer has yet to step.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    ```

    ## When to ignore it
    Never: to read the norm alone, give the limit infinity.

    ## Fix safety
    Safe: it is plainly what was meant. Steps are shorter where the norm is above the limit. No edit is made
    where a `GradScaler` or a closure steps, or the two calls are in different blocks.

    ## References
    PyTorch documentation, `torch.nn.utils.clip_grad_norm_`. Pascanu, Mikolov & Bengio 2013,
    arXiv:1211.5063.
    """
    for incident in trace.of("clip-after-step"):
        if incident.count >= times:
            kind = incident.facts["optimizer"]
            limit = next((clip.limit for clip in trace.clips if clip.site is incident.site), 1.0)
            yield Finding(
                f"the gradients are clipped after {kind}.step() has used them and before backward() has "
                f"made new ones, {incident.count} times: no step was clipped",
                where=incident.site,
                evidence={"times": incident.count, "first_step": incident.step},
                fixes=[
                    explained(
                        loops.clipped_before_step(
                            trace,
                            edits,
                            incident.site,
                            title="move the clipping between backward() and step()",
                        ),
                        reason=f"Pascanu et al. 2013: g ← g·min(1, {limit:g}/‖g‖) bounds the next step",
                        patches=[Patch.training("clip", max_norm=limit)],
                        safety=Safety.SAFE,
                    )
                ],
            )
