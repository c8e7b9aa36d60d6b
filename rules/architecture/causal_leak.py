"""ARC009 causal-leak."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Influence,
    Leak,
    Losses,
    Patch,
    Severity,
    SourceEdits,
    Spot,
    explained,
    ops,
    places,
    rule,
)

# Where these let positions see each other, they run along the sequence.
OVER_TIME = {"mean", "sum", "max", "amax", "min", "amin", "std", "var", "norm", "roll", "flip"}
OVER_TIME |= {"batch_norm", "instance_norm", "group_norm", "layer_norm", "adaptive_avg_pool1d"}


@rule("ARC009", severity=Severity.WARNING, since="0.1")
def causal_leak(
    graph: Graph,
    influence: Influence,
    losses: Losses | None,
    edits: SourceEdits,
    *,
    shift: float = 1e-5,
) -> Iterator[Finding]:
    """A model that predicts the next token sees it.

    A causal model factors p(x) = ∏ p(xₜ | x₁ … xₜ₋₁): the output at t must not depend on x at t + 1 or
    later, which is its own target. One attention without its mask, one convolution padded on both
    sides, one mean over time is enough to break that: the loss falls towards 0, since the answer
    stands in the input, and generation, where the future does not exist yet, is nonsense.

    trainlint differentiates the outputs of the first half of a sequence by its second half, in eval
    mode: the gradient must be zero. Then it changes the later positions and measures how far the
    earlier outputs move (`shift` is the least that counts, relative to their scale); the first
    operation whose early positions move is named. It speaks up only where the model claims to be causal:
    most of the self-attention that this input reaches first has a triangular mask, or the loss
    compares the outputs with the same sequence one step later: in the forward, by the numbers of its
    target; in the file, by slices such as `ids[:, :-1]` and `ids[:, 1:]`, also in a dataset or in the
    function that fetches what `model(x, y)` is given. Encoders,
    which see everything, are silent, and so are inputs that reach masks only behind a cross-attention.

    ## Bad
    ```python
    class Attention(nn.Module):
        def __init__(self, causal=False):
            super().__init__()
            self.qkv = nn.Linear(32, 96)
            self.causal = causal

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


    class TinyGPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 32)
            self.first = Attention(causal=True)
            self.second = Attention(causal=True)
            self.third = Attention()
            self.head = nn.Linear(32, 50)

        def forward(self, ids):
            x = self.embed(ids)
            x = x + self.first(x)
            x = x + self.second(x)
            x = x + self.third(x)
            return self.head(x)


    example_inputs = torch.randint(0, 50, (2, 16))
    ```

    ## Good
    ```python
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)


    class TinyGPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 32)
            self.first = Attention()
            self.second = Attention()
            self.head = nn.Linear(32, 50)

        def forward(self, ids):
            x = self.embed(ids)
            x = x + self.first(x)
            x = x + self.second(x)
            return self.head(x)


    example_inputs = torch.randint(0, 50, (2, 16))
    ```

    ## Figures
    - `shift`: how far the outputs at the first `positions` moved when the later ones were changed, over
      their size.
    - `gradient of later positions`: the share of the gradient of these outputs that goes to the later
      positions.
    - `attentions with mask`, `attentions without`: the self-attentions that the input reaches first, by
      whether they have a triangular mask.

    ## When to ignore it
    When some layers may look ahead by design, as in a prefix language model.

    ## Fix safety
    Unsafe: earlier positions lose what they saw. Made as an edit for scaled_dot_product_attention without a
    mask; which mask is meant elsewhere depends on the attention.

    ## References
    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3 (illegal connections are masked with -∞).
    Causal convolutions: van den Oord et al. 2016, arXiv:1609.03499, section 2.1.
    """
    leak = influence.leak
    if leak is None or (leak.shift is not None and leak.shift <= shift):
        return
    by_loss = leak.is_target or (losses is not None and _predicts_next(graph, losses, leak))
    by_masks = len(leak.causal) > len(leak.open) and leak.shift is not None
    if not by_loss and not by_masks:
        return
    spot = leak.spot or next(iter(leak.open), None)
    label = "the model" if spot is None else spot.label
    claim = (
        "the loss asks for the next position"
        if by_loss
        else f"{len(leak.causal)} of {len(leak.causal) + len(leak.open)} attentions have a causal mask"
    )
    moved = (
        f"they move by {leak.shift:.1%} when these change" if leak.shift else "measured by gradient"
    )
    yield Finding(
        f"{label} lets earlier positions see later ones ({moved}), though {claim}: the model reads its "
        "own targets, and cannot generate",
        where=_place(graph, spot),
        module=None if spot is None else spot.module,
        evidence={
            "shift": leak.shift,
            "gradient_of_later_positions": leak.gradient,
            "positions": leak.positions,
            "attentions_with_mask": len(leak.causal),
            "attentions_without": len(leak.open),
        },
        fixes=[_fix(graph, edits, spot)],
        confidence=Confidence.CERTAIN if leak.shift else Confidence.LIKELY,
        affects=[s.node for s in (spot, *leak.open) if s is not None and s.node is not None],
    )


def _place(graph: Graph, spot: Spot | None) -> Any:
    if spot is None:
        return graph.outputs[0] if graph.outputs else None
    # A layer's own forward pads at a line of its own, which its constructor does not show.
    return spot.site if spot.name == "pad" else spot.where


def _fix(graph: Graph, edits: SourceEdits, spot: Spot | None) -> Fix:
    name = "" if spot is None else spot.name
    reason = "Vaswani et al. 2017, section 3.2.3: exp(-∞) = 0 leaves later positions out"
    if name == "scaled_dot_product_attention" and spot is not None:
        named = None if spot.node is None else places(graph, [spot.node])
        patches = (
            [Patch("arguments", calls=named[1], values={"is_causal": True})]
            if named is not None and named[1]
            else []
        )
        return explained(
            edits.replaced_calls(
                [(spot.site, _causal)],
                title="F.scaled_dot_product_attention(q, k, v, is_causal=True)",
            ),
            reason=reason,
            obstacle="the call has a mask, or other arguments, already",
            patches=patches,
        )
    if name == "multi_head_attention_forward":
        return Fix(
            "pass attn_mask=nn.Transformer.generate_square_subsequent_mask(length) and is_causal=True",
            reason=reason,
            obstacle="what the length is called in the forward is not known",
        )
    if name.startswith("conv") or name == "pad":
        return Fix(
            "pad on the left only: F.pad(x, ((kernel - 1) * dilation, 0)), and padding=0",
            reason="van den Oord et al. 2016: a filter that ends at t does not see t + 1",
            obstacle="constructor and forward change together",
        )
    if name in ops.RECURRENT:
        return Fix(
            "bidirectional=False: the way back reads the answer",
            reason="the state of the way back at t holds all that comes after t",
            obstacle="every width behind it is halved with it",
        )
    if name in OVER_TIME:
        return Fix(
            f"take {name} over the features of each position, or over the positions up to it",
            reason=f"{name} over all positions tells the first one of the last",
            obstacle="which of the two is meant, only you know",
        )
    return Fix(
        "before the softmax: scores.masked_fill(torch.ones(T, T).triu(1).bool(), float('-inf')), in "
        "every layer",
        reason=reason,
        obstacle="what scores and length are called in the forward is not known",
    )


def _causal(call: ast.Call, source: str) -> str | None:
    known = {word.arg for word in call.keywords}
    if len(call.args) > 3 or None in known or known & {"is_causal", "attn_mask"}:
        return None
    if any(isinstance(value, ast.Starred) for value in call.args):
        return None
    body = source[:-1].rstrip().removesuffix(",")
    return f"{body}, is_causal=True)"


def _predicts_next(graph: Graph, losses: Losses, leak: Leak) -> bool:
    """Whether the targets that were given are the input's own later tokens."""
    source = next(
        (n for n in graph.nodes if n.op == "placeholder" and n.target == leak.input), None
    )
    ids = None if source is None else graph.operation(source).tensor
    targets = losses.targets
    if ids is None or getattr(targets, "shape", None) != ids.shape or ids.dim() != 2:
        return False
    return not bool((ids == ids.flatten()[0]).all()) and bool((targets[:, :-1] == ids[:, 1:]).all())
