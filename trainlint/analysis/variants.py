"""The same model captured otherwise: in eval mode, with one more sample, on one without a batch.

Comes in: the inputs and the graph of the first capture. Each variant costs about as much as that one, so
it is made only when a rule asks. Imports torch late, since rules name the type.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.graph import Graph

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.capture.inputs import Inputs


# Along axis 0 these mix rows by an index.
INDEXING: Final = frozenset("getitem index_add index_select scatter_add scatter_reduce".split())


class Variants:
    """Captures of one model that differ from the first in one thing. None where one cannot be had."""

    def __init__(self, inputs: Inputs, graph: Graph) -> None:
        self._inputs = inputs
        self._graph = graph

    @cached_property
    def eval(self) -> Graph | None:
        """The graph in eval mode: dropout that is still active there ignores the mode."""
        from trainlint.preserve import preserved

        model = self._graph.model
        if not any(module.training for module in model.modules()):
            return self._graph
        with preserved(model):
            try:
                model.eval()
            except Exception:  # a method of the user's, who may have other plans
                return None
            return self._captured(self._inputs)

    @cached_property
    def single(self) -> Graph | None:
        """The graph on one sample without a batch axis; None where the model takes batches alone."""
        from trainlint.capture.batches import without_batch

        inputs = without_batch(self._inputs)
        graph = None if inputs is None else self._captured(inputs)
        return None if graph is None or len(graph.faults) > len(self._graph.faults) else graph

    @cached_property
    def batch_size(self) -> int | None:
        """The number of samples that the inputs seem to hold, without another capture."""
        from trainlint.capture.batches import batch_size

        return batch_size(self._inputs)

    @cached_property
    def _larger(self) -> Graph | None:
        from trainlint.capture.batches import batch_size, batch_variants

        if not self.batch_size:
            return None
        size = self.batch_size + 1
        for inputs in batch_variants(self._inputs, size):
            if batch_size(inputs) != size:
                return None  # inputs of a kind that cannot be rebuilt
            larger = self._captured(inputs)
            if larger is not None and _is_same_way(self._graph, larger):
                return None if _varies_along_a_sequence(self._graph, larger) else larger
        return None

    @property
    def batch_is_known(self) -> bool:
        """Whether the model also ran with one more sample, by the same operations.

        False where the first axis is that of time or space to a layer, and not of samples.
        """
        return self._larger is not None

    def batch_axis(self, node: Node) -> int | None:
        """The axis of the node's result that holds the samples, one index each; None if there is none.

        Where windows or time steps are folded into an axis it holds more than the samples, and is none.
        """
        size = self.batch_size
        if size is None or self._larger is None:
            return None
        counterpart = self._larger.nodes[self._graph.position(node)]
        here, there = self._graph.shape(node), self._larger.shape(counterpart)
        axes = _differing(here, there)
        if here is None or there is None or len(axes) != 1:
            return None
        return axes[0] if (here[axes[0]], there[axes[0]]) == (size, size + 1) else None

    def _captured(self, inputs: Inputs) -> Graph | None:
        from trainlint.capture.tracer import capture

        recording: Any = capture(self._graph.model, inputs.args, inputs.kwargs)
        if recording.exception is not None:
            return None
        return Graph(
            recording.graph,
            recording.model,
            faults=recording.faults,
            inputs_given=self._inputs.given,
        )


def _differing(here: tuple[int, ...] | None, there: tuple[int, ...] | None) -> list[int]:
    """The axes whose lengths differ; none if the shapes cannot be compared."""
    if here is None or there is None or len(here) != len(there):
        return []
    return [axis for axis, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]]


def _is_same_way(graph: Graph, larger: Graph) -> bool:
    """Whether the same operations ran, and failed, in the same order: then nodes can be compared."""
    if len(graph.nodes) != len(larger.nodes):
        return False
    pairs = list(zip(graph.nodes, larger.nodes, strict=True))
    faults = [graph.position(node) for node in graph.faults]
    return all(graph.name(here) == larger.name(there) for here, there in pairs) and faults == [
        larger.position(node) for node in larger.faults
    ]


def _varies_along_a_sequence(graph: Graph, larger: Graph) -> bool:
    """Whether some layer runs along the axis that grew: then it holds time steps or nodes, not samples."""
    for node, counterpart in zip(graph.nodes, larger.nodes, strict=True):
        if node.op != "call_function":
            continue
        if _is_indexed_by_input(graph, node) and _differing_first(graph, larger, node, counterpart):
            return True
        along = _sequence_axes(graph, node)
        source, other = graph.data(node), larger.data(counterpart)
        if along and source is not None and other is not None:
            grown = _differing(graph.shape(source), larger.shape(other))
            if set(grown) & set(along):
                return True
    return False


def _differing_first(graph: Graph, larger: Graph, node: Node, counterpart: Node) -> bool:
    """Whether the first axis of the first operand has grown."""
    here: Any = node.args[0]
    there: Any = counterpart.args[0]
    if not hasattr(here, "all_input_nodes"):
        return False
    return 0 in _differing(graph.shape(here), larger.shape(there))


def _is_indexed_by_input(graph: Graph, node: Node) -> bool:
    """Whether rows are looked up by a table that the model is given: the edges of a graph."""
    name = graph.name(node)
    if name not in INDEXING or len(node.args) < 2:
        return False
    axis = 0 if name == "getitem" else node.kwargs.get("dim", node.args[1])
    for part in (*node.args[1:], *node.kwargs.values()) if axis == 0 else ():
        source: Any = part
        while hasattr(source, "all_input_nodes") and graph.name(source) in ops.PARTS:
            source = graph.data(source)
        if getattr(source, "op", "") == "placeholder" and not graph.is_floating(source):
            return len(graph.shape(source) or ()) == 2
    return False


def _sequence_axes(graph: Graph, node: Node) -> tuple[int, ...]:
    """The axes of its input along which a layer mixes: time for recurrence, space for convolution."""
    name = graph.name(node)
    source = graph.data(node)
    dims = None if source is None else graph.shape(source)
    if dims is None:
        return ()
    if name == "multi_head_attention_forward":
        return (0,)
    if name == "scaled_dot_product_attention":
        return (len(dims) - 2,)
    if name in ops.RECURRENT and not name.endswith("_cell") and len(dims) == 3:
        return (1,) if node.args[-1] is True else (0,)  # batch_first is the last argument
    if name in ops.CONVOLUTIONS:
        rank = int(name[-2])
        return tuple(range(len(dims) - rank, len(dims)))
    return ()
