"""OPT010 hyperparameter-out-of-range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, sqrt
from statistics import median
from typing import Any

from trainlint.rule import (
    ClipTrace,
    Confidence,
    Finding,
    Fix,
    Graph,
    OptimizerTrace,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    ops,
    optimizers,
    rule,
)

NORMS = ops.NORMALIZATIONS - {"local_response_norm"}
USUAL_EPS = 1e-5
USUAL_MOMENTUM = 0.1
# They divide by the root of an average of squares, plus ε.
ADAPTIVE = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"})
BETAS = frozenset({"Adam", "AdamW", "NAdam", "RAdam"})
# The largest ε in use: 1, for Inception with RMSprop.
LARGEST_OPTIMIZER_EPS = 1.0
# Averages of squares over two steps or fewer.
SHORTEST_ALPHA = 0.5
# Below, float32 holds a zero or a number without all of its digits.
LEAST_EPS = 1.2e-38
# Seen to hinder: in a run that has learnt less than this share of a guess's loss after so many steps,
LEARNT = 0.1
STEPS = 20
# an ε of so many times the gradients, where no layer moves faster than this part of its weights,
DWARFED = 10.0
SLOW = 10**-3.5
# and a momentum that remembers a thousand steps.
LONGEST_MOMENTUM = 0.999
# Why the usual value of an optimizer's option is that.
WHY = {
    "betas": "Kingma & Ba 2015: the default (0.9, 0.999); it converges for β₁ < √β₂ (Reddi et al. 2018)",
    "eps": "Kingma & Ba 2015: the default 1e-8 only keeps m/(√v + ε) finite",
    "momentum": "the velocity v ← μ·v + g tends to g/(1 − μ), 10·g at the usual 0.9",
    "dampening": "v ← μ·v + (1 − τ)·g: with τ = 0, the default, gradients count in full",
    "alpha": "v ← α·v + (1 − α)·g² averages over 1/(1 − α) steps, 100 at the default 0.99",
}


@rule(
    "OPT010",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "learning-rate-too-low",
        "learning-rate-too-high",
        "non-finite",
    ],
    own=["optimizer"],
)
def hyperparameter_out_of_range(
    graph: Graph | None,
    edits: SourceEdits | None,
    trace: Trace | None,
    *,
    largest_momentum: float = 0.9,
    largest_eps: float = 1e-2,
) -> Iterator[Finding]:
    """A normalisation layer or an optimizer is built with a number that is outside of what works.

    PyTorch's momentum m is the weight of the *new* batch: r ← (1 − m)·r + m·(this batch), by default
    0.1. Keras and others weigh the old value, r ← m·r + (1 − m)·(this batch), by default 0.99. With
    their 0.99 here, the running statistics remember about 1/m = 1 batch, so that eval mode normalises by
    whatever the last batch happened to be; what was meant is 1 − m. With m = 0 they never change.

    ε stands in y = (x − μ)/√(σ² + ε) to keep a channel without variance finite. With ε = 0 such a
    channel, as a dead unit has one, is 0/0, NaN. A large ε wins over σ²: with ε = 64 inputs of variance 1
    leave the layer with a deviation of 1/√65 = 0.12. The second argument of BatchNorm is ε, not a
    width: `nn.BatchNorm1d(32, 64)` is such a layer.

    In a run that is watched, optimizers are looked at as well:

    - Adam's β₁ above √β₂, as when the two are swapped: the average of the gradients then lasts longer
      than that of their squares, outside of where Adam is known to converge;
    - ε = 0, with which a weight that never had a gradient gets 0/0, and ε above 1, beside which √v is
      nothing;
    - SGD's momentum from 1 on, whose velocity never fades, and a dampening of 1, which lets no gradient
      in after the first;
    - RMSprop's α at 1, or below one half, as other frameworks' 1 − α;
    - where the run learns next to nothing: an ε from `largest_eps` on that is ten times as large as the
      root mean square of any layer's gradients, with updates below 3·10⁻⁴ of the weights; and a momentum
      of SGD from 0.999 on, a sum over a thousand steps, where a quarter of a guess's loss was gone and is
      back;
    - a limit of 0 or less for `clip_grad_norm_`, which leaves nothing of any gradient or turns it around.

    A momentum counts from `largest_momentum` on, an ε from `largest_eps`. `momentum=None`, the average
    of all batches, and layers that keep no running statistics are let be; `momentum=1`, the last batch
    alone, is advice, since few-shot learning does so on purpose. Layers that a library builds with
    values of its own are not looked at.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, bias=False)
            self.bn = nn.BatchNorm2d(16, momentum=0.99, eps=1e-3)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, bias=False)
            self.bn = nn.BatchNorm2d(16, momentum=0.01, eps=1e-3)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## When to ignore it
    Where the running statistics are never used, or are loaded and must not change. Where an optimizer's
    odd value is what is studied.

    ## Fix safety
    Unsafe: the model's outputs in eval mode change, with another ε also those in training. An edit is
    made where the value stands in the call as a number.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2. PyTorch, `torch.nn.BatchNorm2d`, the note
    on momentum; Keras, `BatchNormalization`. Kingma & Ba 2015, arXiv:1412.6980, theorem 4.1 (β₁² < √β₂),
    and Reddi, Kale & Kumar 2018, arXiv:1904.09237 (β₁ < √β₂).
    """
    if trace is not None:
        yield from _watched(trace, edits, largest_eps)
    if graph is None or edits is None:
        return
    seen: set[Any] = set()
    for node in graph.calls(*NORMS):
        layer, site = graph.layer(node), graph.constructed(node)
        if layer is None or site is None or site.project is not site or site.key in seen:
            continue
        seen.add(site.key)
        momentum, eps = getattr(layer, "momentum", None), getattr(layer, "eps", None)
        # Without running statistics the momentum has no part.
        if isinstance(momentum, (int, float)) and getattr(layer, "running_mean", None) is not None:
            if momentum >= largest_momentum:
                yield _large_momentum(graph, edits, node, float(momentum))
            elif momentum == 0 and _is_fresh(layer):
                yield _no_momentum(graph, edits, node)
        if isinstance(eps, (int, float)) and (eps < LEAST_EPS or eps >= largest_eps):
            yield _eps(graph, edits, node, float(eps))


def _watched(trace: Trace, edits: SourceEdits | None, largest_eps: float) -> Iterator[Finding]:
    """What is wrong with the optimizers of a run."""
    for place, optimizer in enumerate(trace.optimizers):
        said: dict[str, tuple[str, Any, float]] = {}
        for group in optimizer.groups if optimizer.steps else ():
            for option, told in _of_group(optimizer.kind, group):
                said.setdefault(option, told)
        for option, told in _hindering(trace, place, largest_eps):
            said.setdefault(option, told)
        for option, (what, better, value) in said.items():
            yield _of_optimizer(edits, optimizer, option, what, better, value)
    for clip in trace.clips:
        if clip.limit <= 0 and clip.calls:
            yield Finding(
                f"clip_grad_norm_ with a limit of {clip.limit:g} multiplies every gradient by "
                f"{'0: nothing is learnt' if clip.limit == 0 else 'less than 0: the loss is climbed'}",
                where=clip.site,
                evidence={"limit": clip.limit, "calls": clip.calls},
                fixes=[_limit(edits, clip)],
                severity=Severity.ERROR,
            )


def _of_group(kind: str, group: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Any, float]]]:
    """(option, (what it does, a better value, its value)) for what is out of range in a group."""
    betas = group.get("betas")
    if kind in BETAS and isinstance(betas, (tuple, list)) and len(betas) == 2:
        first, second = map(float, betas)
        if first > sqrt(second):
            is_swapped = second <= sqrt(first)
            what = (
                f"β₁={first:g} is above √β₂={sqrt(second):.3g}: the average of the gradients lasts "
                "longer than that of their squares"
            )
            better = (second, first) if is_swapped else (0.9, 0.999)
            yield "betas", (what, better, first)
    eps = _number(group.get("eps"))
    if kind in ADAPTIVE and eps is not None:
        if eps < LEAST_EPS:
            yield "eps", ("a weight whose gradient was always 0 becomes 0/0 = NaN", 1e-8, eps)
        elif eps > LARGEST_OPTIMIZER_EPS:
            what = (
                f"√v + {eps:g} is about {eps:g} whatever the gradients are, and divides each step"
            )
            yield "eps", (what, 1e-8, eps)
    momentum, dampening = _number(group.get("momentum")), _number(group.get("dampening"))
    if kind in ("SGD", "RMSprop") and momentum is not None and momentum >= 1:
        yield "momentum", ("the velocity never fades, and only grows", 0.9, momentum)
    if kind == "SGD" and momentum and dampening is not None and dampening >= 1:
        what = "no gradient but the first gets into the velocity"
        yield "dampening", (what, 0, dampening)
    alpha = _number(group.get("alpha"))
    if kind == "RMSprop" and alpha is not None and alpha >= 1:
        yield "alpha", ("the average of squares stays at 0", 0.99, alpha)
    elif kind == "RMSprop" and alpha is not None and alpha < SHORTEST_ALPHA:
        what = (
            f"the average of squares is that of about {1 / (1 - alpha):.2g} steps, so that each gradient "
            "is divided by its own size"
        )
        yield "alpha", (what, float(f"{1 - alpha:.6g}"), alpha)


def _hindering(
    trace: Trace, place: int, largest_eps: float
) -> Iterator[tuple[str, tuple[str, Any, float]]]:
    """The same, for what is seen to keep a run from learning: no range is wrong for every run."""
    learnt = [part for o in trace.objectives if (part := o.learnt(STEPS)) is not None]
    if not learnt or max(learnt) >= LEARNT or not {"loss", "data"} <= trace.own:
        return
    optimizer = trace.optimizers[place]
    for number, group in enumerate(optimizer.groups):
        eps, momentum = _number(group.get("eps")), _number(group.get("momentum"))
        weights = [w for m in trace.trained for w in m.weights() if w.group == (place, number)]
        sizes = [g / sqrt(w.elements) for w in weights if (g := w.median("gradient")) is not None]
        paces = [pace for w in weights if (pace := w.median("update")) is not None]
        largest = max(sizes, default=0.0)
        is_large = eps is not None and eps >= max(largest_eps, DWARFED * largest)
        if optimizer.kind in ADAPTIVE and eps is not None and is_large and largest and paces:
            what = (
                f"gradients are of {largest:.1g} a weight, so that √v + ε is about {eps:g} whatever "
                f"they are, and no layer changes by more than {max(paces):.1g} of its weights a step"
            )
            if max(paces) < SLOW:
                yield "eps", (what, 1e-8, eps)
        is_long = momentum is not None and LONGEST_MOMENTUM <= momentum < 1
        lost = _lost(trace)
        if optimizer.kind == "SGD" and momentum is not None and is_long and lost is not None:
            what = (
                f"the velocity is a sum over about {1 / (1 - momentum):.0f} steps, and runs past what it "
                f"found: the loss was at {lost:.3g}, and is that of a guess again"
            )
            yield "momentum", (what, 0.9, momentum)


def _lost(trace: Trace) -> float | None:
    """The least loss, in the median of five steps, where a quarter of a guess's was gone."""
    guesses = [o.guess for o in trace.objectives if o.guess]
    values = [value for _, value in trace.losses if isfinite(value)]
    if len(guesses) != 1 or len(values) < STEPS:
        return None
    least = min(median(values[place : place + 5]) for place in range(len(values) - 4))
    return least if least < 0.75 * guesses[0] else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _of_optimizer(
    edits: SourceEdits | None,
    optimizer: OptimizerTrace,
    option: str,
    what: str,
    better: Any,
    value: float,
) -> Finding:
    shown = "" if option == "betas" else f" has {option}={value:g}"
    title = f"set {option}={_shown(better)}"
    changed = (
        Fix(title)
        if edits is None
        else optimizers.with_option(edits, optimizer, option, better, title=title)
    )
    return Finding(
        f"{optimizer.kind}{shown}: {what}",
        where=optimizer.site,
        evidence={"option": option, "value": value},
        fixes=[
            explained(
                changed,
                reason=WHY[option],
                obstacle="the source is not at hand",
                patches=[Patch.training("optimizer-options", **{option: better})],
            )
        ],
        confidence=Confidence.LIKELY,
    )


def _shown(value: Any) -> str:
    return f"({', '.join(f'{v:g}' for v in value)})" if isinstance(value, tuple) else f"{value:g}"


def _limit(edits: SourceEdits | None, clip: ClipTrace) -> Fix:
    title = "clip at a limit above 0: max_norm=1.0"
    changed = (
        Fix(title)
        if edits is None
        else edits.argument(
            clip.site, 1, "max_norm", 1.0, current=clip.limit, title=title, safety=Safety.UNSAFE
        )
    )
    return explained(
        changed,
        reason=f"Pascanu et al. 2013: g ← g·min(1, c/‖g‖), of which c = {clip.limit:g} leaves nothing",
        obstacle="the limit is no number in the call",
        patches=[Patch.training("clip", max_norm=1.0)],
    )


def _is_fresh(layer: Any) -> bool:
    """Whether the running statistics are still those of the constructor, mean 0 and variance 1."""
    mean, variance = layer.running_mean, layer.running_var
    return not mean.is_meta and not bool(mean.any()) and bool((variance == 1).all())


def _large_momentum(graph: Graph, edits: SourceEdits, node: Any, momentum: float) -> Finding:
    last_alone = momentum == 1
    usual = USUAL_MOMENTUM if momentum >= 1 else float(f"{1 - momentum:.6g}")
    what = (
        "the running statistics are those of the last batch alone"
        if last_alone
        else f"PyTorch weighs the new batch by it, so the running statistics remember about "
        f"{1 / momentum:.2f} batches"
    )
    return Finding(
        f"{graph.label(node)} has momentum={momentum:g}: {what}, and eval mode normalises by them",
        where=node,
        evidence={"momentum": momentum, "batches_remembered": 1 / momentum},
        fixes=[_set(graph, edits, node, "momentum", momentum, usual)],
        severity=Severity.INFO if last_alone else Severity.WARNING,
        confidence=Confidence.POSSIBLE if last_alone else Confidence.LIKELY,
    )


def _no_momentum(graph: Graph, edits: SourceEdits, node: Any) -> Finding:
    return Finding(
        f"{graph.label(node)} has momentum=0: its running statistics stay at mean 0 and variance 1, "
        "and eval mode normalises by them",
        where=node,
        evidence={"momentum": 0.0},
        fixes=[_set(graph, edits, node, "momentum", 0.0, USUAL_MOMENTUM)],
        confidence=Confidence.LIKELY,
    )


def _eps(graph: Graph, edits: SourceEdits, node: Any, eps: float) -> Finding:
    small = eps < LEAST_EPS
    cost = (
        "a channel without variance becomes 0/0 = NaN"
        if small
        else f"inputs of variance 1 leave it with a deviation of {(1 + eps) ** -0.5:.2g}, "
        f"and a deviation below {eps**0.5:.2g} is not normalised"
    )
    return Finding(
        f"{graph.label(node)} has eps={eps:g}: {cost}",
        where=node,
        evidence={"eps": eps},
        fixes=[_set(graph, edits, node, "eps", eps, USUAL_EPS)],
        confidence=Confidence.CERTAIN if small or eps >= 1 else Confidence.LIKELY,
    )


def _set(
    graph: Graph, edits: SourceEdits, node: Any, name: str, current: float, value: float
) -> Fix:
    """The usual value, as an edit where torch's own constructor is called with a number."""
    layer = graph.layer(node)
    kind = type(layer)
    own = kind.__module__.startswith("torch.")
    position = 2 if name == "momentum" or kind.__name__ == "GroupNorm" else 1
    reason = (
        f"r ← (1 − m)·r + m·batch remembers about 1/m = {1 / value:g} batches"
        if name == "momentum"
        else f"Ioffe & Szegedy 2015: ε only keeps (x − μ)/√(σ² + ε) finite, {value:g} by default"
    )
    path = graph.operation(node).module
    return explained(
        edits.argument(
            graph.constructed(node) if own else None,
            position,
            name,
            value,
            current=current,
            title=f"set {name}={value:g}",
            safety=Safety.UNSAFE,
        ),
        reason=reason,
        patches=[Patch.attribute([path], **{name: value})],
    )
