"""How trainlint fares on architectures that nobody here wrote, and on awkward modules of our own.

    python -m benchmarks.zoo [--only PATTERN] [--jobs N] [--json FILE] [--findings]

For each model of `zoo_library` and `zoo_awkward`, in a process of its own:

* captured: the capture of the given inputs ends without an exception or a fault;
* module path, shape and call site of every leaf-module call, against hooks in a real eager run;
* inputs: whether synthesised inputs run in eager PyTorch;
* findings at error or warning level, on the given and on the synthesised inputs: false unless the name
  of the model ends in `_unsound`;
* untouched: parameters, buffers, gradients, attributes and random states as before;
* five faults injected into random layers: whether one capture names all of them;
* time of the capture as a ratio to one eager forward and backward in the same process.

`--findings` asks for the findings alone, advice included, which is much faster.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import functools
import io
import itertools
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_library import Entry
from trainlint.capture.inputs import Inputs
from trainlint.capture.search import synthesize
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.errors import InputError
from trainlint.graph import Graph
from trainlint.registry import all_rules
from trainlint.rule import Settings
from trainlint.sites import SITE_ATTRIBUTE, calling_site, recording
from trainlint.subject import analyze
from trainlint.tree import map_tensors, tensors

INJECTED = 5
SECONDS_PER_MODEL = 180
Row = dict[str, Any]
Fresh = Callable[[], tuple[Any, Any]]


def all_entries() -> list[Entry]:
    """Library entries first, then the awkward ones."""
    from benchmarks import zoo_awkward, zoo_library

    return [*zoo_library.entries(), *zoo_awkward.entries()]


def cloned(value: Any) -> Any:
    """The inputs, safe from a forward that writes into them."""
    return map_tensors(value, lambda _, tensor: tensor.detach().clone())


# ---------------------------------------------------------------------- the eager reference


def eager_calls(model: nn.Module, args: Any, kwargs: Any) -> list[tuple[str, Any, Any, bool]]:
    """(path, output shape, call site, computes) of every leaf-module call of a real forward."""
    calls: list[tuple[str, Any, Any, bool]] = []
    sites: list[Any] = []
    names = {id(module): name for name, module in model.named_modules()}

    def before(*_: Any) -> None:
        site = calling_site(2)
        sites.append(None if site is None else (site.filename, site.row))

    def after(module: nn.Module, given: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        site = sites.pop()
        computes = not any(output is value for value in given)
        calls.append((names[id(module)], shape, site, computes))

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if is_leaf(module):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        model(*cloned(args), **cloned(kwargs))
    return calls


def is_leaf(module: nn.Module) -> bool:
    """A torch.nn layer without children of its own."""
    return type(module).__module__.startswith("torch.nn.modules") and not any(module.children())


def captured_calls(graph: torch.fx.Graph, model: nn.Module) -> list[tuple[str, Any, Any, bool]]:
    """The same from a capture: the last node of each run of nodes that a leaf module made."""
    leaves = {name for name, module in model.named_modules() if is_leaf(module)}
    calls: list[tuple[str, Any, Any, bool]] = []
    for node in graph.nodes:
        operation = node.meta["operation"]
        if node.op != "call_function" or operation.module not in leaves:
            continue
        if operation.name == "output":
            continue
        site = operation.site
        shape = None if operation.shape is None else operation.shape.dims
        place = None if site is None else (site.filename, site.row)
        calls.append((operation.module, shape, place, True))
    return calls


def compare(eager: list[Any], seen: list[Any]) -> tuple[int, int, int, int]:
    """(calls, right paths in order, right shapes, right call sites), by runs of calls of one module.

    The last operation of a run is the layer's own: hooks before it may have made others. A module that
    hands back its input computes nothing that could be seen.
    """
    expected, found = runs(eager), runs(seen)
    counts = [0, 0, 0, 0]
    place = 0
    for path, shape, site, computes in expected:
        hit = place < len(found) and found[place][0] == path
        if not hit and not computes:
            continue
        counts[0] += 1
        if hit:
            _, found_shape, found_site, _ = found[place]
            counts[1] += 1
            counts[2] += shape is None or shape == found_shape
            # Children of a bare Sequential are called from here, which is nobody's model.
            counts[3] += site == found_site or (found_site is None and site[0] == __file__)
            place += 1
    return counts[0], counts[1], counts[2], counts[3]


def runs(calls: list[Any]) -> list[Any]:
    """The last call of each run of calls of one module."""
    return [list(group)[-1] for _, group in itertools.groupby(calls, key=lambda call: call[0])]


# ---------------------------------------------------------------------- one model


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as before, by value or identity."""
    found: dict[str, Any] = {"rng": torch.get_rng_state().clone(), "random": random.getstate()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            found[name] = (id(tensor), tensor.requires_grad, tensor.grad, tensor.detach().clone())
    for name, module in model.named_modules():
        found[f"{name}()"] = (
            module.training,
            {key: id(value) for key, value in vars(module).items()},
            list(module._forward_hooks),
        )
    return found


def same(left: Any, right: Any) -> bool:
    """Equality that knows tensors."""
    if isinstance(left, Tensor):
        if left.is_sparse:
            return right.is_sparse and torch.equal(left.to_dense(), right.to_dense())
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def seconds_of(run: Callable[[], Any]) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def only_findings(entry: Entry) -> Row:
    """The findings on the given inputs, or on synthesised ones where none are known."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    row: Row = {"name": entry.name}
    with recording(), single_node_functions(), quiet():
        model = entry.build().train()
        inputs = None
        if entry.inputs is not None:
            torch.manual_seed(1)
            inputs = Inputs(*entry.inputs(), "given", given=True)
        analysis = analyze(model, inputs, target="zoo", settings=Settings(tuple(all_rules())))
    row["status"] = analysis.result.status
    row["reason"] = analysis.result.reason
    row["notes"] = analysis.result.notes
    row["all"] = [
        f"{raw.reported.severity} {raw.reported.code} {raw.reported.module}: {raw.reported.message}"
        for raw in analysis.findings
    ]
    return row


def measure(entry: Entry) -> Row:
    """All figures of one model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    row: Row = {"name": entry.name}
    with recording(), single_node_functions(), quiet():
        model = entry.build().train()
        lazy = any(isinstance(p, nn.parameter.UninitializedTensorMixin) for p in model.parameters())

        def fresh() -> tuple[Any, Any]:
            """The same inputs each time, also where they are used up by a forward."""
            assert entry.inputs is not None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                return entry.inputs()

        def eager() -> None:
            args, kwargs = fresh()
            output = model(*args, **kwargs)
            parts = [t for _, t in tensors(output) if t.requires_grad]
            if parts:
                sum((t.abs() if t.is_complex() else t).float().sum() for t in parts).backward()

        if entry.inputs is not None and not lazy:
            try:
                eager()
            except Exception as error:
                row["eager"] = f"{type(error).__name__}: {error}"[:200]
                return row
            model.zero_grad()
            row["eager"] = "ok"
        elif lazy:
            row["eager"] = "lazy"
        before = fingerprint(model)
        if entry.inputs is not None:
            on_given(row, model, fresh)
        on_synthesized(row, model)
        after = fingerprint(model)
        row["touched"] = [key for key in before if not same(before[key], after.get(key))]
        row["untouched"] = not row["touched"] and before.keys() == after.keys()
        if row.get("eager") == "ok":
            seconds = seconds_of(eager)
            row["eager_s"] = seconds
            row["capture_s"] = seconds_of(lambda: capture(model, *fresh()))
            row["ratio"] = row["capture_s"] / seconds
            torch.manual_seed(0)
            with torch.compiler.set_stance("force_eager"):
                leaves = eager_calls(model, *fresh())
            torch.manual_seed(0)
            seen = captured_calls(capture(model, *fresh()).graph, model)
            row["leaf"] = compare(leaves, seen)
            inject(row, model, fresh, {path for path, *_ in leaves})
    return row


def on_given(row: Row, model: nn.Module, fresh: Fresh) -> None:
    """Capture and findings on the inputs that are known to be good."""
    recorded = capture(model, *fresh())
    if recorded.exception is not None:
        row["captured"] = f"{type(recorded.exception).__name__}: {recorded.exception}"[:300]
        row["trace"] = "".join(traceback.format_exception(recorded.exception))[-1500:]
    elif recorded.faults:
        operation = recorded.faults[0].meta["operation"]
        row["captured"] = f"fault in {operation.name}: {operation.error}"[:300]
    else:
        row["captured"] = "ok"
    graph = Graph(recorded.graph, model)
    row["complete"] = graph.complete
    row["operations"] = len(graph.calls_in_order)
    inputs = Inputs(*fresh(), "given", given=True)
    row["findings"] = findings_on(model, inputs)


def on_synthesized(row: Row, model: nn.Module) -> None:
    """Whether inputs are found, run in eager, and lead to no finding."""
    started = time.perf_counter()
    try:
        found = synthesize(model)
    except InputError as error:
        row["synthesized"] = f"{error}: {error.refusal}"[:200]
        return
    row["synthesis_s"] = time.perf_counter() - started
    try:
        with torch.random.fork_rng(devices=[]):
            copy.deepcopy(model)(*cloned(found.inputs.args), **cloned(found.inputs.kwargs))
        row["synthesized"] = "ok"
    except Exception as error:
        row["synthesized"] = f"eager refuses {found.inputs.describe()}: {error}"[:200]
    row["synthesized_findings"] = findings_on(model, None)


def findings_on(model: nn.Module, inputs: Inputs | None) -> list[str]:
    """Findings at error or warning level."""
    settings = Settings(tuple(all_rules()))
    analysis = analyze(model, inputs, target="zoo", settings=settings)
    if analysis.result.status == "error" and "rule" in (analysis.result.reason or "")[:5]:
        return [analysis.result.reason or ""]
    return [
        f"{raw.reported.code} {raw.reported.module}: {raw.reported.message}"
        for raw in analysis.findings
        if raw.reported.severity != "info"
    ]


# ---------------------------------------------------------------------- injected faults


def inject(row: Row, model: nn.Module, fresh: Fresh, called: set[str]) -> None:
    """Break up to five random layers' widths at once and see whether one run names them all."""
    generator = random.Random(0)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    eligible = [
        (name, module)
        for name, module in model.named_modules()
        if name in called
        and broken(module) is not None
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
        and not hasattr(module, "parametrizations")
        and not module._forward_pre_hooks
    ]
    chosen = generator.sample(eligible, min(INJECTED, len(eligible)))
    if not chosen:
        return
    try:
        faulty = copy.deepcopy(model)
    except Exception:
        return
    for name, module in chosen:
        parent, _, last = name.rpartition(".")
        replacement = broken(module)
        assert replacement is not None
        replacement.train(module.training)
        replacement.__dict__[SITE_ATTRIBUTE] = module.__dict__.get(SITE_ATTRIBUTE)
        setattr(faulty.get_submodule(parent), last, replacement)
    recorded = capture(faulty, *fresh())
    row["injected"] = len(chosen)
    if recorded.exception is not None:
        row["injected_error"] = f"{type(recorded.exception).__name__}: {recorded.exception}"[:200]
        row["injected_layers"] = [f"{name}: {module}" for name, module in chosen]
        row["found"] = 0
        return
    wanted = {name for name, _ in chosen}
    inputs = Inputs(*fresh(), "given", given=True)
    analysis = analyze(faulty, inputs, target="zoo", settings=Settings(tuple(all_rules())))
    named: set[str] = set()
    for raw in analysis.findings:
        for finding in (raw.reported, *raw.reported.symptoms):
            named |= {finding.module, *finding.evidence.get("modules", [])}
    row["found"] = len(wanted & named)
    row["missed"] = [f"{name}: {module}" for name, module in chosen if name not in named]
    row["follow_ups"] = sorted(named - wanted)


def broken(module: nn.Module) -> nn.Module | None:
    """The same layer for another input width, or None for layers that have none."""
    kind = type(module)
    if kind is nn.Linear:
        return nn.Linear(module.in_features + 3, module.out_features, module.bias is not None)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert isinstance(module, nn.modules.conv._ConvNd)
        make: Any = kind
        return make(
            module.in_channels + module.groups, module.out_channels, module.kernel_size,
            module.stride, module.padding, module.dilation, module.groups, module.bias is not None,
        )  # fmt: skip
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        make = kind
        return make(module.num_features + 3)
    if kind is nn.LayerNorm and len(module.normalized_shape) == 1:
        return nn.LayerNorm(module.normalized_shape[0] + 3)
    if kind is nn.GroupNorm:
        return nn.GroupNorm(module.num_groups, module.num_channels + module.num_groups)
    return None


# ---------------------------------------------------------------------- the run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn and print; that is not our subject."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def out_of_time(*_: Any) -> None:
    """One model may not hold up the rest."""
    raise TimeoutError(f"more than {SECONDS_PER_MODEL} s")


def measured(name: str, take: Callable[[Entry], Row] = measure) -> Row:
    """One row, whatever happens."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    entry = next(entry for entry in all_entries() if entry.name == name)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS_PER_MODEL)
    try:
        return take(entry)
    except Exception:
        return {"name": name, "crash": traceback.format_exc()[-1500:]}


def findings(rows: list[Row]) -> Iterator[str]:
    """How many models each rule speaks of, and every finding above advice."""
    yield f"models {len(rows)}; analysed {sum(row.get('status') == 'ok' for row in rows)}"
    for row in rows:
        if row.get("status") != "ok":
            crash = row.get("crash", "").strip().splitlines()[-1:]
            yield f"  not analysed {row['name']}: {row.get('reason') or crash}"
        for note in row.get("notes", ()):
            yield f"  note {row['name']}: {note}"
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for severity, code in {tuple(text.split()[:2]) for text in row.get("all", ())}:
            counts[code, severity] = counts.get((code, severity), 0) + 1
    for (code, severity), count in sorted(counts.items()):
        yield f"{code} {severity}: {count} models"
    for row in rows:
        for text in row.get("all", ()):
            if not text.startswith("info"):
                yield f"  {row['name']}: {text}"


def summary(rows: list[Row]) -> Iterator[str]:  # noqa: C901 - one paragraph a question
    """The lines that answer the questions of the module's docstring."""
    built = [row for row in rows if row.get("eager") in ("ok", "lazy")]
    crashed = [row for row in rows if "crash" in row]
    yield f"models {len(rows)}; run in eager {len(built)}; the benchmark itself failed on {len(crashed)}"
    for row in crashed:
        yield f"  crash {row['name']}: {row['crash'].strip().splitlines()[-1]}"
    captured = [row for row in built if row.get("captured") == "ok"]
    yield f"captured {len(captured)}/{len(built)}"
    for row in built:
        if row.get("captured") != "ok":
            yield f"  not captured {row['name']}: {row.get('captured')}"
    yield f"graphs without a gap {sum(bool(row.get('complete')) for row in built)}/{len(built)}"
    for row in built:
        if not row.get("complete"):
            yield f"  gap {row['name']}"
    inputs = [row for row in built if row.get("synthesized") == "ok"]
    yield f"inputs synthesised that eager runs {len(inputs)}/{len(built)}"
    for row in built:
        if row.get("synthesized") != "ok":
            yield f"  no inputs {row['name']}: {row.get('synthesized')}"
    leaf = [
        sum(counts) for counts in zip(*(row["leaf"] for row in built if "leaf" in row), strict=True)
    ]
    if leaf:
        yield f"leaf calls {leaf[0]}; right path {leaf[1]}, shape {leaf[2]}, call site {leaf[3]}"
    for row in built:
        if "leaf" in row and len(set(row["leaf"])) > 1:
            yield f"  metadata {row['name']}: {row['leaf']}"
    yield f"untouched {sum(bool(row.get('untouched')) for row in built)}/{len(built)}"
    for row in built:
        if not row.get("untouched"):
            yield f"  touched {row['name']}: {row.get('touched')}"
    sound = [row for row in built if not row["name"].endswith("_unsound")]
    false = [
        (row["name"], finding)
        for row in sound
        for finding in {*row.get("findings", []), *row.get("synthesized_findings", [])}
    ]
    yield f"false findings {len(false)} on {len(sound)} sound models"
    for name, finding in false:
        yield f"  false {name}: {finding}"
    injected = [row for row in built if row.get("injected")]
    full = [row for row in injected if row["found"] == row["injected"]]
    faults = sum(row["injected"] for row in injected)
    yield (
        f"injected faults found {sum(row['found'] for row in injected)}/{faults}, "
        f"all of them in {len(full)}/{len(injected)} models"
    )
    for row in injected:
        if row["found"] != row["injected"]:
            yield f"  missed {row['name']}: {row.get('missed') or row.get('injected_error')}"
    follow = [(row["name"], row["follow_ups"]) for row in injected if row.get("follow_ups")]
    yield f"models with follow-up findings behind an injected fault {len(follow)}"
    for name, names in follow:
        yield f"  follow-up {name}: {names[:4]}"
    ratios = [row["ratio"] for row in built if "ratio" in row]
    if ratios:
        yield (
            f"capture time / eager forward+backward: median {statistics.median(ratios):.2f}, "
            f"largest {max(ratios):.1f}; median capture "
            f"{statistics.median(row['capture_s'] for row in built if 'ratio' in row):.3f} s"
        )


def main() -> None:
    """Run the zoo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="names, with * and ?")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--findings", action="store_true", help="only the findings, with advice")
    options = parser.parse_args()
    names = [e.name for e in all_entries() if fnmatch.fnmatch(e.name, options.only)]
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=20) as pool:
        take = functools.partial(measured, take=only_findings if options.findings else measure)
        for row in pool.imap_unordered(take, names):
            rows.append(row)
            print(f"\r{len(rows)}/{len(names)} {row['name']:<60.60}", end="", file=sys.stderr)
    rows.sort(key=lambda row: names.index(row["name"]))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1, default=str))
    print(file=sys.stderr)
    for line in findings(rows) if options.findings else summary(rows):
        print(line)


if __name__ == "__main__":
    main()
