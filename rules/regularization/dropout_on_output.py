"""REG003 dropout-on-output."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Losses,
    Severity,
    SourceEdits,
    explained,
    heads,
    ops,
    removal_patches,
    rule,
)

# Between the dropout and the output these keep it an output: an arrangement, a mean, a last nonlinearity.
PROBABILITIES = {"sigmoid", "softmax", "log_softmax", "logsigmoid"}
PASSED = ops.REARRANGEMENTS | ops.SPATIAL | PROBABILITIES | {"tanh"}


@rule("REG003", severity=Severity.WARNING, since="0.1")
def dropout_on_output(graph: Graph, edits: SourceEdits, losses: Losses | None) -> Iterator[Finding]:
    """Dropout comes last: it deletes the model's answers and not its features.

    In training each logit is set to 0 with probability p, the true class's too, whatever the model has
    learnt, and the others are scaled by 1/(1 − p). The loss is compared with a random mask: for a
    target y the squared error cannot fall below y²·p/(1 − p), and a dropped true logit costs
    ln Σₖ e^{zₖ} however sure the model was. Dropout regularises where layers come after it that can
    learn to do without any one unit; behind the last layer there are none.

    Reported where the dropped tensor is what a layer with weights gives, or the sum of several such
    heads (wide and deep, value and advantage), and an output. A block that ends in dropout and returns
    the shape that it got is the branch of a residual connection (as in every transformer), and nothing
    is reported unless a loss or a softmax shows that it is an answer; nor for dropout of features,
    which a head is put on later.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.fc2 = nn.Linear(64, 10)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            return self.drop(self.fc2(x))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.drop = nn.Dropout(0.5)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            return self.fc2(self.drop(x))
    ```

    ## When to ignore it
    When the model is a part of another one, and what it returns are features for the next layer.

    ## Fix safety
    Unsafe: the model trains without that noise. Its outputs in eval mode are the same.

    ## References
    Srivastava et al. 2014, "Dropout", section 4 (the mask is applied to a layer's input); Hinton et al.
    2012, arXiv:1207.0580. Seed A, section on dropout.
    """
    reported: set[Any] = set()
    shapes = {graph.shape(node) for node in graph.nodes if node.op == "placeholder"}
    judged = [] if losses is None else [call.scores for call in losses.calls]
    for output in dict.fromkeys([*judged, *graph.outputs]):
        node, is_answer = _last(graph, output)
        if node is None or node in reported:
            continue
        if graph.shape(node) in shapes and not is_answer and output not in judged:
            continue  # the branch of a residual connection
        p = graph.argument(node, "p", 0.5)
        sources = heads(graph, node, ops.REARRANGEMENTS)
        if not sources or not p or graph.feeds_weights(node):
            continue
        reported.add(node)
        behind = " and ".join(dict.fromkeys(graph.label(source) for source in sources[-2:]))
        yield Finding(
            f"{graph.label(node)} drops {p:.0%} of the model's outputs, straight behind "
            f"{behind}: in training each answer is 0 with that probability, and no layer "
            "is left to make up for it",
            where=node,
            evidence={"p": p, "output": list(graph.shape(output) or ())},
            fixes=[
                _removed(graph, edits, node, p),
                Fix(
                    f"or move it in front of {behind}",
                    reason="Srivastava et al. 2014, section 4: the mask is applied to a layer's input",
                    obstacle="which layer it was meant for is its author's to say",
                ),
            ],
            confidence=Confidence.LIKELY,
            affects=[node],
        )


def _last(graph: Graph, output: Any) -> tuple[Any, bool]:
    """The dropout that the output comes from, and whether that gives probabilities."""
    node, is_answer = output, False
    while node is not None and node.op == "call_function":
        name = graph.name(node)
        if name in ops.DROPOUTS:
            return node, is_answer
        if name not in PASSED:
            break
        is_answer = is_answer or name in PROBABILITIES
        node = graph.data(node)
    return None, False


def _removed(graph: Graph, edits: SourceEdits, node: Any, p: float) -> Fix:
    """Identity for the layer, the argument for the call."""
    layer = graph.layer(node)
    title = "remove the dropout behind the last layer"
    reason = f"in training each answer is 0 with probability {p:g}, and no layer makes up for it"
    patches = removal_patches(graph, [node])
    site = graph.place(node)
    if layer is None:
        text = None if site is None else edits.text(site.filename)
        call = None if text is None or site is None else text.call_at(site)
        statement = None if text is None or call is None else text.statement_of(call)
        if isinstance(statement, ast.Assign) and statement.value is call:
            return explained(
                edits.removed(site, title=title),
                reason=reason,
                obstacle="its line does nothing else",
                patches=patches,
            )
        return edits.replaced_calls(
            [(site, _first_argument)], title=title, reason=reason, patches=patches
        )
    if len(graph.nodes_of_module.get(id(layer), ())) > 1 or len(graph.built_together(node)) > 1:
        why = "the layer works elsewhere as well"
        return Fix(title, obstacle=why, reason=reason, patches=patches)
    return edits.replaced_calls([(site, _identity)], title=title, reason=reason, patches=patches)


def _first_argument(call: ast.Call, source: str) -> str | None:
    if not ast.unparse(call.func).endswith("dropout") or not call.args:
        return None
    tree = ast.parse(source, mode="eval").body
    return ast.get_source_segment(source, tree.args[0]) if isinstance(tree, ast.Call) else None


def _identity(call: ast.Call, source: str) -> str | None:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    return f"{owner}.Identity()" if owner and "Dropout" in name and "\n" not in source else None
