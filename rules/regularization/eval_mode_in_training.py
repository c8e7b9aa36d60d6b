"""REG004 eval-mode-in-training."""

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


@rule("REG004", severity=Severity.ERROR, since="0.1")
def eval_mode_in_training(trace: Trace, edits: SourceEdits, *, steps: int = 2) -> Iterator[Finding]:
    """The model is trained in eval mode from some step on, mostly since `train()` is missing after a test.

    `eval()` is a switch, not a scope. When a loop tests its model once an epoch and does not switch back,
    all later epochs train without dropout, and BatchNorm normalises by running statistics that stand
    still while the weights move on: the regularisation is off, and the normalisation fits less and less.

    trainlint looks at the mode of the forwards that stand behind each optimizer step. Reported
    after `steps` steps all of whose forwards were in eval mode, where earlier steps had train mode, for
    models with Dropout or BatchNorm. A model that is trained in eval mode from the start (fine-tuning with
    frozen statistics) is taken as meant so. So are single modules in eval mode, and forwards in eval mode
    whose gradients go into no step: attacks, saliency maps, a discriminator that scores a generator.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for epoch in range(3):
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
    When a last phase of training freezes dropout and statistics on purpose.

    ## Fix safety
    Safe: `model.train()` before the loop over batches, or before the model is called where that loop
    evaluates as well. No edit is made where several optimizers step, or the loop is in several functions.

    ## References
    PyTorch documentation, `torch.nn.Module.eval`; "Autograd mechanics", on evaluation mode.
    """
    for incident in trace.of("eval-mode-training"):
        if incident.count >= steps:
            yield Finding(
                f"{incident.facts['model']} is trained in eval mode from step {incident.step} on, in "
                f"{incident.count} steps after {incident.facts['trained']} in train mode: dropout is off, "
                "and BatchNorm's statistics stand still",
                where=incident.site,
                evidence={
                    "steps": incident.count,
                    "first_step": incident.step,
                    "steps_in_train_mode": incident.facts["trained"],
                },
                fixes=[_switched(trace, edits, incident)],
            )


def _switched(trace: Trace, edits: SourceEdits, incident: Incident) -> Fix:
    title = "switch back before training goes on: model.train() at the start of each epoch"
    reason = (
        "PyTorch documentation, Module.eval: it stays until train(), dropout off and running statistics "
        "in place of the batch's"
    )
    model = next((m for m in trace.trained if m.name == incident.facts["model"]), None)
    made = Fix(title) if model is None else loops.in_train_mode(trace, edits, model, title=title)
    return explained(
        made,
        reason=reason,
        obstacle="the model is not known any more",
        patches=[Patch.training("train-mode")],
        safety=Safety.SAFE,
    )
