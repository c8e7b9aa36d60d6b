"""Which losses judge what a model gives, as it gives it: seen in the first forwards that train it.

Comes in: outputs of models and calls of losses, as the observer sees them. Goes out: `LossUse`s, as the
source of a file would show them, so that rules on the graph know the loss of a model that is trained. What
a loop computes between the two, other than a new shape, is not known here: such a loss is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainlint.loss.source import LOSSES, LossUse, Step, Trace
from trainlint.observe.autograd import below_rearrangements, sequence
from trainlint.sites import calling_site
from trainlint.tree import tensors

if TYPE_CHECKING:
    from trainlint.observe.roots import Root


class Judging:
    """The losses of models that were not handed over yet. Holds no tensor."""

    def __init__(self) -> None:
        # Paths of what the latest forward of a model gave, by the numbers of autograd's nodes.
        self._outputs: dict[int, tuple[Root, str]] = {}
        self._uses: dict[int, dict[Any, LossUse]] = {}

    def forward_ends(self, root: Root, output: Any) -> None:
        """A forward with a graph has ended."""
        self._outputs = {
            number: known for number, known in self._outputs.items() if known[0] is not root
        }
        if root.was_shown:
            return
        for path, tensor in tensors(output):
            if tensor.grad_fn is not None:
                self._outputs[sequence(tensor.grad_fn)] = (root, path)

    def loss_called(self, name: str, scores: Any) -> None:
        """A loss was called outside of any model."""
        if not self._outputs or name not in LOSSES:
            return
        if not isinstance(scores, Tensor) or scores.grad_fn is None:
            return
        for node, is_moved in below_rearrangements(scores):
            known = self._outputs.get(sequence(node))
            if known is not None:
                (root, path), site = known, calling_site()
                if site is None:
                    return
                element = tuple(path.split(".")) if path else ()
                steps = (Step("reshape", None),) if is_moved else ()
                scored = Trace(names_of(root), element, steps)
                use = LossUse(name, site, None, scored, within=None, trains=True)
                self._uses.setdefault(root.number, {})[name, path, is_moved] = use
                return

    def uses(self, root: Root) -> tuple[LossUse, ...]:
        """The losses that were seen to judge it."""
        return tuple(self._uses.pop(root.number, {}).values())


def names_of(root: Root) -> frozenset[str]:
    """By which the uses of its losses name it."""
    module = root.module()
    return frozenset() if module is None else frozenset({type(module).__name__})
