"""REG005 train-mode-in-validation."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Fix,
    Incident,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)


@rule("REG005", severity=Severity.WARNING, since="0.1")
def train_mode_in_validation(trace: Trace, edits: SourceEdits) -> Iterator[Finding]:
    """A pass over data that nothing is trained by runs in train mode: the result is noisy and too low.

    In train mode dropout leaves out units, so that the score is that of a thinned model and differs from
    one pass to the next. BatchNorm normalises each sample by the batch that it happens to be in, and
    moves its running statistics towards the validation data, which then are in the model that is saved.

    A pass is two or more forwards in a row, at one place in the code and between two optimizer steps,
    that no backward pass reaches, of a model with Dropout or BatchNorm that was trained before. Not
    reported: after an explicit `model.train()` (statistics that are estimated anew, `update_bn`, sampling
    with dropout), the same input again and again, models that are never trained (mean teachers, target
    networks), and passes that are part of at least every third step, such as gradient caches or a
    generator's samples for its critic.

    In eval mode but with a graph, the pass is sound and merely costs the memory of a graph that is never
    used: that is an info.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        for _ in range(8):
            x = torch.randn(32, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = sum(int((model(x)[:, 1] > 0).sum()) for x in torch.randn(4, 32, 8))
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        model.train()
        for _ in range(8):
            x = torch.randn(32, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = sum(int((model(x)[:, 1] > 0).sum()) for x in torch.randn(4, 32, 8))
    ```

    ## When to ignore it
    When the scatter between passes is what is wanted, as in Monte Carlo dropout.

    ## Fix safety
    Safe: two calls, before and after the pass. No edit is made where the pass ends in a `return`.

    ## References
    PyTorch documentation, `torch.nn.Module.eval` and `torch.no_grad`. Gal & Ghahramani 2016,
    arXiv:1506.02142 (dropout at test time on purpose).
    """
    for incident in trace.of("train-mode-evaluation"):
        if not _is_part_of_training(trace, incident):
            yield Finding(
                f"{_passes(incident)} of {incident.facts['model']} that nothing is trained by ran in train "
                "mode: dropout leaves out units, BatchNorm takes the batch's statistics and moves its own",
                where=incident.site,
                evidence={"passes": incident.count, "first_step": incident.step},
                fixes=[
                    explained(
                        loops.evaluated(
                            trace,
                            edits,
                            incident.site,
                            title="evaluate in eval mode: model.eval() before the pass, and model.train() "
                            "after it",
                        ),
                        reason="Ioffe & Szegedy 2015, algorithm 2; Srivastava et al. 2014, section 4: "
                        "fixed statistics and the whole network answer",
                        patches=[Patch.training("eval-mode-in-validation")],
                        safety=Safety.SAFE,
                    )
                ],
            )
    for incident in trace.of("unused-graph"):
        if not _is_part_of_training(trace, incident):
            yield Finding(
                f"{_passes(incident)} of {incident.facts['model']} built graphs that no backward pass "
                "used: they keep every activation in memory",
                where=incident.site,
                evidence={"passes": incident.count, "first_step": incident.step},
                fixes=[
                    Fix(
                        "with torch.no_grad(): around the pass",
                        reason="PyTorch documentation, torch.no_grad: no activation is kept within",
                        obstacle="the whole pass would be indented",
                    )
                ],
                severity=Severity.INFO,
            )


def _passes(incident: Incident) -> str:
    return f"{incident.count} passes" if incident.count > 1 else "a pass"


def _is_part_of_training(trace: Trace, incident: Incident) -> bool:
    """Once an epoch is seldom; what comes with at least every third step belongs to it."""
    return incident.count > 1 and incident.count * 3 > trace.steps - incident.step + 1
