"""REG004 eval-mode-in-training."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Finding, Fix, Severity, Trace, rule


@rule("REG004", severity=Severity.ERROR, since="0.1")
def eval_mode_in_training(trace: Trace, *, steps: int = 2) -> Iterator[Finding]:
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
    Only shown: the call belongs at the start of each epoch, wherever that is.

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
                fixes=[Fix("model.train() at the start of each epoch, or after the test")],
            )
