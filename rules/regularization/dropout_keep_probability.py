"""REG001 dropout-keep-probability."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    ops,
    places,
    rule,
)


@rule("REG001", severity=Severity.WARNING, since="0.1")
def dropout_keep_probability(
    graph: Graph, edits: SourceEdits, *, least: float = 0.7
) -> Iterator[Finding]:
    """Dropout drops so much that its p looks like the probability to keep.

    torch's p is the probability to DROP a unit: in training, output = mask · x / (1 − p) with
    P(mask = 0) = p. Papers, the first TensorFlow and many courses give the probability to KEEP, so
    that their 0.8 is `p=0.2` here. The mean stays the same either way, but the variance that dropout
    adds is x²·p/(1 − p): a quarter of the signal's power for p = 0.2, four times its power for p = 0.8.
    Most of every gradient is then noise, the units that are left train on a fifth of the samples, and
    training and validation loss both stay high.

    Reported from a p of `least` on; right before the last layer only above it, since GoogLeNet's
    classifiers drop exactly 0.7 there. Hidden layers usually drop 0.1 to 0.5.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.drop = nn.Dropout(0.8)  # "keep 80%"
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc2(self.drop(torch.relu(self.fc1(x))))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.drop = nn.Dropout(0.2)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc2(self.drop(torch.relu(self.fc1(x))))
    ```

    ## When to ignore it
    When so much shall be dropped: in front of the classifier of a large pretrained network that is
    tuned on little data, or as the noise that an autoencoder removes.

    ## Fix safety
    Unsafe: the model trains with another noise. Its outputs in eval mode are the same.

    ## References
    Srivastava et al. 2014, "Dropout", sections 4 and 10 (there p is the probability to retain, 0.5 for
    hidden units and 0.8 for inputs). Szegedy et al. 2014, arXiv:1409.4842, section 5 (drops 0.7).
    Seed A, section on dropout (p is what it keeps). Documentation of `torch.nn.Dropout`.
    """
    seen: set[Any] = set()
    for node in graph.calls_in_order:
        p = _p(graph, node)
        if p is None or not least <= p <= 1 or not graph.is_live(node):
            continue
        if p == least and _is_before_the_last_layer(graph, node):
            continue
        place = graph.place(node)
        key = node if place is None else place.key
        if key not in seen:
            seen.add(key)
            yield _finding(graph, edits, node, p)


def _p(graph: Graph, node: Any) -> float | None:
    """The probability to drop, of dropout itself or within a larger layer."""
    name = graph.name(node)
    p: Any = None
    if name in ops.DROPOUTS:
        p = graph.argument(node, "p")
    elif name in ops.ATTENTION or name in ops.RECURRENT:
        layer = graph.layer(node)
        p = graph.argument(node, "dropout_p") or getattr(layer, "dropout", None)
        if name in ops.RECURRENT and getattr(layer, "num_layers", 1) < 2:
            return None  # it acts between layers only
    return float(p) if isinstance(p, (int, float)) and not isinstance(p, bool) else None


def _is_before_the_last_layer(graph: Graph, node: Any) -> bool:
    behind = graph.consumers(node)
    return bool(behind) and all(
        graph.is_weighted(user) and not graph.feeds_weights(user) for user in behind
    )


def _finding(graph: Graph, edits: SourceEdits, node: Any, p: float) -> Finding:
    keep = round(1 - p, 10)
    source, _ = graph.producer(node, ops.REARRANGEMENTS)
    of_what = "what it gets"
    if source is not None:
        name = graph.label(source)
        of_what = name if source.op == "placeholder" else f"what {name} gives"
    if keep > 0:
        effect = (
            f"drops {100 * p:.4g}% of {of_what} and scales the rest by {1 / keep:.3g}: noise of "
            f"{p / keep:.2g}× the signal's power"
        )
        meant = f"{p:g} as a probability to keep is p={keep:g} in torch"
    else:
        effect = f"drops all of {of_what}: nothing that depends on it can learn"
        meant = "to keep everything is p=0 in torch"
    return Finding(
        f"{graph.label(node)} with p={p:g} {effect}; {meant}",
        where=node,
        evidence={"p": p, "kept": keep, "noise_to_signal": p / keep if keep else None},
        fixes=[_fix(graph, edits, node, p, keep)],
        affects=[node],
    )


def _fix(graph: Graph, edits: SourceEdits, node: Any, p: float, keep: float) -> Fix:
    """Turn p into 1 − p where it stands in the call: dropout's own, or that of a larger layer."""
    is_layer = graph.layer(node) is not None
    title = f"set p={keep:g}: drop {100 * keep:.4g}%, keep {100 * p:.4g}%"
    reason = (
        f"Srivastava et al. 2014: hidden units are kept with 0.5, inputs with 0.8; torch's p drops, and "
        f"{p:g} to keep is 1 − {p:g} = {keep:g} to drop"
    )
    named = places(graph, [node])
    patches = []
    if named is not None and graph.name(node) in ops.DROPOUTS:
        modules, calls = named
        patches = [Patch.attribute(modules, p=keep)] if modules else []
        patches += [Patch("arguments", calls=calls, values={"p": keep})] if calls else []
    anywhere = 1_000  # only by keyword
    for position, name in (
        (int(not is_layer), "p"),
        (anywhere, "dropout"),
        (anywhere, "dropout_p"),
    ):
        value = int(keep) if keep == 0 else keep
        fix = edits.argument(
            graph.place(node),
            position,
            name,
            value,
            current=p,
            title=title,
            safety=Safety.UNSAFE,
            reason=reason,
            patches=patches,
        )
        if fix.edits:
            return fix
    return Fix(title, obstacle=fix.obstacle, reason=reason, patches=patches)
