"""REG006 missing-regularization."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Data,
    Finding,
    Fix,
    Generalization,
    Graph,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    rule,
)

# Early stopping, a penalty, a change of the inputs: what a file does itself shows only by its words.
_DOES_ITSELF = re.compile(
    r"patience|early_?stop|best_(?:val|valid|loss|acc|score|model|state|weights|epoch)|penalty|regulari[sz]|"
    r"augment|mixup|label_smoothing",
    re.IGNORECASE,
)
_DROPS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu")


@rule(
    "REG006",
    severity=Severity.INFO,
    since="0.1",
    explains=["no-augmentation"],
    own=["data", "loss", "optimizer"],
)
def missing_regularization(
    trace: Trace, edits: SourceEdits, data: Data | None, graph: Graph | None, *, gap: float = 0.05
) -> Iterator[Finding]:
    """The model overfits, and nothing of what is commonly done against it is there.

    Weight decay pulls weights towards zero, w ← w − ηλw, so that only those that pay stay large. Dropout
    drops units at random, so that none can rely on a single other one (Srivastava et al. 2014).
    Augmentation shows each sample in many forms. Early stopping keeps the weights of the best validation
    loss. Each narrows what the network can store of single samples.

    Advice where overfitting is measured (with 95 % confidence the validation loss is more than `gap` of
    the best constant answer's loss above the training loss) and none of the four is there: no optimizer
    with weight decay, no dropout in the model, a loader that gives the same sample twice the same, and
    nothing in the file about patience, a best state, penalties or augmentation.

    ## Bad
    ```python
    x, y = torch.randn(200, 20), torch.randint(2, (200,))
    train_set = torch.utils.data.TensorDataset(x[:60], y[:60])
    val_set = torch.utils.data.TensorDataset(x[60:], y[60:])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=20, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=50)
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Good
    ```python
    y = torch.randint(2, (1200,))
    x = torch.randn(1200, 20) + 0.5 * y[:, None]
    train_set = torch.utils.data.TensorDataset(x[:1000], y[:1000])
    val_set = torch.utils.data.TensorDataset(x[1000:], y[1000:])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=20, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=50)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Figures
    - `gap`: how much the loss on validation samples is above that on training samples, over that of the
      best answer that ignores the inputs; `bound`: how much it is at least, with 95% confidence.

    ## When to ignore it
    When the gap does no harm: what counts is the validation error, not its distance from the other.

    ## Fix safety
    Only shown: the values are where one usually begins, and which of them helps is to be measured.

    ## References
    Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, JMLR 15:1929. Loshchilov & Hutter 2019,
    arXiv:1711.05101. Prechelt 1998, "Early Stopping, but When?".
    """
    measured = trace.generalization
    difference = None if measured is None else measured.gap()
    if measured is None or difference is None or not measured.overfits(gap):
        return
    augmented = None if data is None else data.train.repeatable
    if (
        augmented is not True
        or _drops(trace, graph)
        or _decays(trace)
        or _is_in_file(trace, data, edits)
    ):
        return
    yield Finding(
        "the validation loss is "
        f"{difference.mean:.0%} of a constant answer's above the training loss (at least "
        f"{difference.bound:.0%}), and there is no weight decay, dropout, augmentation or early stopping",
        where=measured.site or (None if data is None else data.train.site),
        evidence={
            "gap": round(difference.mean, 4),
            "bound": round(difference.bound, 4),
            "steps": measured.last.step,
        },
        fixes=list(_cures(trace, measured, data)),
        confidence=Confidence.LIKELY,
    )


def _drops(trace: Trace, graph: Graph | None) -> bool:
    if graph is not None:
        inner = [
            getattr(module, "dropout", 0) for module in graph.model.modules()
        ]  # of LSTMs, attention
        if any(True for _ in graph.calls(*_DROPS)) or any(
            isinstance(p, float) and p > 0 for p in inner
        ):
            return True
    return any(model.dropout for model in trace.models)


def _decays(trace: Trace) -> bool:
    return any(
        group.get("weight_decay") for optimizer in trace.optimizers for group in optimizer.groups
    )


def _is_in_file(trace: Trace, data: Data | None, edits: SourceEdits) -> bool:
    sites = [optimizer.site for optimizer in trace.optimizers]
    sites += [model.site for model in trace.models]
    sites += [] if data is None else [data.train.site]
    texts = [edits.text(site.filename) for site in sites if site is not None]
    return any(text is not None and _DOES_ITSELF.search(text.text) for text in texts)


def _cures(trace: Trace, measured: Generalization, data: Data | None) -> Iterator[Fix]:
    kinds = {optimizer.kind for optimizer in trace.optimizers if optimizer.steps}
    best, last = measured.best(), measured.last
    if 0 < best.step < last.step:
        yield Fix(
            f"keep the state of the least validation loss: {best.validation.mean:.3g} at step {best.step}, "
            f"{last.validation.mean:.3g} at step {last.step}",
            reason="Prechelt 1998: what is learnt behind the minimum is learnt by heart",
            obstacle="the loop is to keep and restore a state",
        )
    if any(kind.startswith("Adam") for kind in kinds):
        yield Fix(
            "decay the weights: torch.optim.AdamW(..., weight_decay=0.01), up to 0.1",
            reason="Loshchilov & Hutter 2019: w ← (1 − lr·λ)·w beside the step",
            obstacle="how much helps is to be measured",
            patches=[Patch.training("weight-decay", value=0.01, apart=True)],
        )
    else:
        yield Fix(
            "decay the weights: weight_decay=5e-4 in the optimizer, up to 5e-3",
            reason="Krogh & Hertz 1991: λ/2·‖w‖² keeps the function from bending for every sample",
            obstacle="how much helps is to be measured",
            patches=[Patch.training("weight-decay", value=5e-4)],
        )
    yield Fix(
        "put nn.Dropout(0.5) behind wide hidden activations, 0.1 to 0.2 between convolutions",
        reason="Srivastava et al. 2014: an average over sub-networks",
        obstacle="where it belongs is its author's to say",
    )
    if data is not None and any(given.kind == "image" for given in data.train.inputs):
        yield Fix(
            "train on random crops and, where they mean the same, mirror images",
            reason="Krizhevsky et al. 2012: more samples of the same classes",
            obstacle="what leaves the class as it is, is its author's to say",
        )
