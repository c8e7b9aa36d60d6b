"""ARC011 input-without-influence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Influence,
    Severity,
    Unused,
    resolved_methods,
    rule,
)


@rule("ARC011", severity=Severity.WARNING, since="0.1")
def input_without_influence(graph: Graph, influence: Influence) -> Iterator[Finding]:
    """An input, or a feature of it, changes no output.

    ∂f/∂x = 0 for this input, whatever its value: the model cannot learn from it, though somebody
    prepares it for every batch. Typical are a condition or time step that is passed along and never
    added, a modality whose branch was overwritten (`h = self.image(x); h = self.text(t)`), a slice that
    stops too early, or a value that went through `.item()`, `argmax` or a constant table on its way.

    trainlint changes the input in all samples and compares every output, in eval mode, then in train mode
    on another seed with small numbers in place of weights that are all zero: a zero-initialised gate
    hides an input only until the first step. Masks, and inputs that only a loss looks at, are no
    finding; an argument with a default is advice, since other settings of the model may use it. Columns
    of a table, channels of an image and features of a sequence are judged one by one, and positions of
    a sequence where more than half of them are lost (`out[:, 0]` of a causal or recurrent layer has seen
    one position alone): advice too, since a model may drop them on purpose. Where no input has any
    effect, constant-output names the place at which the samples become alike.

    ## Bad
    ```python
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Linear(1, 32)
            self.body = nn.Linear(16, 32)
            self.head = nn.Linear(32, 16)

        def forward(self, x, t):
            h = self.time(t)
            h = torch.relu(self.body(x))  # instead of h + ...
            return self.head(h)


    example_inputs = (torch.randn(4, 16), torch.rand(4, 1))
    ```

    ## Good
    ```python
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Linear(1, 32)
            self.body = nn.Linear(16, 32)
            self.head = nn.Linear(32, 16)

        def forward(self, x, t):
            h = self.time(t)
            h = torch.relu(h + self.body(x))
            return self.head(h)


    example_inputs = (torch.randn(4, 16), torch.rand(4, 1))
    ```

    ## When to ignore it
    When the argument is there for the sake of a common signature.

    ## Fix safety
    Shown without an edit.

    ## References
    Adebayo et al. 2018, arXiv:1810.03292: an explanation, or a model, that does not react to what it is
    given tells nothing of it.
    """
    for unused in influence.unused:
        if unused.features or unused.positions:
            yield _part(graph, unused)
        else:
            yield _whole(graph, unused)


def _whole(graph: Graph, unused: Unused) -> Finding:
    name = _parameter(graph, unused.input)
    optional = _is_optional(graph, name)
    return Finding(
        f"{name}{_shown(unused.shape)} changes no output: the model cannot learn from it",
        where=_place(graph, name),
        evidence={"input": name, "shape": list(unused.shape)},
        fixes=[
            Fix(
                f"use {name} in the forward, or take it out of the signature and the data",
                reason=f"∂output/∂{name} is 0 for all weights that were tried",
                obstacle="whether it was meant to be used, and where, only you know",
            )
        ],
        severity=Severity.INFO if optional else Severity.WARNING,
        confidence=Confidence.LIKELY if optional else Confidence.CERTAIN,
        fault=("unused-input", unused.input),
        affects=_users(unused.node),
    )


def _part(graph: Graph, unused: Unused) -> Finding:
    name = _parameter(graph, unused.input)
    places = unused.features or unused.positions
    kind = {2: "column", 3: "feature"}.get(len(unused.shape), "channel")
    kind = "position" if unused.positions else kind
    size = unused.shape[unused.axis or 0]
    seen = tuple(place for place in range(size) if place not in places)
    what = (
        f"only {kind} {_ranges(seen)} of the {size} of {name} changes the outputs"
        if len(seen) == 1
        else f"{len(places)} of the {size} {kind}s of {name} change no output: {_ranges(places)}"
    )
    return Finding(
        what,
        where=_place(graph, name),
        evidence={
            "input": name,
            "axis": unused.axis,
            "positions" if unused.positions else "features": list(places),
        },
        fixes=[
            Fix(
                f"use them, or leave them out of {name}",
                reason="what changes no output cannot be learnt from",
                obstacle="whether they were meant to be used, only you know",
            )
        ],
        severity=Severity.INFO,
        confidence=Confidence.LIKELY,
        fault=("unused-input", unused.input, unused.axis),
        affects=_users(unused.node),
    )


def _users(node: Any) -> list[Any]:
    return [] if node is None else [node, *node.users]


def _shown(shape: tuple[int, ...]) -> str:
    """Without the number of samples, which is the measurement's own."""
    return f" (·, {', '.join(map(str, shape[1:]))})" if len(shape) > 1 else ""


def _ranges(places: tuple[int, ...]) -> str:
    """`2, 5 to 7`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")


def _parameter(graph: Graph, name: str) -> str:
    """The argument of forward that the input was passed as."""
    match = re.match(r"input_(\d+)(.*)", name)
    if match is None:
        return name
    try:
        parameters = list(inspect.signature(graph.model.forward).parameters.values())
    except (TypeError, ValueError):
        return name
    place = int(match[1])
    if place >= len(parameters) or parameters[place].kind is inspect.Parameter.VAR_POSITIONAL:
        return name
    return parameters[place].name + match[2].replace("_", ".", 1)


def _is_optional(graph: Graph, name: str) -> bool:
    """Whether forward has a default for it: then other settings of the model may use it."""
    try:
        parameter = inspect.signature(graph.model.forward).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is None or parameter.default is not parameter.empty


def _place(graph: Graph, name: str) -> Any:
    """The argument in the signature of forward."""
    owner: type = type(graph.model)
    methods, _ = resolved_methods(owner)
    for method in methods:
        if method.name != "forward":
            continue
        arguments = method.tree.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg == name.partition(".")[0]:
                end = argument.end_col_offset or argument.col_offset
                return method.filename, argument.lineno, argument.col_offset + 1, end + 1
    return None
