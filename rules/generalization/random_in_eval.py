"""GEN009 random-in-eval."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Draw,
    Finding,
    Fix,
    Graph,
    Influence,
    Severity,
    rule,
    source_of,
)

# Words for noise that belongs to the method, also at evaluation.
ON_PURPOSE = re.compile(
    r"monte[\W_]*carlo|bayes|uncertain|ensemble|sampl|noise|noising|corrupt|augment|stochastic[\W_]*(pol|act)|"
    r"mask(ed|ing)|spik|gumbel|concrete|always[\W_]*(on|active)|(at|in|during|also)[\W_]+(test|inference|eval)",
    re.IGNORECASE,
)


@rule("GEN009", severity=Severity.WARNING, since="0.1", topics=["same-in-eval"])
def random_in_eval(graph: Graph, influence: Influence) -> Iterator[Finding]:
    """Two passes in eval mode on the same input give different outputs.

    `model.eval()` tells every module that training is over; what is random by hand does not listen. A
    mask `(torch.rand(...) < keep)` that multiplies the data, with no `if self.training`, goes on dropping
    at evaluation: it adds a variance of x²·p/(1 − p) to the activations, so that validation is worse and
    noisier than the model is, checkpoints are chosen by luck, and predictions cannot be repeated.

    trainlint runs the model twice in eval mode with different seeds if the first run drew any random
    numbers, and runs it once more with the same seed, so that what changes by itself is not mistaken for
    it. A warning is given for a mask of constant probability that multiplies data, as dropout and
    stochastic depth by hand do. Dropout functions that are left on are dropout-always-on's. Noise that
    is added or sampled (a VAE's latent, a diffusion sampler, Gumbel softmax), and code that says it is
    meant (Monte Carlo, masking, corruption, a spike), is advice only: μ instead of a sample at
    evaluation is often what is wanted.

    ## Bad
    ```python
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc = nn.Linear(width, width)

        def forward(self, x):
            keep = (torch.rand(x.shape[0], 1) < 0.8).float() / 0.8  # stochastic depth, never off
            return x + keep * torch.relu(self.fc(x))


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(Block(32), Block(32))
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.body(x))
    ```

    ## Good
    ```python
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc = nn.Linear(width, width)

        def forward(self, x):
            branch = torch.relu(self.fc(x))
            if self.training:
                branch = branch * (torch.rand(x.shape[0], 1) < 0.8).float() / 0.8
            return x + branch


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(Block(32), Block(32))
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.body(x))
    ```

    ## Figures
    - `shift`: how far the outputs of two passes over one input differ, over their size.
    - `operation`: what draws random numbers.

    ## When to ignore it
    When predictions are sampled on purpose.

    ## Fix safety
    Shown without an edit.

    ## References
    Srivastava et al. 2014 (dropout), section 4: weights are scaled and nothing is dropped at test time.
    Stochastic depth: Huang et al. 2016, arXiv:1603.09382, section 3. Kingma & Welling 2013,
    arXiv:1312.6114 (sampling the latent). Seed A, Dropout.
    """
    randomness = influence.randomness
    if randomness is None:
        return
    masks = [d for d in randomness.draws if d.kind == "mask" and not _is_meant(graph, d)]
    others = [draw for draw in randomness.draws if draw not in masks]
    for draw in masks:
        yield _finding(draw, randomness.shift, Severity.WARNING)
    if others and not masks:
        yield _finding(others[0], randomness.shift, Severity.INFO)


def _finding(draw: Draw, shift: float, severity: Severity) -> Finding:
    spot = draw.spot
    if draw.kind == "noise":
        what = f"{spot.label} draws noise in eval mode"
        cure = "sample in training alone, and take the mean else: if self.training:"
        reason = "Kingma & Welling 2014: E z = μ, which answers alike each time"
    else:
        what = f"{spot.label} draws a mask in eval mode, whatever self.training says"
        cure = "draw the mask in training alone: if self.training:, or nn.Dropout, which looks at the mode"
        reason = "Srivastava et al. 2014, section 4: the whole network answers in eval mode"
    return Finding(
        f"{what}: two passes over one input differ by {shift:.1%} of the outputs' size",
        where=spot.where,
        module=spot.module,
        evidence={"shift": shift, "operation": spot.name, "kind": draw.kind},
        fixes=[
            Fix(
                cure,
                reason=reason,
                obstacle="what is computed instead in eval mode is the forward's own",
            )
        ],
        severity=severity,
        confidence=Confidence.CERTAIN if severity is Severity.WARNING else Confidence.POSSIBLE,
        affects=[] if spot.node is None else [spot.node],
    )


def _is_meant(graph: Graph, draw: Draw) -> bool:
    """Whether the class, its docstring or the lines around the draw say that it shall be random."""
    words = [draw.spot.module]
    module = graph.model.get_submodule(draw.spot.module) if _has(graph, draw.spot.module) else None
    if module is not None:
        words += [type(module).__name__, vars(type(module)).get("__doc__") or ""]
    node, site = draw.spot.node, draw.spot.site
    if node is not None:
        site = graph.operation(node).site or site
    source = None if site is None else source_of(site.filename)
    if source is not None and site is not None:
        function = "" if site.code is None else site.code.co_name
        lines = source.lines[max(0, site.row - 2) : site.row]
        words += [function, *(line.partition("#")[2] for line in lines)]
    return any(ON_PURPOSE.search(word) for word in words)


def _has(graph: Graph, path: str) -> bool:
    return any(name == path for name, _ in graph.model.named_modules())
