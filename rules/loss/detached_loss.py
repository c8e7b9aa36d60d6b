"""LOS011 detached-loss."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Fix,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loss_fixes,
    rule,
)


@rule(
    "LOS011",
    severity=Severity.ERROR,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "no-gradient",
        "learning-rate-too-low",
        "cannot-memorise",
    ],
    own=["loss"],
)
def detached_loss(trace: Trace, edits: SourceEdits) -> Iterator[Finding]:
    """The loss that `backward()` is called on has no graph behind it, so no weight gets a gradient.

    A loss knows the weights that it came from through its `grad_fn`. `.item()`, `.detach()`, `.data`,
    numpy, `argmax` and `torch.tensor(loss)` leave the number and drop that. `backward()` then raises
    `element 0 of tensors does not require grad`, and the cure that comes to mind,
    `torch.tensor(loss, requires_grad=True)` or `loss.requires_grad_()`, is worse: the loss becomes a leaf
    of its own, `backward()` runs, writes 1 to `loss.grad`, and the model stays as it is. The same
    happens where the model runs under `torch.no_grad()` or all of its parameters are frozen.

    trainlint looks at the loss before each backward pass. A tensor with several elements that is given
    gradients by hand (a pipeline's stages) is left alone.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss = torch.tensor(loss.item(), requires_grad=True)
        optimizer.zero_grad()
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
        shown = loss.item()
    ```

    ## When to ignore it
    When a single number is what is optimised, as in a demonstration of autograd.

    ## Fix safety
    Safe where a line before `backward()` makes a new tensor of the loss: it is taken out. Else only shown:
    where the graph was lost is not seen.

    ## References
    PyTorch documentation, "Autograd mechanics" (leaf tensors; locally disabling gradient computation).
    """
    for incident in trace.of("loss-without-graph"):
        facts = incident.facts
        what = "a leaf of its own" if facts["leaf"] else "a number without grad_fn"
        cost = (
            "backward() writes to loss.grad alone, and the model stays as it is"
            if facts["leaf"]
            else "backward() raises, as no weight leads to it"
        )
        if facts["frozen"]:
            why = "; all parameters of the model have requires_grad=False"
            fix = Fix(
                "let parameters learn: requires_grad_() for those that shall be trained",
                reason="a graph begins at what requires a gradient, and nothing does",
                obstacle="the line that freezes them is not seen",
                patches=[Patch.unfreeze([p.name for m in trace.models for p in m.parameters])],
            )
        elif not facts["graph"]:
            why = "; the model was run without a graph"
            fix = Fix(
                "run the model outside of torch.no_grad() and inference_mode()",
                reason="PyTorch documentation, autograd mechanics: no graph is recorded within",
                obstacle="where it is switched off is not seen, only that it is",
            )
        else:
            why = ", though the model ran with a graph: it was dropped in between"
            fix = explained(
                loss_fixes.reattached(
                    trace,
                    edits,
                    title="call backward() on the loss function's own result; .item() and .detach() are "
                    "for display",
                ),
                reason="∂loss/∂w goes along grad_fn, of which .item(), .detach() and torch.tensor() leave "
                "nothing",
                safety=Safety.SAFE,
            )
        yield Finding(
            f"this loss is {what}{why}; {cost}",
            where=incident.site,
            evidence={
                "is_leaf": facts["leaf"],
                "model_had_graph": facts["graph"],
                "frozen": facts["frozen"],
                "times": incident.count,
            },
            fixes=[fix],
            starved=1.0,
        )
