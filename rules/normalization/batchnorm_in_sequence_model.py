"""NRM003 batchnorm-in-sequence-model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Severity,
    SourceEdits,
    axis_after,
    batch_norms,
    ops,
    rule,
)


@rule("NRM003", severity=Severity.WARNING, since="0.1")
def batchnorm_in_sequence_model(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """BatchNorm normalises the tokens of sequences whose length varies.

    BatchNorm takes one mean and variance for each channel over all samples and positions of the batch.
    In a batch of texts these depend on how long the texts are and how much of the tensor is padding,
    so they change from batch to batch, and what eval mode uses instead, their running mean, fits none.
    Every token also sees all others through them, those of other samples and of the future too.
    LayerNorm takes them over the features of one token, whatever the batch and the length.

    It is a warning where token ids run through attention or a recurrent layer. For other sequences,
    which may well be of one length (windows of a sensor), it is advice, and nothing where a table of
    positions fixes the length. BatchNorm behind a convolution, over images, and over one vector a
    sample is not meant.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(100, 32)
            self.rnn = nn.LSTM(32, 32, batch_first=True)
            self.norm = nn.BatchNorm1d(32)
            self.rnn2 = nn.LSTM(32, 32, batch_first=True)
            self.head = nn.Linear(32, 2)

        def forward(self, tokens):
            x, _ = self.rnn(self.embedding(tokens))
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
            x, _ = self.rnn2(x)
            return self.head(x[:, -1])
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(100, 32)
            self.rnn = nn.LSTM(32, 32, batch_first=True)
            self.norm = nn.LayerNorm(32)
            self.rnn2 = nn.LSTM(32, 32, batch_first=True)
            self.head = nn.Linear(32, 2)

        def forward(self, tokens):
            x, _ = self.rnn(self.embedding(tokens))
            x, _ = self.rnn2(self.norm(x))
            return self.head(x[:, -1])
    ```

    ## When to ignore it
    Where all sequences have one length and no padding, and batches are large, as in some transformers
    for time series.

    ## Fix safety
    Unsafe: another function is learnt. An edit is made where the tokens are flattened to (tokens,
    features), or where the transposes stand right around the BatchNorm and go with it.

    ## References
    Seed B, section 1.3. Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 1; Shen et al. 2020,
    arXiv:2003.07845, section 3, on BatchNorm in transformers for text.
    """
    mixers = _mixers(graph)
    if not mixers:
        return
    found: dict[bool, list[Any]] = {True: [], False: []}
    tokens = _behind(graph, [node for node in graph.calls("embedding") if _looks_up(graph, node)])
    mixed = _behind(graph, mixers)
    for norm in batch_norms(graph):
        if not _over_tokens(graph, norm) or _only_convolved(graph, norm):
            continue
        if norm not in mixed and not _behind(graph, [norm]) & set(mixers):
            continue
        if norm in tokens or not _has_one_length(graph, norm):
            found[norm in tokens].append(norm)
    for of_text, norms in found.items():
        if norms:
            yield _finding(graph, edits, norms, of_text=of_text, mixer=mixers[0])


def _finding(
    graph: Graph, edits: SourceEdits, norms: list[Any], *, of_text: bool, mixer: Any
) -> Finding:
    norm = norms[0]
    each = "position" if _per_position(graph, norm) else "feature"
    more = f" ({len(norms)} such layers)" if len(norms) > 1 else ""
    cost = (
        "padding and length change them from batch to batch"
        if of_text
        else "if the sequences differ in length, padding changes them from batch to batch"
    )
    return Finding(
        f"{graph.label(norm)} takes one mean and variance a {each} over all tokens of the "
        f"batch{more}: {cost}",
        where=norm,
        evidence={
            "shape": list(graph.shape(norm) or ()),
            "modules": list(dict.fromkeys(graph.path(other) for other in norms)),
            "sequence_layer": graph.label(mixer),
        },
        fixes=[_fix(graph, edits, norm, norms)],
        severity=Severity.WARNING if of_text else Severity.INFO,
        confidence=Confidence.LIKELY if of_text else Confidence.POSSIBLE,
        affects=norms,
    )


def _fix(graph: Graph, edits: SourceEdits, norm: Any, norms: list[Any]) -> Fix:
    """LayerNorm over the features; what brought them to axis 1 for the BatchNorm goes with it."""
    shape = graph.shape(norm) or ()
    reason = "Ba, Kiros & Hinton 2016: its mean and variance are those of one token"
    if any(_per_position(graph, other) for other in norms):
        obstacle = "the number of features is not the one that the BatchNorm was given"
        return Fix("LayerNorm over the features of each token", reason=reason, obstacle=obstacle)
    is_flat = len(shape) == 2
    where = "over the features of each token" if is_flat else "without the transposes around it"
    widths = {(graph.shape(other) or (0, 0))[1] for other in norms}
    sizes = ", ".join(f"nn.LayerNorm({width})" for width in sorted(widths))
    title = f"{sizes} {where}"
    used = {id(graph.layer(other)) for other in norms}
    together = {id(module) for other in norms for module in graph.built_together(other)}
    if any(graph.layer(other) is None for other in norms) or not together <= used:
        obstacle = "a line that makes them makes BatchNorms of another use as well"
        return Fix(title, reason=reason, obstacle=obstacle)

    constructed = [graph.constructed(other) for other in norms]
    places = {site.key: site for site in constructed if site is not None}
    for site in places.values():
        text = edits.text(site.filename)
        call = None if text is None else text.call_at(site)
        if call is None or len(call.args) != 1 or call.keywords:
            return Fix(title, reason=reason, obstacle="its constructor has arguments of its own")
    made = edits.callee(list(places.values()), "BatchNorm1d", "LayerNorm", title=title)
    sites = {
        site.key: site
        for other in norms
        if len(graph.shape(other) or ()) == 3
        for site in [graph.operation(other).site]
        if site is not None
    }
    moved = [_without_transposes(edits, site, title) for site in sites.values()]
    return edits.together(made, *moved, title=title, reason=reason)


def _without_transposes(edits: SourceEdits, site: Any, title: str) -> Fix:
    """`self.norm(x)` for `self.norm(x.transpose(1, 2)).transpose(1, 2)`."""
    text = edits.text(site.filename)
    call = None if text is None else text.call_at(site)
    obstacle = "the transposes around the BatchNorm do not stand beside it"
    if text is None or text.tree is None or call is None or len(call.args) != 1:
        return Fix(title, obstacle=obstacle)
    outer = next(
        (
            node
            for node in ast.walk(text.tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.value is call
        ),
        None,
    )
    inner = call.args[0]
    if outer is None or not _swaps(outer) or not (isinstance(inner, ast.Call) and _swaps(inner)):
        return Fix(title, obstacle=obstacle)
    assert isinstance(inner.func, ast.Attribute)
    given = ast.get_source_segment(text.text, inner.func.value)
    content = f"{ast.unparse(call.func)}({given})"
    return edits.replaced_expression(text, outer, content, title=title)


def _swaps(call: ast.Call) -> bool:
    """Whether it exchanges the last two of three axes."""
    if not isinstance(call.func, ast.Attribute) or call.keywords:
        return False
    try:
        axes = [ast.literal_eval(value) for value in call.args]
    except ValueError:
        return False
    if call.func.attr in ("transpose", "swapaxes", "swapdims"):
        return len(axes) == 2 and {axis % 3 for axis in axes} == {1, 2}
    return call.func.attr == "permute" and axes in ([0, 2, 1], [(0, 2, 1)])


def _mixers(graph: Graph) -> list[Any]:
    """The operations that let positions of a sequence see each other: attention and recurrence."""
    return [
        node
        for node in graph.calls_in_order
        if graph.is_live(node)
        and (graph.name(node) in ops.ATTENTION | ops.RECURRENT or _is_attention(graph, node))
    ]


def _is_attention(graph: Graph, node: Any) -> bool:
    return graph.name(node) == "softmax" and any(
        graph.name(user) in ("matmul", "einsum") for user in graph.consumers(node)
    )


def _looks_up(graph: Graph, node: Any) -> bool:
    """Whether the ids that an embedding gets are an input of the model, not computed from numbers."""
    stack, seen = [graph.argument(node, "input")], set()
    while stack:
        source = stack.pop()
        if source in seen or graph.is_constant(source):
            continue
        if graph.is_floating(source):
            return False
        seen.add(source)
        stack.extend(source.all_input_nodes)
    return bool(seen)


def _behind(graph: Graph, nodes: list[Any]) -> set[Any]:
    """Everything that is computed from these."""
    found: set[Any] = set()
    stack = list(nodes)
    while stack:
        for user in stack.pop().users:
            if user not in found and graph.is_live(user):
                found.add(user)
                stack.append(user)
    return found


def _over_tokens(graph: Graph, norm: Any) -> bool:
    """Whether the BatchNorm's statistics run over the positions of sequences."""
    shape = graph.shape(norm)
    source, passed = graph.producer(norm)
    if shape is None or source is None:
        return False
    if len(shape) == 3:
        return shape[2] > 1
    if len(shape) != 2:
        return False
    # (batch, length, features) flattened to (batch · length, features) and back
    before = graph.shape(source)
    return (
        before is not None
        and len(before) == 3
        and axis_after(graph, source, 2, passed) == 1
        and before[1] > 1
    )


def _only_convolved(graph: Graph, norm: Any) -> bool:
    """Whether the BatchNorm belongs to convolutions: no other layer stands right before it."""
    kinds: set[str] = set()
    stack, seen = graph.varying_inputs(norm), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = graph.name(node)
        if graph.is_weighted(node) or name == "embedding" or name in ops.ATTENTION | ops.RECURRENT:
            kinds.add(name)
        else:
            stack.extend(graph.varying_inputs(node))
    return bool(kinds) and kinds <= ops.CONVOLUTIONS


def _has_one_length(graph: Graph, norm: Any) -> bool:
    """Whether the sequence is an image's, or a table of positions fixes how long it is."""
    stack, seen = [norm], {norm}
    while stack:
        node = stack.pop()
        name = graph.name(node)
        if name in ("conv2d", "conv3d"):
            return True
        if name == "add" and _adds_table(graph, node):
            return True
        new = [source for source in graph.varying_inputs(node) if source not in seen]
        seen.update(new)
        stack.extend(new)
    return False


def _adds_table(graph: Graph, node: Any) -> bool:
    """Whether a whole tensor of (length, features) is added, not the part that the input asks for."""
    shape = graph.shape(node) or ()
    return len(shape) >= 3 and any(
        source.op == "get_attr" and (graph.shape(source) or ())[-2:] == shape[-2:]
        for source in node.all_input_nodes
    )


def _per_position(graph: Graph, norm: Any) -> bool:
    """Whether the channel axis of the BatchNorm holds the positions: (batch, length, features) as it is."""
    source, passed = graph.producer(norm)
    if source is None or len(graph.shape(source) or ()) != 3:
        return False
    return axis_after(graph, source, 1, passed) == 1
