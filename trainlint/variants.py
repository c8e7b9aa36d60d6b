"""The same model captured otherwise: in the other mode, or with one more sample.

Comes in: the model, the inputs and the graph of the first capture. Each variant costs about as much as
the first capture, so it is made only when a rule asks.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainlint.capture import capture
from trainlint.graph import Graph
from trainlint.inputs import Inputs, batch_size, with_batch
from trainlint.preserve import preserved

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node


class Variants:
    """Captures of one model that differ from the first in one thing. None where one cannot be had."""

    def __init__(self, model: nn.Module, inputs: Inputs, graph: Graph) -> None:
        self._model = model
        self._inputs = inputs
        self._graph = graph

    @cached_property
    def eval(self) -> Graph | None:
        """The graph in eval mode: dropout that is still active there ignores the mode."""
        with preserved(self._model):
            self._model.eval()
            return self._captured(self._inputs)

    @cached_property
    def _larger(self) -> Graph | None:
        size = batch_size(self._inputs)
        if size is None:
            return None
        larger = self._captured(with_batch(self._inputs, size + 1))
        if larger is None or len(larger.nodes) != len(self._graph.nodes):
            return None
        names = zip(self._graph.nodes, larger.nodes, strict=True)
        if any(self._graph.name(here) != larger.name(there) for here, there in names):
            return None  # another way through the model: nothing can be compared
        return larger

    @property
    def batch_is_known(self) -> bool:
        """Whether the model also ran with one more sample, by the same operations."""
        return self._larger is not None

    def batch_axis(self, node: Node) -> int | None:
        """The axis of the node's result that holds the samples, one index each; None if there is none.

        Where windows or time steps are folded into an axis it holds more than the samples, and is none.
        """
        size = batch_size(self._inputs)
        if self._larger is None or size is None:
            return None
        here = self._graph.shape(node)
        there = self._larger.shape(self._larger.nodes[self._graph.position(node)])
        if here is None or there is None or len(here) != len(there):
            return None
        axes = [axis for axis, pair in enumerate(zip(here, there, strict=True))
                if pair == (size, size + 1)]  # fmt: skip
        return axes[0] if len(axes) == 1 else None

    def _captured(self, inputs: Inputs) -> Graph | None:
        recording: Any = capture(self._model, inputs.args, inputs.kwargs)
        if recording.exception is not None:
            return None
        return Graph(
            recording.graph,
            recording.model,
            faults=recording.faults,
            inputs_given=self._inputs.given,
        )
