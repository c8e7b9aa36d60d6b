"""What the pulse sees, costs and leaves behind, on the models of the zoo.

    python -m benchmarks.pulse [--only PATTERN] [--jobs N] [--json FILE]

For each model that runs in eager mode: whether it could be measured, the share of recorded operations
of its graph that the real run found again, whether parameters, buffers, gradients, attributes and
random states are as before, and the time of a pulse over that of a bare forward and backward pass of
the same batch in the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import all_entries, fingerprint, out_of_time, quiet, same
from trainlint.capture.batches import with_batch
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.pulse import RECORDED, objective_of, pulse
from trainlint.measure.signal import Signal

SECONDS_PER_MODEL = 180
Row = dict[str, Any]


def measure(name: str) -> Row:
    """All figures of one model."""
    torch.set_num_threads(1)
    entry = next(entry for entry in all_entries() if entry.name == name)
    row: Row = {"name": name}
    if entry.inputs is None:
        return row
    torch.manual_seed(0)
    random.seed(0)
    with single_node_functions():
        model = entry.build().train()
        torch.manual_seed(1)
        given = Inputs(*entry.inputs(), "zoo", given=False)
        recording = capture(model, given.args, given.kwargs)
        model = recording.model
        graph = Graph(recording.graph, model, faults=recording.faults, inputs_given=False)
        before = fingerprint(model)
        try:
            found = pulse(model, given, graph)
        except FactUnavailable as reason:
            row["refused"] = str(reason)
            found = None
        after = fingerprint(model)
        row["touched"] = [key for key in before if not same(before[key], after.get(key))]
        if found is None:
            return row
        wanted = [
            node
            for node in graph.calls_in_order
            if graph.name(node) in RECORDED and graph.is_floating(node)
        ]
        row["operations"] = len(wanted)
        row["seen"] = len(found.sites)
        row["unseen"] = [f"{graph.operation(node).module}:{graph.name(node)}"
                         for node in wanted if node not in found.sites][:5]  # fmt: skip
        row["batch"] = found.batch
        row["objective"] = found.objective
        row["finite"] = found.non_finite is None
        row["gradients"] = sum(value is not None for value in found.gradients.values())
        with contextlib.suppress(RuntimeError):  # reentrant checkpoints refuse a bare autograd.grad
            time_against_bare(row, model, given, graph, found)
    return row


def time_against_bare(
    row: Row, model: nn.Module, given: Inputs, graph: Graph, found: Signal
) -> None:
    """Pairs of a bare pass and a pulse, alternating; the median of the ratios."""
    batch = with_batch(given, found.batch)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def bare() -> None:
        output = model(*batch.args, **batch.kwargs)
        _, value = objective_of(output, None, 0)
        torch.autograd.grad(value, parameters, allow_unused=True)

    ratios, seconds = [], []
    for _ in range(5):
        started = time.perf_counter()
        bare()
        between = time.perf_counter()
        pulse(model, given, graph)
        ratios.append((time.perf_counter() - between) / (between - started))
        seconds.append(between - started)
    row["ratio"] = statistics.median(ratios)
    row["bare_s"] = statistics.median(seconds)


def measured(name: str) -> Row:
    """One row, whatever happens."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS_PER_MODEL)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return measure(name)
        except Exception:
            return {"name": name, "crash": traceback.format_exc()[-1500:]}


def report(rows: list[Row]) -> None:
    """The answers to the questions of the module's docstring."""
    for row in rows:
        if "crash" in row:
            print(f"  crash {row['name']}: {row['crash'].strip().splitlines()[-1]}")
    ran = [row for row in rows if "seen" in row]
    refused = [row for row in rows if "refused" in row]
    print(f"models {len(rows)}; measured {len(ran)}; refused {len(refused)}")
    for row in refused:
        print(f"  refused {row['name']}: {row['refused']}")
    touched = [row for row in rows if row.get("touched")]
    print(f"untouched {len(ran) + len(refused) - len(touched)}/{len(ran) + len(refused)}")
    for row in touched:
        print(f"  touched {row['name']}: {row['touched'][:4]}")
    seen, wanted = sum(row["seen"] for row in ran), sum(row["operations"] for row in ran)
    print(f"operations found again {seen}/{wanted}")
    for row in ran:
        if row["seen"] < row["operations"]:
            print(f"  unseen {row['name']}: {row['seen']}/{row['operations']} {row['unseen']}")
    for row in ran:
        if not row["finite"]:
            print(f"  not finite {row['name']}")
    ratios = sorted((row["ratio"], row["name"]) for row in ran if "ratio" in row)
    if ratios:
        values = [ratio for ratio, _ in ratios]
        small = sum(ratio <= 3 for ratio in values)
        print(
            f"pulse / bare forward+backward of the same batch: median "
            f"{statistics.median(values):.2f}, 90% {values[int(0.9 * len(values))]:.2f}, largest "
            f"{values[-1]:.1f} ({ratios[-1][1]}); at most 3 in {small}/{len(values)}"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="names, with * and ?")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args()
    names = [e.name for e in all_entries() if fnmatch.fnmatch(e.name, options.only)]
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=20) as pool:
        for row in pool.imap_unordered(measured, names):
            rows.append(row)
            print(f"\r{len(rows)}/{len(names)} {row['name']:<60.60}", end="", file=sys.stderr)
    rows.sort(key=lambda row: names.index(row["name"]))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1, default=str))
    print(file=sys.stderr)
    report(rows)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
