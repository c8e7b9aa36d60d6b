"""NRM009 reused-batchnorm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Patch,
    Severity,
    SourceEdits,
    batch_norms,
    chain_back,
    keeps_statistics,
    ops,
    rule,
)

THROUGH = ops.REARRANGEMENTS | ops.DROPOUTS | ops.SPATIAL | ops.MAX_POOLS | ops.ACTIVATIONS


@rule("NRM009", severity=Severity.WARNING, since="0.1")
def reused_batchnorm(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """One BatchNorm normalises several streams, and its running statistics mix them.

    In training each call normalises by the mean and variance of its own input. The running statistics
    are common: call after call, r ← (1 − m)·r + m·(statistics of this call). In eval mode every call
    divides by that mixture, which fits none of them, so the model that is evaluated is another one than
    was trained. γ and β are shared as well. Activations have no state and may be shared; a BatchNorm
    belongs to one place.

    Where the layer in front or the layer behind is shared along with it, the whole block is used twice,
    as in a siamese network, over the levels of a pyramid or over time. That is a choice, and not
    reported. Reported are calls behind different layers, and calls that are written in several places.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
            self.conv2 = nn.Conv2d(16, 16, 3, bias=False)
            self.bn = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv1(x)))
            x = torch.relu(self.bn(self.conv2(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, bias=False)
            self.bn2 = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## When to ignore it
    Where the streams have the same statistics by construction.

    ## Fix safety
    Unsafe: each stream gets statistics, γ and β of its own. Made as an edit where the BatchNorm is assigned
    once, and each stream has a call of its own.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2; Yu et al. 2019, arXiv:1812.08928, section 3,
    on one BatchNorm for networks of several widths, and why each needs its own.
    """
    calls: dict[Any, list[Any]] = {}
    for norm in batch_norms(graph):
        if keeps_statistics(graph, norm):
            calls.setdefault(graph.argument(norm, "running_mean"), []).append(norm)
    for norms in calls.values():
        streams = _streams(graph, norms)
        feeds = {_feeds(graph, norm) for norm in norms}
        if len(streams) < 2 or (len(feeds) == 1 and feeds != {frozenset()}):
            continue
        names = [_described(graph, norm) for norm in streams]
        yield Finding(
            f"{graph.label(norms[0])} normalises {len(streams)} different streams "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): eval mode uses a mixture "
            "of their statistics",
            where=norms[0],
            evidence={"calls": len(norms), "streams": names},
            fixes=[_one_each(graph, edits, norms, streams)],
            affects=norms,
        )


def _streams(graph: Graph, norms: list[Any]) -> list[Any]:
    """One call for each stream: other layers stand before it, or it is written elsewhere as well."""
    layers = {norm: _layer(graph, norm) for norm in norms}
    by_layer = {_weights(graph, layer): norm for norm, layer in layers.items() if layer is not None}
    if len(by_layer) > 1:
        return sorted(by_layer.values(), key=graph.position)
    # A block that is run again calls its BatchNorm from the same place.
    by_place: dict[Any, Any] = {}
    for norm in norms:
        site, source = graph.operation(norm).site, _sources(graph, norm)
        if site is None or not source:
            return []
        by_place.setdefault((site.key, source), norm)
    places = {place for place, _ in by_place}
    distinct = {source for _, source in by_place}
    return list(by_place.values()) if len(places) == len(by_place) == len(distinct) else []


def _described(graph: Graph, norm: Any) -> str:
    layer, site = _layer(graph, norm), graph.operation(norm).site
    if layer is not None or site is None:
        return f"behind {graph.label(layer)}" if layer is not None else graph.label(norm)
    return f"line {site.row}"


def _one_each(graph: Graph, edits: SourceEdits, norms: list[Any], streams: list[Any]) -> Fix:
    """Another BatchNorm for each stream but the first: a line behind the constructor, and its calls."""
    title = _title(graph, norms[0], len(streams))
    reason = "Ioffe & Szegedy 2015, algorithm 2: the running statistics are those of one input"
    patches = _patches(graph, norms, streams)
    made = graph.constructed(norms[0])
    text = None if made is None else edits.text(made.filename)
    call = None if text is None or made is None else text.call_at(made)
    statement = None if text is None or call is None else text.statement_of(call)
    if (
        text is None
        or not isinstance(statement, ast.Assign)
        or statement.value is not call
        or len(statement.targets) != 1
    ):
        return Fix(
            title,
            reason=reason,
            patches=patches,
            obstacle="it is not made by one assignment of its own",
        )
    target, source = ast.unparse(statement.targets[0]), ast.get_source_segment(text.text, call)
    by_stream = {norm: (graph.operation(norm).site, number) for number, norm in enumerate(streams)}
    keys = [site.key for site, _ in by_stream.values() if site is not None]
    if len(set(keys)) < len(streams) or source is None:
        return Fix(
            title,
            reason=reason,
            patches=patches,
            obstacle="several streams come through one call of it",
        )
    if len({site.key for n in norms if (site := graph.operation(n).site) is not None}) > len(keys):
        return Fix(
            title,
            reason=reason,
            patches=patches,
            obstacle="a stream is normalised by several calls",
        )
    if not all(_is_called_at(graph, module, keys) for module in graph.built_together(norms[0])):
        obstacle = "its line makes others, which are not called in all these places"
        return Fix(title, reason=reason, patches=patches, obstacle=obstacle)
    calls = [
        edits.replaced_calls([(site, _renamed(target, f"{target}_{number + 1}"))], title=title)
        for site, number in by_stream.values()
        if number
    ]
    lines = [f"{target}_{number + 1} = {source}" for number in range(1, len(streams))]
    indent = text.lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    added = edits.beside(text, statement, after=f"\n{indent}".join(lines), title=title)
    return edits.together(added, *calls, title=title, reason=reason, patches=patches)


def _patches(graph: Graph, norms: list[Any], streams: list[Any]) -> list[Patch]:
    """A copy for each call, where each call is a stream of its own."""
    if graph.layer(norms[0]) is None or len(norms) != len(streams):
        return []
    together = {id(module) for module in graph.built_together(norms[0])}
    together.add(id(graph.layer(norms[0])))
    return [
        Patch.separate(name, len(norms))
        for name, module in graph.model.named_modules()
        if id(module) in together and len(graph.nodes_of_module.get(id(module), [])) == len(norms)
    ]


def _is_called_at(graph: Graph, module: Any, keys: list[Any]) -> bool:
    """Whether a layer is called at all these places, so that what suits another suits it."""
    sites = [graph.operation(node).site for node in graph.nodes_of_module.get(id(module), [])]
    return {site.key for site in sites if site is not None} == set(keys)


def _renamed(old: str, new: str) -> Any:
    def rewrite(call: ast.Call, source: str) -> str | None:
        return new + source.removeprefix(old) if ast.unparse(call.func) == old else None

    return rewrite


def _title(graph: Graph, norm: Any, count: int) -> str:
    layer = graph.layer(norm)
    name = graph.label(norm)
    if layer is None:
        return "running statistics of its own for each"
    features = getattr(layer, "num_features", "…")
    each = ", ".join([name, *(f"{name}_{number}" for number in range(2, min(count, 3) + 1))])
    return f"one each: {each}{', …' if count > 3 else ''} = nn.{type(layer).__name__}({features})"


def _layer(graph: Graph, norm: Any) -> Any:
    """The layer whose output the BatchNorm normalises, if one does that alone."""
    for node in chain_back(graph, norm):
        if graph.is_weighted(node):
            return node
        if not graph.is_transparent(node, THROUGH):
            break
    return None


def _weights(graph: Graph, layer: Any) -> frozenset[Any]:
    """What makes a layer's weight: a normalised weight is computed anew at each call."""
    leaves, stack = set(), [graph.argument(layer, "weight")]
    while stack:
        node = stack.pop()
        if node.op == "get_attr":
            leaves.add(node)
        stack.extend(node.all_input_nodes)
    return frozenset(leaves)


def _sources(graph: Graph, norm: Any) -> frozenset[Any]:
    """The parameters of the nearest operations with parameters that lead to the BatchNorm."""
    found: set[Any] = set()
    stack, seen = graph.varying_inputs(norm), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        own = {parameter.name for parameter in graph.parameters_of(node)}
        found |= own
        if not own:
            stack.extend(graph.varying_inputs(node))
    return frozenset(found)


def _feeds(graph: Graph, norm: Any) -> frozenset[Any]:
    """The weights of the layers that take what the BatchNorm gives."""
    return frozenset(
        leaf
        for node in graph.consumers(norm, THROUGH)
        if graph.is_weighted(node)
        for leaf in _weights(graph, node)
    )
