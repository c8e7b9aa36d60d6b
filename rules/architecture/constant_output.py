"""ARC012 constant-output."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Finding, Fix, Graph, Influence, Severity, rule


@rule("ARC012", severity=Severity.WARNING, since="0.1", explains=["input-without-influence"])
def constant_output(graph: Graph, influence: Influence) -> Iterator[Finding]:
    """All samples of a batch get the same output.

    Somewhere in the model the differences between samples are lost: f(xᵢ) = c for all i. What remains
    to learn is the best constant, the mean of the targets or the class frequencies, and training stops
    there: the gradient by the weights before that place is zero or too small to matter. Causes are
    weights so small that only biases pass (σ = 0.001 through several layers), units that are all
    saturated or all dead, a softmax over one number, or an average over the samples.

    trainlint runs three different samples in eval mode and compares every output that has a sample axis;
    all must agree to 1e-5 of their scale, and to 1e-7 on another seed with BatchNorm in train mode, since
    fresh running statistics shrink the signal. If zero weights are the reason, this rule is silent:
    zero-weights says which of them matter.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)
            for layer in (self.fc1, self.fc2, self.fc3):
                nn.init.normal_(layer.weight, std=1e-4)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)
            for layer in (self.fc1, self.fc2, self.fc3):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## When to ignore it
    When the outputs depend on the input only after other weights are loaded.

    ## Fix safety
    Shown without an edit: it depends on where the differences are lost.

    ## References
    Glorot & Bengio 2010, section 4.2 (the variance of what layers pass on); He et al. 2015,
    arXiv:1502.01852, section 2.2. Seed B, section 1.1.
    """
    constant = influence.constant
    if constant is None:
        return
    last = next((node for node in graph.outputs if not graph.is_constant(node)), None)
    yield Finding(
        f"all samples get the same output: they differ by {constant.spread:.1g} of its size, so that "
        "only a constant can be learnt",
        where=last,
        evidence={
            "spread": constant.spread,
            "scale": constant.scale,
            "samples": influence.batch,
        },
        fixes=[
            Fix(
                "look for where the samples become alike: small weights (He or Xavier initialisation "
                "keeps the variance), saturated or dead units (normalisation before them)"
            )
        ],
        # The whole model is concerned: any fault in it may be the cause.
        affects=[node for node in graph.calls_in_order if graph.is_live(node)],
    )
