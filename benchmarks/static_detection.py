"""What trainlint finds of faults that are injected at random, and what it says of sound models.

    python -m benchmarks.static_detection [--only RULE] [--models PATTERN] [--seed N] [--jobs N]
        [--repeat N] [--keep DIRECTORY] [--json FILE] [--zoo N] [--library N] [--cost]

For each rule (`faults.py`) a fault is put into each of the sound models (`sound_models.py`) in a random
place and spelling, shown to be real (by numbers where they can show it), and checked through
`trainlint.check`. A row of the table says of one rule:

* injected: models with the fault; n/a: models in which no candidate was a real fault;
* found: share that is named by the rule's code, or by one that means the same fault;
* line: share of these with a finding on a line that was touched, or where its layer is constructed;
* others: findings at warning or above that the untouched model does not have.

Untouched models, also with a loss that is right, count false findings. `--zoo N` checks so many models
of public libraries as they are, `--library N` puts faults into N of them by surgery on the live model.
`--cost` measures time, as ratios within one run.
"""

from __future__ import annotations

import argparse
import collections
import copy
import fnmatch
import gc
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trainlint
from benchmarks.faults import (
    GENERATORS,
    Injection,
    Traced,
    built,
    floats,
    inject,
    objective,
    sound_with_loss,
)
from benchmarks.sound_models import MODELS
from trainlint.records import Report, ReportedFinding
from trainlint.registry import all_rules

Row = dict[str, Any]
SERIOUS = ("error", "warning")

# ---------------------------------------------------------------------- faults in sources


def injections_of(
    name: str, rules: list[str], seeds: list[int]
) -> list[tuple[str, int, Injection | None]]:
    """All faults for one model; runs in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    traced = Traced(MODELS[name])
    return [(rule, seed, inject(rule, traced, seed)) for rule in rules for seed in seeds]


def controls_of(name: str, seed: int) -> list[tuple[str, str]]:
    """The untouched source, and with losses that are right."""
    torch.set_num_threads(1)
    traced = Traced(MODELS[name])
    losses = [
        (f"{name}+loss{n} ({label})", text)
        for n, (label, text) in enumerate(sound_with_loss(traced, seed))
    ]
    return [(name, MODELS[name].source), *losses]


def all_findings(findings: Iterable[ReportedFinding]) -> Iterator[ReportedFinding]:
    """Findings and their symptoms."""
    for finding in findings:
        yield finding
        yield from all_findings(finding.symptoms)


def by_file(report: Report) -> dict[str, tuple[list[ReportedFinding], list[str]]]:
    """Findings and problems of each file, by its full name."""
    found: dict[str, tuple[list[ReportedFinding], list[str]]] = {}
    for target in report.targets:
        path = str(Path(target.target.split("::")[0]).resolve())
        entry = found.setdefault(path, ([], []))
        if target.status != "ok":
            entry[1].append(f"{target.target.split('::')[-1]}: {target.status}: {target.reason}")
    for finding in report.findings:
        path = str(Path(finding.target.split("::")[0]).resolve())
        found.setdefault(path, ([], []))[0].append(finding)
    return found


def judged(
    injection: Injection, found: list[ReportedFinding], untouched: list[ReportedFinding]
) -> Row:
    """What a check said about one injected fault."""
    before = collections.Counter(f.code for f in all_findings(untouched))
    after = collections.Counter(f.code for f in all_findings(found))
    answers = [f for f in all_findings(found) if f.code in injection.codes]
    right = [f for f in answers if f.location is not None and f.location.row in injection.lines]
    fresh = [f for f in answers if after[f.code] > before[f.code]]
    top = collections.Counter(f.code for f in found if f.severity in SERIOUS)
    old = collections.Counter(f.code for f in all_findings(untouched) if f.severity in SERIOUS)
    strange = [
        f
        for f in found
        if f.severity in SERIOUS
        and f.code not in (*injection.codes, *injection.also)
        and top[f.code] > old[f.code]
    ]
    return {
        "rule": injection.rule,
        "model": injection.model,
        "spelling": injection.spelling,
        "found": bool(right or fresh),
        "code": (right or fresh)[0].code if right or fresh else None,
        "severity": (right or fresh)[0].severity if right or fresh else None,
        "right_line": bool(right),
        "lines": sorted(injection.lines),
        "answers": [
            f"{f.code} line {f.location.row if f.location else None}: {f.message}" for f in answers
        ],
        "others": [
            f"{f.code} line {f.location.row if f.location else None}: {f.message}" for f in strange
        ],
        "all": [
            f"{f.code} {f.severity} line {f.location.row if f.location else None}" for f in found
        ],
    }


def in_sources(options: argparse.Namespace, folder: Path) -> tuple[list[Row], list[Row]]:
    """(rows of faults, rows of sound models)."""
    names = [name for name in MODELS if fnmatch.fnmatch(name, options.models)]
    rules = [rule for rule in GENERATORS if fnmatch.fnmatch(rule, options.only)]
    known = {rule.code for rule in all_rules()}
    running = [rule for rule in rules if rule in known or options.all]
    seeds = list(range(options.seed, options.seed + options.repeat))
    files: dict[str, tuple[str, Injection | None]] = {}
    rows: list[Row] = [{"rule": rule, "missing": True} for rule in rules if rule not in known]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        made = [(name, pool.submit(injections_of, name, running, seeds)) for name in names]
        sound = [(name, pool.submit(controls_of, name, options.seed)) for name in names]
        for name, future in sound:
            for number, (label, text) in enumerate(future.result()):
                path = folder / f"sound__{name}__{number}.py"
                path.write_text(text, encoding="utf-8")
                files[str(path.resolve())] = (label, None)
        for name, future in made:
            for rule, seed, injection in future.result():
                if injection is None:
                    rows.append({"rule": rule, "model": name, "inapplicable": True})
                    continue
                path = folder / f"{rule}__{name}__{seed}.py"
                path.write_text(injection.source, encoding="utf-8")
                files[str(path.resolve())] = (name, injection)
    started = time.perf_counter()
    checked = by_file(trainlint.check(list(files)))
    print(f"{len(files)} files checked in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    untouched = {label: path for path, (label, injection) in files.items() if injection is None}
    controls: list[Row] = []
    for path, (label, injection) in files.items():
        found, problems = checked.get(path, ([], ["not checked"]))
        if injection is None:
            serious = [f for f in found if f.severity in SERIOUS]
            controls.append(
                {
                    "model": label,
                    "file": path,
                    "false": [
                        f"{f.code} line {f.location.row if f.location else None}: {f.message}"
                        for f in serious
                    ],
                    "advice": [f.code for f in all_findings(found) if f.severity == "info"],
                    "problems": problems,
                }
            )
            continue
        row = judged(injection, found, checked.get(untouched[label], ([], []))[0])
        rows.append({**row, "file": path, "problems": problems})
    return rows, controls


# ---------------------------------------------------------------------- the table


def table(rows: list[Row]) -> Iterator[str]:
    """One line a rule."""
    yield f"{'rule':8} {'injected':>8} {'n/a':>5} {'found':>12} {'line':>7} {'others':>7} {'errors':>7}"
    total: collections.Counter[str] = collections.Counter()
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = [row for row in rows if row["rule"] == rule]
        done = [row for row in own if "found" in row]
        missing = any(row.get("missing") for row in own)
        if not done:
            yield f"{rule:8} {'not in the registry' if missing else 'no injection'}"
            continue
        hits = [row for row in done if row["found"]]
        lines = sum(row["right_line"] for row in hits)
        others = sum(bool(row["others"]) for row in done)
        errors = sum(bool(row["problems"]) for row in done)
        without = sum(bool(row.get("inapplicable")) for row in own)
        share = f"{len(hits)} ({100 * len(hits) / len(done):.0f}%)"
        right = f"{100 * lines / len(hits):.0f}%" if hits else "-"
        total.update(injected=len(done), found=len(hits), lines=lines, others=others)
        note = "  not in the registry" if missing else ""
        yield f"{rule:8} {len(done):8} {without:5} {share:>12} {right:>7} {others:7} {errors:7}{note}"
    if total["injected"]:
        yield (
            f"all: {total['injected']} injected, found {total['found']} "
            f"({100 * total['found'] / total['injected']:.1f}%), right line "
            f"{100 * total['lines'] / max(1, total['found']):.1f}%, with other findings {total['others']}"
        )


def on_sound(controls: list[Row], where: str) -> Iterator[str]:
    false = [(row["model"], text) for row in controls for text in row["false"]]
    models = len({model for model, _ in false})
    yield f"{where}: {len(controls)} sound, {len(false)} false findings at warning or above on {models}"
    for model, text in false:
        yield f"  false {model}: {text}"
    for row in controls:
        for problem in row["problems"]:
            yield f"  problem {row['model']}: {problem}"
    advice = collections.Counter(code for row in controls for code in set(row["advice"]))
    if advice:
        yield "  advice (info), models: " + ", ".join(
            f"{code} {n}" for code, n in advice.most_common()
        )


# ---------------------------------------------------------------------- the zoo and surgery on it

SECONDS_PER_MODEL = 240


def out_of_time(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS_PER_MODEL} s")


def findings_on(
    model: nn.Module, inputs: tuple[Any, Any]
) -> tuple[list[ReportedFinding], str | None]:
    """Findings of the whole analysis on a live model and its known inputs."""
    from trainlint.capture.inputs import Inputs
    from trainlint.rule import Settings
    from trainlint.subject import analyze

    settings = Settings(tuple(all_rules()))
    analysis = analyze(model, Inputs(*inputs, "given", given=True), target="zoo", settings=settings)
    reason = analysis.result.reason if analysis.result.status != "ok" else None
    return [raw.reported for raw in analysis.findings], reason


class Around(nn.Module):
    """A layer with something wrong behind it."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.change(self.inner(*args, **kwargs))


def detached(x: Tensor) -> Tensor:
    return x.detach()


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape)


def over_the_batch(x: Tensor) -> Tensor:
    return x.softmax(0)


def dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.3)


def noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def logarithm(x: Tensor) -> Tensor:
    return torch.log(x.relu())


def mostly_dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.9, training=True) if x.requires_grad else x


SURGERY: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    # code: what is put behind a layer, codes that are the same fault or follow from it
    "ARC005": (detached, ()),
    "ARC006": (transposed, ("ARC009",)),
    "ACT003": (over_the_batch, ("ARC006", "ARC009", "ACT005", "ARC012", "INI003", "GRD001")),
    "REG002": (dropped, ("GEN009", "REG003", "NRM007")),
    "GEN009": (noisy, ("ARC009",)),
    "GRD003": (logarithm, ("ARC012", "ARC005", "ARC011", "INI004", "GRD002")),
}
LAYERS = (nn.Linear, nn.LayerNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Dropout, nn.ReLU, nn.GELU)


def live_outputs(
    model: nn.Module, fresh: Callable[[], Any], *, train: bool, shake: bool = False
) -> list[Tensor]:
    args, kwargs = fresh()
    if shake:
        args = tuple(shaken_first(a) for a in args)
        kwargs = {k: shaken_first(a) for k, a in kwargs.items()}
    model.train(train)
    torch.manual_seed(3)
    return outputs_of(model(*args, **kwargs))


def outputs_of(value: Any) -> list[Tensor]:
    return floats(dict(value) if hasattr(value, "keys") else value)


def shaken_first(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
        value = value.clone()
        value[0] = value[0] * 0.5 + 0.3
    return value


def live_gradients(model: nn.Module, fresh: Callable[[], Any]) -> tuple[set[str], bool]:
    """(names of parameters that get a gradient, whether everything is finite)."""
    model.zero_grad()
    outputs = live_outputs(model, fresh, train=True)
    value = objective([t for t in outputs if t.requires_grad])
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    finite = all(bool(t.isfinite().all()) for t in outputs) and all(
        bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None
    )
    return {n for n, p in model.named_parameters() if p.grad is not None}, finite


def is_real(code: str, sound: nn.Module, faulty: nn.Module, fresh: Callable[[], Any]) -> bool:
    """Whether the surgery did what it should, by numbers."""
    if code == "ARC005":
        before, _ = live_gradients(sound, fresh)
        after, _ = live_gradients(faulty, fresh)
        return len(after) < len(before)
    if code == "GRD003":
        return live_gradients(sound, fresh)[1] and not live_gradients(faulty, fresh)[1]
    with torch.no_grad():
        if code == "ARC006":
            pairs = []
            for model in (sound, faulty):
                one, two = (live_outputs(model, fresh, train=False, shake=s) for s in (False, True))
                pairs.append(
                    any(
                        not torch.allclose(a[1:], b[1:], atol=1e-6)
                        for a, b in zip(one, two, strict=True)
                    )
                )
            return pairs == [False, True]
        if code in ("REG002", "GEN009"):
            differ = []
            for model in (sound, faulty):
                one = live_outputs(model, fresh, train=False)
                args, kwargs = fresh()
                two = outputs_of(model(*args, **kwargs))
                differ.append(any(not torch.equal(a, b) for a, b in zip(one, two, strict=True)))
            return differ == [False, True]
        live_outputs(faulty, fresh, train=True)
    return True


def surgery(
    model: nn.Module, fresh: Callable[[], Any], code: str, rng: random.Random
) -> tuple[nn.Module, str] | None:
    """A copy of the model with a real fault behind a random layer, and the layer's path."""
    places = [path for path, m in model.named_modules() if type(m) in LAYERS and path]
    for path in rng.sample(places, min(len(places), 6)):
        try:
            faulty = copy.deepcopy(model)
            parent, _, last = path.rpartition(".")
            inner = faulty.get_submodule(path)
            setattr(faulty.get_submodule(parent), last, Around(inner, SURGERY[code][0]))
            if is_real(code, model, faulty, fresh):
                faulty.zero_grad(set_to_none=True)
                return faulty.train(), path
        except Exception:
            continue
    return None


def on_library_model(task: tuple[str, int, list[str], bool]) -> Row:
    """False findings on one model of the zoo and, where asked, faults in it."""
    name, seed, codes, operate = task
    from benchmarks.zoo import all_entries, quiet
    from trainlint.capture.tracer import single_node_functions
    from trainlint.sites import recording

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS_PER_MODEL)
    row: Row = {"model": name, "false": [], "advice": [], "problems": [], "faults": []}
    try:
        entry = next(entry for entry in all_entries() if entry.name == name)
        if entry.inputs is None:
            return {**row, "problems": ["no inputs"]}
        with recording(), single_node_functions(), quiet():
            torch.manual_seed(0)
            model = entry.build().train()

            def fresh() -> Any:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(1)
                    assert entry.inputs is not None
                    return entry.inputs()

            started = time.perf_counter()
            found, reason = findings_on(model, fresh())
            row["seconds"] = time.perf_counter() - started
            row["problems"] = [reason] if reason else []
            row["false"] = [
                f"{f.code} {f.module}: {f.message}" for f in found if f.severity in SERIOUS
            ]
            row["advice"] = [f.code for f in all_findings(found) if f.severity == "info"]
            if operate:
                row["faults"] = list(operations(name, seed, codes, model, fresh, found))
    except Exception as error:
        row["problems"] = [f"{type(error).__name__}: {error}"[:300]]
    signal.alarm(0)
    gc.collect()
    return row


def operations(
    name: str,
    seed: int,
    codes: list[str],
    model: nn.Module,
    fresh: Callable[[], Any],
    before: list[ReportedFinding],
) -> Iterator[Row]:
    known = collections.Counter(f.code for f in all_findings(before))
    for code in codes:
        rng = random.Random(f"{code} {name} {seed}")
        done = surgery(model, fresh, code, rng)
        if done is None:
            yield {"rule": code, "model": name, "inapplicable": True}
            continue
        faulty, path = done
        found, reason = findings_on(faulty, fresh())
        answers = [f for f in all_findings(found) if f.code == code]
        right = [
            f
            for f in answers
            if any(
                m == path or m.startswith(f"{path}.")
                for m in (f.module, *f.evidence.get("modules", []))
            )
        ]
        fresh_codes = collections.Counter(f.code for f in all_findings(found))
        strange = [
            f for f in found
            if f.severity in SERIOUS and f.code != code and f.code not in SURGERY[code][1]
            and fresh_codes[f.code] > known[f.code]
        ]  # fmt: skip
        yield {
            "rule": code,
            "model": name,
            "spelling": f"behind {path}",
            "found": bool(right) or len(answers) > known[code],
            "right_line": bool(right),
            "others": [f"{f.code} {f.module}: {f.message}" for f in strange],
            "all": [f"{f.code} {f.module}" for f in found],
            "problems": [reason] if reason else [],
        }


def on_library(options: argparse.Namespace) -> list[Row]:
    from benchmarks.zoo import all_entries

    names = [e.name for e in all_entries() if not e.name.endswith("_unsound")]
    names = [n for n in names if fnmatch.fnmatch(n, options.entries)]
    rng = random.Random(options.seed)
    if options.zoo:
        names = rng.sample(names, min(options.zoo, len(names)))
    else:
        names = rng.sample(names, min(options.library, len(names)))
    chosen = set(names[: options.library])
    known = {rule.code for rule in all_rules()}
    codes = [code for code in SURGERY if code in known and fnmatch.fnmatch(code, options.only)]
    tasks = [(name, options.seed, codes, name in chosen) for name in names]
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=15) as pool:
        for row in pool.imap_unordered(on_library_model, tasks):
            rows.append(row)
            print(f"\r{len(rows)}/{len(names)} {row['model']:<60.60}", end="", file=sys.stderr)
            if options.json is not None:  # a long run that is broken off leaves what it has
                options.json.write_text(json.dumps({"zoo": rows}, default=str))
    print(file=sys.stderr)
    return sorted(rows, key=lambda row: names.index(row["model"]))


# ---------------------------------------------------------------------- cost


def best_of(run: Callable[[], Any], times: int = 3, enough: float = 4.0) -> float:
    """Processor seconds of the fastest of several runs; long ones are not repeated."""
    found: list[float] = []
    while len(found) < times and sum(found) < enough:
        gc.collect()
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


def costs_of(model: nn.Module, inputs: tuple[Any, ...]) -> Row:
    """Seconds of the stages of one check, and of one bare forward and backward of the same batch."""
    from trainlint.capture.inputs import Inputs
    from trainlint.capture.tracer import capture
    from trainlint.graph import Graph
    from trainlint.measure.pulse import pulse
    from trainlint.rule import Settings
    from trainlint.subject import analyze

    def bare() -> None:
        model.zero_grad()
        objective([t for t in floats(model(*inputs)) if t.requires_grad]).backward()  # type: ignore[no-untyped-call]

    def check(stages: tuple[str, ...]) -> None:
        given = Inputs(inputs, {}, "given", given=True)
        analyze(model, given, target="cost", settings=Settings(tuple(all_rules()), stages=stages))

    model.train()
    bare()
    recorded = capture(model, inputs, {})
    graph = Graph(recorded.graph, recorded.model)
    given = Inputs(inputs, {}, "given", given=True)
    return {
        "operations": len(graph.calls_in_order),
        "bare": best_of(bare),
        "capture": best_of(lambda: capture(model, inputs, {})),
        "static": best_of(lambda: check(("static",))),
        "pulse": best_of(lambda: pulse(graph.model, given, graph)),
        "whole": best_of(lambda: check(("static", "signal"))),
    }


def plain(depth: int, width: int = 64) -> nn.Module:
    """An MLP of so many Linear layers."""
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())])


class Residual(nn.Module):
    """conv, norm, activation, twice, and a way around."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.one(x)))
        return torch.relu(x + self.norm2(self.two(hidden)))


def residual(depth: int) -> nn.Module:
    """A residual net of about so many convolutions."""
    blocks = [Residual(8) for _ in range(max(1, depth // 2))]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks)


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of log seconds over log depth, by least squares over the larger half."""
    logs = [(math.log(x), math.log(y)) for x, y in points[len(points) // 2 :]]
    mx, my = (statistics.fmean(column) for column in zip(*logs, strict=True))
    return sum((x - mx) * (y - my) for x, y in logs) / sum((x - mx) ** 2 for x, _ in logs)


def bars(points: list[tuple[int, float]]) -> Iterator[str]:
    """A plot as text: microseconds a layer at each depth."""
    each = [(depth, seconds / depth * 1e6) for depth, seconds in points]
    largest = max(value for _, value in each)
    for depth, value in each:
        yield f"    {depth:5} layers {value:9.0f} µs a layer {'#' * round(40 * value / largest)}"


def cost(options: argparse.Namespace) -> tuple[list[str], Row]:
    """The lines of the report on time, and the figures."""
    torch.set_num_threads(1)
    lines, figures = [], {"models": [], "depth": {}}
    for name, sound in MODELS.items():
        if not fnmatch.fnmatch(name, options.models):
            continue
        model, inputs = built(sound.source, sound.main)
        figures["models"].append({"model": name, **costs_of(model, inputs)})
        print(f"{len(figures['models'])} {name}", file=sys.stderr)
    rows = figures["models"]

    def ratio(one: str, two: str) -> str:
        values = sorted(row[one] / row[two] for row in rows)
        return f"median {statistics.median(values):.2f}, largest {values[-1]:.2f}"

    lines.append(f"cost on {len(rows)} models, ratios within this run")
    lines.append(f"  capture and static rules / capture alone: {ratio('static', 'capture')}")
    lines.append(f"  pulse / bare forward and backward:        {ratio('pulse', 'bare')}")
    lines.append(f"  whole check / bare forward and backward:  {ratio('whole', 'bare')}")
    for label, make, shape in (("MLP", plain, (16, 64)), ("ResNet", residual, (4, 3, 16, 16))):
        points: dict[str, list[tuple[int, float]]] = {}
        for depth in (depth for depth in (10, 30, 100, 300, 1000, 2000) if depth <= options.depth):
            torch.manual_seed(0)
            model = make(depth)
            found = costs_of(model, (torch.randn(shape),))
            for stage in ("bare", "capture", "static", "pulse", "whole"):
                points.setdefault(stage, []).append((depth, found[stage]))
            print(
                f"{label} {depth}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()),
                file=sys.stderr,
            )
        figures["depth"][label] = points
        for stage, series in points.items():
            power = exponent([(float(d), s) for d, s in series])
            lines.append(f"  {label}: seconds of {stage} grow as depth^{power:.2f}")
            if stage == "whole":
                lines.extend(bars(series))
    return lines, figures


# ---------------------------------------------------------------------- the run


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="rules, with * and ?")
    parser.add_argument("--models", default="*", help="names of sound models, with * and ?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1, help="seeds to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--keep", type=Path, help="write the sources there, and leave them")
    parser.add_argument(
        "--all", action="store_true", help="inject also for rules that do not exist"
    )
    parser.add_argument("--zoo", type=int, default=0, help="so many models of the zoo, as they are")
    parser.add_argument("--entries", default="*", help="names of the zoo's models, with * and ?")
    parser.add_argument(
        "--library", type=int, default=0, help="models of the zoo to put faults into"
    )
    parser.add_argument("--cost", action="store_true", help="measure time instead")
    parser.add_argument("--depth", type=int, default=2000, help="layers of the deepest model there")
    options = parser.parse_args()
    result: Row = {}
    lines: list[str] = []
    if options.cost:
        lines, result["cost"] = cost(options)
    elif options.zoo or options.library:
        found = on_library(options)
        result["zoo"] = found
        lines += on_sound(found, "zoo")
        lines += table([fault for row in found for fault in row["faults"]])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result["faults"], result["sound"] = in_sources(options, folder)
        lines += table(result["faults"])
        lines += on_sound(result["sound"], "sound models and their losses")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1, default=str))
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
