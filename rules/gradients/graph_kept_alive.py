"""GRD008 graph-kept-alive."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)


@rule("GRD008", severity=Severity.WARNING, since="0.1", explains=["out-of-memory"])
def graph_kept_alive(trace: Trace, edits: SourceEdits, *, times: int = 2) -> Iterator[Finding]:
    """The autograd graphs of earlier steps are never freed, so that memory grows with every step.

    A loss is a tensor that holds the graph which made it: a node for each operation, and after
    `retain_graph=True`, or in a custom `Function`, the activations as well. `losses.append(loss)` keeps
    one graph for each step, `total += loss` chains them all. Memory grows until it is used up, hours
    later and at a line that has nothing to do with it. `loss.item()` is a number and holds nothing;
    `loss.detach()` keeps the tensor without the graph, and does not wait for the device.

    trainlint watches the graphs that were given to `backward()`. Reported where, `times` times at an
    interval of eight steps, eight or more graphs of earlier steps were still there. The place that is
    named is where the variable that keeps them gets them, or else the backward pass: what keeps its loss
    stands after it. Losses of one episode that are added
    up before one backward pass are no finding.

    ## Bad
    ```python
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    print(sum(losses) / len(losses))
    ```

    ## Good
    ```python
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    print(sum(losses) / len(losses))
    ```

    ## When to ignore it
    For a window of fixed length, as of the last ten losses, which costs little; and where later steps
    differentiate through earlier ones.

    ## Fix safety
    Safe: the numbers are the same. The edit is `detach()`, which neither waits for the device, as `item()`
    does, nor changes the type of what is kept. None is made where it is not the loss itself that is kept.

    ## References
    PyTorch documentation, frequently asked questions, "My model reports CUDA error: out of memory".
    """
    for incident in trace.of("graphs-alive"):
        if incident.count >= times:
            keeper = incident.facts["keeper"]
            by = f", kept by {keeper}" if keeper else ""
            yield Finding(
                f"the graphs of {incident.facts['graphs']} earlier losses were still alive at step "
                f"{incident.step}{by}, and again {incident.count - 1} times later: memory grows with "
                "every step",
                where=incident.site,
                evidence={
                    "graphs": incident.facts["graphs"],
                    "first_step": incident.step,
                    "times": incident.count,
                },
                fixes=[
                    explained(
                        loops.released(
                            trace,
                            edits,
                            incident.site,
                            title="keep loss.detach() or loss.item(), not loss",
                        ),
                        reason="PyTorch FAQ: a loss holds the graph that made it, a detached one only its "
                        "number",
                        safety=Safety.SAFE,
                    )
                ],
            )
