"""LOS009 cannot-memorise."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Finding, Fix, Memorisation, Severity, rule


@rule(
    "LOS009",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting"],
    own=["loss"],
)
def cannot_memorise(
    memory: Memorisation, *, left: float = 0.5, weights: int = 4
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
    Only shown: what is too narrow is its author's to say.

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
        fixes=[
            Fix("wider layers where the fewest numbers pass, or another nonlinear layer"),
            Fix(
                "no sigmoid, tanh or ReLU behind the last layer, where targets lie outside of its range"
            ),
            Fix("compare a sample's result in a batch with its result alone: they must be equal"),
        ],
        severity=Severity.INFO if is_small else None,
        confidence=Confidence.LIKELY,
    )
