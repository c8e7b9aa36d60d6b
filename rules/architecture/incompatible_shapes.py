"""ARC013 incompatible-shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Mismatch,
    Severity,
    blames_the_model,
    disagreement,
    is_follow_up,
    mismatches,
    rule,
)


@rule("ARC013", severity=Severity.ERROR, since="0.1")
def incompatible_shapes(graph: Graph) -> Iterator[Finding]:
    """An operation in the forward refuses its operands.

    Sums, concatenations, matrix products and reshapes have conditions on the shapes of their operands;
    where they do not hold, PyTorch raises at that line. trainlint confirms the error with eager PyTorch
    on the CPU, reports it with the shapes, and goes on behind it.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(8, 16)
            self.right = nn.Linear(8, 24)

        def forward(self, x):
            return self.left(x) + self.right(x)


    example_inputs = torch.randn(4, 8)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(8, 16)
            self.right = nn.Linear(8, 16)

        def forward(self, x):
            return self.left(x) + self.right(x)


    example_inputs = torch.randn(4, 8)
    ```

    ## When to ignore it
    When the inputs are not those of your data: give the right ones as `example_inputs` or `--inputs`.
    With inputs that trainlint made up such an error is no finding; it is the reason why the model could
    not be analysed.

    ## Fix safety
    No edit: which of the operands is wrong only you know.

    ## References
    Broadcasting semantics, in the PyTorch documentation.
    """
    wrong_widths = mismatches(graph)
    explained = {mismatch.node for mismatch in wrong_widths}
    for node in graph.faults:
        error = graph.operation(node).error
        wrong_rank_norm = (
            graph.name(node) == "module_error"
            and "Norm" in type(graph.operation(node).owner).__name__
        )
        if node in explained or wrong_rank_norm or not blames_the_model(graph, node):
            continue
        if is_follow_up(graph, node):
            continue  # the shape that it refuses was only guessed
        shapes = [graph.shape(source) for source in node.all_input_nodes if graph.shape(source)]
        shown = " and ".join("(" + ", ".join(map(str, dims)) + ")" for dims in shapes[:3] if dims)
        reason = str(error).strip().partition("\n")[0]
        cause = next(
            (
                wrong.fault
                for wrong in wrong_widths
                if node in wrong.agreeing
                or (graph.position(wrong.node) < graph.position(node)
                    and _has_same_cause(graph, node, wrong, shapes))
            ),
            ("shapes", id(node)),
        )  # fmt: skip
        yield Finding(
            f"`{graph.name(node)}` refuses {shown}: {reason}",
            where=node if graph.layer(node) is None else graph.operation(node).site,
            module=graph.operation(node).module,
            evidence={"shapes": [list(dims) for dims in shapes if dims], "error": reason},
            fixes=[Fix("make the shapes agree at this line")],
            fault=cause,
            starved=1.0,
        )


def _has_same_cause(graph: Graph, node: Any, wrong: Mismatch, shapes: list[Any]) -> bool:
    """Whether it is refused for the width that a layer was refused for; a reshape for many times that."""
    expected, received = wrong.wants.expected, wrong.wants.received
    sizes = {size for dims in shapes for size in dims or ()} | set(_numbers(node.args))
    if {expected, received} <= sizes:
        return True
    found = disagreement(graph, node) if graph.name(node) == "reshape" else None
    return found is not None and found[0] * expected == found[1] * received


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in an argument: a reshape names its sizes."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
