"""The cross entropy of sound models before any training: what LOS010's thresholds rest on.

    python -m benchmarks.initial_loss [--only PATTERN] [--jobs N]

Each model of the zoo and of `fixtures/healthy` whose forward returns scores is pulsed with cross entropy
on classes drawn evenly. Prints log C, the loss and their difference, and the quantiles over all models.
With logits of standard deviation s over the classes the loss is about log C + s²/2.

As run for 0.1 (torch 2.13, 360 models): median 0.01 above log C, 95% below 0.31, 98% below 1.05; the
largest of the others 2.65, and then two whose libraries fill the output layer from N(0, 1): 25.6 (MT5)
and 38.1 (Funnel). `excess` lies between, at 3.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib.util
import io
import math
import multiprocessing
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import all_entries
from trainlint.capture.inputs import Inputs
from trainlint.capture.search import synthesize
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.graph import Graph
from trainlint.loss.objective import objective_of
from trainlint.loss.uses import LossCall, Losses
from trainlint.measure.pulse import pulse

Row = tuple[str, int, float]
HEALTHY = Path(__file__).parent.parent / "fixtures" / "healthy"
LEAST_CLASSES = 2


def scores_of(graph: Graph) -> list[LossCall]:
    """A cross entropy on each output that a linear layer made: its classes lie on the last axis."""
    found = []
    outputs: Any = graph.nodes[-1].args[0]
    for path, node in outputs.items():
        shape = graph.shape(node)
        if shape is None or len(shape) not in (2, 3) or not graph.is_floating(node):
            continue
        source, _ = graph.producer(node)
        head = node if graph.is_weighted(node) else source
        if head is None or graph.name(head) != "linear" or shape[-1] < LEAST_CLASSES:
            continue
        if path in ("output", "logits", "0") and len(shape) in (2, 3):
            found.append(LossCall("cross_entropy", node, None, path, steps=()))
    return found


def measured(name: str, model: nn.Module, inputs: Inputs | None) -> Row | None:
    """(name, classes, loss) of one model, None where it has no scores."""
    with single_node_functions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if inputs is None:
            found = synthesize(model)
            inputs, recording = found.inputs, found.recording
        else:
            recording = capture(model, inputs.args, inputs.kwargs)
        if recording.exception is not None:
            return None
        graph = Graph(recording.graph, recording.model, inputs_given=False)
        calls = scores_of(graph)[:1]
        if not calls:
            return None
        shape = graph.shape(calls[0].scores) or ()
        objective = objective_of(Losses(graph, tuple(calls)))

        def last_axis(output: Any) -> Any:
            """Sequences of scores, flattened."""
            from trainlint.tree import tensors

            parts = {key or "output": value for key, value in tensors(output)}
            scores = parts[str(calls[0].path)]
            return None if objective is None else objective({
                str(calls[0].path): scores.reshape(-1, scores.shape[-1])
            })  # fmt: skip

        torch.manual_seed(0)
        signal = pulse(model, inputs, graph, objective=last_axis)
        return name, shape[-1], signal.value


def healthy() -> Iterator[tuple[str, nn.Module]]:
    """The models that the healthy fixtures define without arguments."""
    for path in sorted(HEALTHY.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            spec.loader.exec_module(module)
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and issubclass(value, nn.Module):
                with contextlib.suppress(Exception):
                    yield f"fixtures/{path.stem}.{name}", value()


def work(number: int) -> Row | None:
    """One model of the zoo, in a process of its own."""
    torch.set_num_threads(1)
    entry = all_entries()[number]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torch.manual_seed(0)
            model = entry.build().train()
            inputs = None
            if entry.inputs is not None:
                args, kwargs = entry.inputs()
                inputs = Inputs(tuple(args), dict(kwargs), "of the zoo", given=False)
            return measured(entry.name, model, inputs)
    except Exception:
        return None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    numbers = [i for i, e in enumerate(all_entries()) if fnmatch.fnmatch(e.name, options.only)]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=40) as pool:
        rows = [row for row in map(shown, pool.imap_unordered(work, numbers)) if row is not None]
    for name, model in healthy():
        if fnmatch.fnmatch(name, options.only):
            with contextlib.suppress(Exception):
                row = shown(measured(name, model.train(), None))
                rows += [row] if row is not None else []
    report([row for row in rows if math.isfinite(row[2])])


def shown(row: Row | None) -> Row | None:
    """Progress, on standard error."""
    if row is not None:
        print(*row, file=sys.stderr, flush=True)
    return row


def report(rows: list[Row]) -> None:
    """The models by their excess, and its quantiles."""
    excess = sorted((loss - math.log(classes), name, classes, loss) for name, classes, loss in rows)
    print(f"{'excess':>8} {'loss':>8} {'log C':>7} {'ratio':>6}  model")
    for difference, name, classes, loss in excess:
        base = math.log(classes)
        print(f"{difference:8.3f} {loss:8.3f} {base:7.3f} {loss / base:6.2f}  {name} ({classes})")
    values = [difference for difference, *_ in excess]
    cuts = statistics.quantiles(values, n=20)
    print(f"{len(values)} models; excess median {statistics.median(values):.3f}, "
          f"5% {cuts[0]:.3f}, 95% {cuts[-1]:.3f}, largest {values[-1]:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
