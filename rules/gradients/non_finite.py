"""GRD003 non-finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Incident,
    Patch,
    Severity,
    Signal,
    SourceEdits,
    Trace,
    explained,
    growth_through_time,
    loops,
    numerics,
    ops,
    optimizers,
    rule,
)

# What an operation cannot take, and what to write instead.
CURES = {
    "log": (
        "log of a number ≤ 0",
        "log_softmax or logsigmoid on the logits, or x.clamp_min(1e-8).log()",
    ),
    "log2": ("log of a number ≤ 0", "x.clamp_min(1e-8).log2()"),
    "log10": ("log of a number ≤ 0", "x.clamp_min(1e-8).log10()"),
    "log1p": ("log1p of a number ≤ -1", "x.clamp_min(-1 + 1e-6).log1p()"),
    "sqrt": ("√ at or below 0, where its slope 1/(2√x) is infinite", "x.clamp_min(1e-8).sqrt()"),
    "rsqrt": ("1/√ at or below 0", "x.clamp_min(1e-8).rsqrt()"),
    "div": ("division by 0", "x / (y + 1e-8), or y.clamp_min(1e-8)"),
    "reciprocal": ("division by 0", "x.clamp_min(1e-8).reciprocal()"),
    "pow": ("a power with an infinite value or slope at 0", "x.clamp_min(1e-8) ** p"),
    "norm": ("a norm at 0, where it has no slope", "(x.square().sum(-1) + 1e-8).sqrt()"),
    "linalg_norm": ("a norm at 0", "(x.square().sum(-1) + 1e-8).sqrt()"),
    "linalg_vector_norm": ("a norm at 0", "(x.square().sum(-1) + 1e-8).sqrt()"),
    "cdist": (
        "a distance of 0, where it has no slope",
        "(x - y).square().sum(-1).add(1e-8).sqrt()",
    ),
    "exp": ("overflow", "subtract the maximum first, or clamp the exponent: x.clamp(max=20).exp()"),
    "expm1": ("overflow", "clamp the exponent: x.clamp(max=20)"),
    "softmax": ("a row of which every entry is masked", "keep one entry of each row unmasked"),
    "scaled_dot_product_attention": (
        "a query whose keys are all masked",
        "keep one key of each query unmasked",
    ),
    "acos": ("slope infinite at ±1", "x.clamp(-1 + 1e-6, 1 - 1e-6).acos()"),
    "asin": ("slope infinite at ±1", "x.clamp(-1 + 1e-6, 1 - 1e-6).asin()"),
    "atanh": ("infinite at ±1", "x.clamp(-1 + 1e-6, 1 - 1e-6).atanh()"),
    "logit": ("infinite at 0 and 1", "torch.logit(x, eps=1e-6)"),
    "std": (
        "the spread of a single or of equal values",
        "(x.var(dim, correction=0) + 1e-8).sqrt()",
    ),
    "var": ("the variance of a single value", "x.var(dim, correction=0)"),
    "mean": ("the mean of nothing", "leave empty selections out"),
    "atan2": ("no slope at (0, 0)", "torch.atan2(y, x + 1e-8)"),
    "binary_cross_entropy": ("probabilities of exactly 0 or 1", "binary_cross_entropy_with_logits"),
    "normalize": ("a vector of length 0", "F.normalize(x, eps=1e-6)"),
}
CURES["multi_head_attention_forward"] = CURES["scaled_dot_product_attention"]
CURES["true_divide"] = CURES["div"]
ANY = "an ε where it divides, takes a root or a logarithm, or clamp its argument"
GROWTH = "smaller weights, or a normalisation before it"
DETECT = "torch.autograd.detect_anomaly() around one step names the operation"
# Steps in a row that a GradScaler leaves out at a scale below 1, where it never has to go.
LEFT_OUT = 3
# The largest number of float16 is 65504: above that a product overflows.
HALF = 65504.0


@rule(
    "GRD003",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=["initial-loss-off", "constant-output"],
    own=["loss", "data"],
)
def non_finite(
    graph: Graph | None,
    signal: Signal | None,
    trace: Trace | None,
    edits: SourceEdits | None,
) -> Iterator[Finding]:
    """An operation makes NaN or infinity in the first forward or backward pass.

    log 0 = -∞, 0/0 and ∞ - ∞ are NaN, and NaN spreads: one of them in a gradient makes every weight that
    it reaches NaN at the next step, and the model is lost. Some operations are fine forwards and not
    backwards: d√x/dx = 1/(2√x) is infinite at 0, and 0·∞ from a masked branch is NaN, so that even
    `torch.where(x > 0, x.sqrt(), 0)` poisons the weights.

    trainlint runs one forward and backward on the real weights. If the loss or a gradient is not finite it
    runs again, looks at every operation's operands and result, and names the first that turned finite
    operands into something else, with the range of what it was given. Infinities that hide attention
    scores are no fault. Where trainlint made the inputs up, an operation right on the input, with no
    weights in between, is not held against the model: log of a made-up negative number says nothing.

    In a training run that is watched, the loss is looked at before each backward pass, and a gradient
    before each step. At the first NaN or infinity the pass is made once more to find the operation, of
    which the forward or the backward makes it; where the weights or the input were not finite before it,
    that is said instead. Whose backward it is between the model and the loss, in the loop's own code, is
    told only of steps that are recorded. A loss that was finite again afterwards is a warning. Steps that a
    `GradScaler` leaves out are none, unless it goes on to leave them out below a scale of 1.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 4)

        def forward(self, x):
            h = self.fc1(x)
            h = torch.where(h > 0, h.sqrt(), torch.zeros_like(h))  # NaN behind `where` still counts
            return self.fc2(h)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 4)

        def forward(self, x):
            h = self.fc1(x).clamp_min(1e-6).sqrt()
            return self.fc2(h)
    ```

    ## When to ignore it
    Never where the inputs are real ones; with made-up inputs, where they lie outside of the data's range.

    ## Fix safety
    Unsafe: which ε suits depends on the scale of the values. An edit is made where one operand is to be
    bounded, `x.clamp_min(1e-8).log()`.

    ## References
    Goldberg 1991, What every computer scientist should know about floating-point arithmetic. PyTorch,
    frequently asked questions on gradients of `where`. Seed A, problem 3 (NaN from exploding gradients).
    """
    found: list[Finding] = []
    if graph is not None and signal is not None:
        found += _measured(graph, signal, edits)
    yield from found
    if trace is not None and not found:  # else it was seen to happen, too
        yield from _watched(trace, edits)


def _measured(graph: Graph, signal: Signal, edits: SourceEdits | None) -> Iterator[Finding]:
    bad = signal.non_finite
    if bad is None or (not signal.given and not _behind_weights(graph, bad.node)):
        return
    name = graph.name(bad.node)
    reason, _ = CURES.get(name, ("", ""))
    what = "NaN" if bad.value == "nan" else "infinity"
    if bad.backward:
        said = f"the backward of {graph.label(bad.node)} makes {what}"
    else:
        said = f"{graph.label(bad.node)} makes {what}"
    low_high = (
        ""
        if bad.inputs is None
        else f" from values between {bad.inputs[0]:.4g} and {bad.inputs[1]:.4g}"
    )
    yield Finding(
        f"{said}{low_high}{f' ({reason})' if reason else ''}: the first step makes every weight that "
        "it reaches NaN",
        where=bad.node,
        evidence={
            "value": bad.value,
            "backward": bad.backward,
            "inputs": None if bad.inputs is None else [float(bound) for bound in bad.inputs],
            "operation": name,
        },
        fixes=_cured(edits, name, graph.place(bad.node), bad.inputs),
        confidence=Confidence.CERTAIN if signal.given else Confidence.LIKELY,
        affects=[bad.node],
    )


def _cured(
    edits: SourceEdits | None, name: str, site: Any, inputs: Sequence[float] | None
) -> list[Fix]:
    """The operation kept away from where it is not finite, or what feeds it kept from growing."""
    reason, cure = CURES.get(name, ("", ""))
    if inputs is not None and HALF < max(map(abs, inputs)) < inf:
        return _held(inputs)
    why = f"{reason}: an ε keeps it and its slope finite" if reason else "a finite slope"
    why += "" if inputs is None else f", of values between {inputs[0]:.3g} and {inputs[1]:.3g}"
    title = f"keep {name} away from where it is not finite: {cure or ANY}"
    made = (
        Fix(title, obstacle="the source is not at hand")
        if edits is None
        else numerics.guarded(edits, site, name, title=title)
    )
    return [explained(made, reason=why)]


def _held(inputs: Sequence[float]) -> list[Fix]:
    """For numbers that have grown: shorter steps, clipping, a normalisation."""
    size = max(map(abs, inputs))
    return [
        Fix(
            f"keep the numbers small at this point: {GROWTH}",
            reason=f"values of {size:.3g} overflow where they are multiplied again; half precision ends at "
            f"{HALF:g}",
            obstacle="what makes them grow is another finding's, or the data's",
            patches=[Patch.training("clip", max_norm=1.0)],
        ),
        Fix(
            "take a tenth of the learning rate",
            reason="steps above 2/λ, the curvature's, throw the weights further at each step",
            obstacle="which step did it is not seen",
            patches=[Patch.training("learning-rate", factor=0.1)],
        ),
    ]


def _behind_weights(graph: Graph, node: Any) -> bool:
    """Whether weights stand between the inputs and the operation: then its range is the model's own."""
    stack, seen = list(node.all_input_nodes), set(node.all_input_nodes)
    while stack:
        source = stack.pop()
        name = graph.name(source)
        if graph.is_weighted(source) or name in ops.RECURRENT or name in ("matmul", "embedding"):
            return True
        for other in source.all_input_nodes:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False


BROKEN = (
    "not-finite-result", "not-finite-input", "not-finite-weights", "not-finite-loss",
    "not-finite-output", "not-finite-gradient",
)  # fmt: skip


def _watched(trace: Trace, edits: SourceEdits | None) -> Iterator[Finding]:
    """What a run's first loss or gradient that was not finite came from."""
    rows = [step for step, value in trace.losses if not isfinite(value)]
    first = min(trace.of(*BROKEN), key=lambda incident: incident.step, default=None)
    left_out = next((i for i in trace.of("steps-left-out") if i.facts["scale"] < 1), None)
    if left_out is not None and left_out.count >= LEFT_OUT:
        yield _left_out(edits, trace, left_out, first)
        return
    if not rows and first is None:
        return
    said, fixes, evidence = _said(edits, trace, first)
    recovered = bool(rows) and isfinite(trace.losses[-1][1])
    step = first.step if first is not None else rows[0]
    if recovered:
        after = f"; {len(rows)} of {len(trace.losses)} losses were so, the last was finite again"
    elif first is not None and _is_of_gradient(first):
        after = f"; step {step} makes every weight that it reaches NaN, for good"
    else:
        after = f"; from step {rows[0] if rows else step} on nothing is learnt, and the weights may be lost"
    yield Finding(
        said + after,
        where=first.site if first is not None else _broken_loss(trace),
        evidence={"first_step": step, "losses": len(rows), **evidence},
        fixes=fixes,
        severity=Severity.WARNING if recovered else Severity.ERROR,
    )


def _is_of_gradient(incident: Incident) -> bool:
    return incident.kind == "not-finite-gradient" or bool(incident.facts.get("backward"))


def _left_out(
    edits: SourceEdits | None, trace: Trace, incident: Incident, first: Incident | None
) -> Finding:
    """A `GradScaler` that finds no scale at which gradients are finite."""
    facts = incident.facts
    said, fixes, evidence = _said(edits, trace, first)
    if first is None:
        said, fixes, evidence = "gradients are not finite whatever the scale", [_looked_for()], {}
    return Finding(
        f"the GradScaler left out the last {incident.count} of {facts['steps']} steps of "
        f"{facts['optimizer']}, down to a scale of {facts['scale']:.2g}: {said}",
        where=incident.site if first is None else first.site,
        evidence={"left_out": incident.count, "steps": facts["steps"], **evidence},
        fixes=fixes,
    )


def _said(
    edits: SourceEdits | None, trace: Trace, incident: Incident | None
) -> tuple[str, list[Fix], dict[str, Any]]:
    """The words for an incident, its cures, and its figures."""
    if incident is None:
        return "the loss became NaN or infinite", _slower(edits, trace), {}
    facts = incident.facts
    what = "NaN" if facts["value"] == "nan" else "infinity"
    if incident.kind == "not-finite-result":
        name, least, largest = facts["operation"], facts["least"], facts["largest"]
        reason, _ = CURES.get(name, ("", ""))
        made = f"the backward of {name}" if facts["backward"] else name
        said = f"{made} makes {what}"
        if least <= largest:
            said += f" from values between {least:.4g} and {largest:.4g}"
        inputs = (least, largest) if isfinite(least) and isfinite(largest) else None
        fixes = _cured(edits, name, incident.site, inputs)
        if inputs is not None and max(map(abs, inputs)) > HALF:
            fixes = [*_slower(edits, trace), *fixes[:1]]
        return (
            said + (f" ({reason})" if reason else ""),
            fixes,
            {"value": facts["value"], "operation": name, "inputs": [least, largest]},
        )
    if incident.kind == "not-finite-weights":
        return (
            (
                f"the weights of {facts['parameters'][0]} were not finite before the loss was: the step "
                "before made them so, by a gradient that was not or by its size"
            ),
            [*_slower(edits, trace), _looked_for()],
            {"value": facts["value"], "parameters": list(facts["parameters"])},
        )
    if incident.kind == "not-finite-input":
        return (
            f"{facts['model']} was given NaN or infinity: the fault is in the data, before the model",
            [
                Fix(
                    "leave such samples out where the data are made: torch.isfinite(x).flatten(1).all(1)",
                    reason="one NaN in the input is one in every gradient of the batch: 0·NaN = NaN",
                    obstacle="what a missing value stands for is known where the data are made; look at "
                    "divisions by a deviation of 0, too",
                )
            ],
            {"value": facts["value"]},
        )
    if incident.kind == "not-finite-gradient":
        names = list(facts["parameters"])
        whose = f"the gradient of {names[0]}" if names else "a gradient"
        said = (
            f"{whose} is {what} though the loss is finite: the backward of some operation makes it"
        )
        return said, [_looked_for()], {"value": facts["value"], "parameters": names}
    if incident.kind == "not-finite-output":
        return (
            f"the result of {facts['model']} is {what}, of finite weights and inputs",
            _cured(edits, "an operation", None, None),
            {"value": facts["value"]},
        )
    return (
        f"the loss is {what} though the model's result is finite: the loss itself makes it",
        [
            Fix(
                "take the version on logits: cross_entropy, binary_cross_entropy_with_logits, or an ε "
                "in its log, root or division",
                reason="log σ(z) = −log(1 + e⁻ᶻ) is finite for every z, log(σ(z)) is not below z = −104",
                obstacle="the loss is an expression of its own",
            )
        ],
        {"value": facts["value"]},
    )


def _slower(edits: SourceEdits | None, trace: Trace) -> list[Fix]:
    """A tenth of the learning rate, and clipping."""
    stepping = [optimizer for optimizer in trace.optimizers if optimizer.steps]
    rate = optimizers.made_rate(stepping[0]) if len(stepping) == 1 else None
    factor = _factor(trace)
    better = float(f"{rate * factor:.0e}") if rate else None
    title = "lower the learning rate" + (f" to lr={better:g}" if better else " to a tenth")
    slower, clipped = Fix(title), Fix("clip the gradient's norm to 1 between backward() and step()")
    if edits is not None and better:
        slower = optimizers.with_option(edits, stepping[0], "lr", better, title=title)
    if edits is not None:
        clipped = loops.clipped(trace, edits, 1.0)
    fixes = [
        explained(
            slower,
            reason="the numbers grew with each step: one above 2/λ, the curvature's, overshoots by more "
            "than it was off",
            obstacle="it is not plain which optimizer's rate it is",
            patches=[Patch.training("learning-rate", factor=factor)],
        ),
        explained(
            clipped,
            reason="Pascanu et al. 2013: g ← g·min(1, 1/‖g‖) bounds what one step can do",
            obstacle="the source is not at hand",
            patches=[Patch.training("clip", max_norm=1.0)],
        ),
    ]
    # What one matrix does at every time step, a smaller rate does not undo.
    through_time = any(m.is_recurrent or growth_through_time(m) for m in trace.trained)
    return fixes[::-1] if through_time else fixes


def _factor(trace: Trace) -> float:
    """What makes the first updates 1% of the weights, at least a thousandth; else a tenth."""
    paces = [pace for model in trace.trained for pace in list(model.paces().values())[:1]]
    first = max((pace for pace in paces if isfinite(pace)), default=0.0)
    return float(f"{max(0.01 / first, 1e-3):.2g}") if first > 0.01 else 0.1


def _looked_for() -> Fix:
    return Fix(
        f"find the operation first: {DETECT}",
        reason="PyTorch documentation, anomaly detection: the traceback of the forward of what failed",
        obstacle="which operation it is was not seen",
    )


def _broken_loss(trace: Trace) -> Any:
    """Where a loss function gave it."""
    for objective in trace.objectives:
        if not all(map(isfinite, objective.values)):
            return objective.site
    return trace.models[0].site if trace.models else None
