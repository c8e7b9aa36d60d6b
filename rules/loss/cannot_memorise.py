"""LOS009 cannot-memorise."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Losses,
    Memorisation,
    Severity,
    SourceEdits,
    rule,
    without_activation,
)

BOUNDED = {"sigmoid": "0 to 1", "tanh": "−1 to 1", "relu": "0 and more", "softmax": "0 to 1"}
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


@rule(
    "LOS009",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting"],
    own=["loss"],
)
def cannot_memorise(
    memory: Memorisation,
    graph: Graph | None,
    losses: Losses | None,
    edits: SourceEdits | None,
    *,
    left: float = 0.5,
    weights: int = 4,
) -> Iterator[Finding]:
    """Trained on 16 samples alone, the model does not learn them by heart.

    16 samples need no generalisation: a model with as many weights as there are labels can store them,
    and with Adam most do so within some dozens of steps. One that stays near the best answer that ignores
    the input has a fault in itself, or too little room: a layer through which next to nothing passes,
    samples that are mixed up or thrown together on the way, an output that cannot take the values of the
    targets, no nonlinearity where the task asks for one. Data, order, regularisation and learning rate are
    ruled out.

    The probe takes the first batch of the loader, at most 16 samples of it, and trains 60 steps with
    Adam at 3e-3, 3e-4 and 3e-2 in turn, dropout off, until one leaves less than half of the best
    constant answer's loss; if none does, the best of them once more with 400 steps. Reported where more
    than the share `left` is left. Advice only for a model with fewer than `weights` weights for each
    target. Not measurable with fewer than 8 samples, where equal samples have different targets, and for
    losses whose best constant answer is not known.

    ## Bad
    ```python
    x = torch.randn(64, 8)
    y = 3 * x.sum(1, keepdim=True) + 5
    train_loader = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1), nn.Tanh())
    criterion = nn.MSELoss()
    ```

    ## Good
    ```python
    x = torch.randn(64, 8)
    y = 3 * x.sum(1, keepdim=True) + 5
    train_loader = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    criterion = nn.MSELoss()
    ```

    ## When to ignore it
    When the model is small on purpose, such as a linear baseline, or its output is random by design.

    ## Fix safety
    Unsafe where an activation behind the last layer is taken out, since answers lie elsewhere then. Else
    only shown: what is too narrow is its author's to say.

    ## References
    Karpathy 2019, "A Recipe for Training Neural Networks" ("overfit one batch"); Zhang et al. 2017,
    "Understanding deep learning requires rethinking generalization", section 2 (finite-sample
    expressivity).
    """
    if memory.left <= left:
        return
    is_small = memory.trainable < weights * memory.outputs
    reason = f"; its {memory.trainable} weights may be too few for that" if is_small else ""
    yield Finding(
        f"{memory.samples} samples are not learnt by heart: after {len(memory.losses)} steps of Adam on "
        f"them alone the loss is {min(memory.losses):.3g}, that of the best answer that ignores the input "
        f"{memory.guess:.3g}{reason}",
        where=memory.site,
        evidence={
            "samples": memory.samples,
            "least_loss": round(min(memory.losses), 6),
            "constant_answer": round(memory.guess, 6),
            "learning_rate": memory.rate,
            "parameters": memory.trainable,
        },
        fixes=_fixes(memory, graph, losses, edits),
        severity=Severity.INFO if is_small else None,
        confidence=Confidence.LIKELY,
    )


def _fixes(
    memory: Memorisation, graph: Graph | None, losses: Losses | None, edits: SourceEdits | None
) -> list[Fix]:
    wider = Fix(
        "widen the layers where the fewest numbers pass, or add a nonlinear one",
        reason=f"Zhang et al. 2017: {memory.samples} samples need about as many units; {memory.outputs} "
        f"targets meet {memory.trainable} weights",
        obstacle="which layer is too narrow is its author's to say",
    )
    alone = Fix(
        "compare a sample's result in a batch with its result alone: they must be equal",
        reason="samples that are mixed up on the way cannot be told apart at its end",
        obstacle="it is a test, and changes nothing",
    )
    call = None if losses is None else losses.sole
    links = () if losses is None or call is None else losses.links(call)
    if graph is None or edits is None or not links or links[0].name not in BOUNDED:
        return [wider, alone]
    if call is not None and call.kind not in REGRESSION:
        return [wider, alone]
    link = links[0]
    raw = without_activation(
        graph,
        edits,
        link,
        title=f"take out the {link.name} behind the last layer",
        reason=f"a {link.name} gives {BOUNDED[link.name]}: targets outside of that cannot be met",
    )
    return [raw, wider, alone]
