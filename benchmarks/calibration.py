"""What the rules on training runs find of faults that are injected, and what they say of sound runs.

    python -m benchmarks.calibration --half tune|report [--jobs N] [--seed N] [--only RULE]
        [--hosts N] [--repeat N] [--json FILE] [--show]

Runs are drawn from architectures × data sets × seeds (`training_models.py`, `training_data.py`,
`training_runs.py`), watched with `trainlint.watch`, and judged by all rules. Each of the three is split in
two: thresholds may be fixed with what the tune half shows, and what they are worth is what the report half
says, none of whose architectures, data sets or seeds the other one has. The halves go by a hash of the
name, so that another architecture changes no other's half.

A fault (`training_faults.py`) is put into so many hosts that it fits. Faults by effect count where they do
harm: the loss that was meant, on held-out data in eval mode, ends higher than that of the unbroken twin, of
the same seeds, by more than a tenth of what the twin gained. Else they are n/a. Columns of the table:

* injected, n/a: as said; found: share that the rule names, as a finding or as a symptom of one;
* loud: at warning or above; other name: of the rest, named by a rule that means the same fault;
* severe: found or named, of those by effect in which more than half of the twin's gain is gone;
* unsaid: the rule said that it cannot measure; beside: rules at warning or above that mean something else.

A sound run that gains less than a twentieth is trained on for six times as many steps, unwatched: where it
learns nothing then either, it is not counted as sound, but listed.
"""

from __future__ import annotations

import argparse
import collections
import gc
import hashlib
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import trainlint
from benchmarks.training_data import DATASETS
from benchmarks.training_faults import FAULTS, Fault, of
from benchmarks.training_models import ARCHITECTURES
from benchmarks.training_runs import Recipe, chance, compatible, host, is_finite, quality, train
from trainlint.records import Report, ReportedFinding

# With this one both halves have every kind of data, and something to train on it.
SALT = 256
HALVES = ("tune", "report")
SERIOUS = ("error", "warning")
# Of what the twin gains: a fault by effect costs more than this, a severe one more than that.
HARM, SEVERE = 0.1, 0.5
# Of the loss at the start: what learns less is no twin to compare with.
GAIN = 0.05
LONGER = 6

Row = dict[str, Any]
Host = tuple[str, str, int]


# ---------------------------------------------------------------------- the halves


def half_of(name: str) -> str:
    """Which half an architecture or a data set is in."""
    return HALVES[hashlib.sha256(f"{SALT}/{name}".encode()).digest()[0] & 1]


def hosts(half: str, seed: int, repeat: int) -> list[Host]:
    """Every architecture of a half with up to three of its data sets, and `repeat` seeds each."""
    found: list[Host] = []
    for architecture in ARCHITECTURES:
        if half_of(architecture) != half:
            continue
        fitting = [name for name in compatible(architecture) if half_of(name) == half]
        fitting.sort(key=lambda name: _order(architecture, name))
        for dataset in fitting[:3]:
            first = 200 * seed + HALVES.index(half)
            found += [(architecture, dataset, first + 2 * number) for number in range(repeat)]
    return sorted(found, key=lambda one: _order(*one))


def _order(*words: object) -> str:
    return hashlib.sha256("/".join(map(str, words)).encode()).hexdigest()


def broken(one: Host, fault: Fault) -> Recipe | None:
    """The host with the fault, None where it does not fit."""
    recipe = host(*one)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fits = fault.apply(recipe, chance(fault.key, *one))
    return recipe if fits else None


def plan(
    half: str, seed: int, repeat: int, faults: Sequence[Fault], count: int
) -> dict[Host, list[Fault]]:
    """For each host the faults that go into it: each into `count` hosts of several architectures."""
    every = hosts(half, seed, repeat)
    planned: dict[Host, list[Fault]] = {one: [] for one in every}
    for fault in faults:
        used: collections.Counter[str] = collections.Counter()
        for one in sorted(every, key=lambda one: _order(fault.key, *one)):
            if used.total() >= count:
                break
            if used[one[0]] < 2 and broken(one, fault) is not None:
                used[one[0]] += 1
                planned[one].append(fault)
    return planned


# ---------------------------------------------------------------------- one run


def all_findings(findings: Iterable[ReportedFinding]) -> Iterator[ReportedFinding]:
    """Findings and their symptoms."""
    for finding in findings:
        yield finding
        yield from all_findings(finding.symptoms)


def watched(recipe: Recipe) -> Row:
    """Train, judge, and measure what came of it."""
    start, raised = time.perf_counter(), None
    watch = trainlint.watch(every=recipe.period)
    try:
        with watch:
            train(recipe)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"[:120]
    report: Report = watch.report()
    try:
        end = None if raised else quality(recipe)
    except Exception:
        end = None
    target = report.targets[0]
    return {
        "raised": raised,
        "problem": target.reason,
        "steps": recipe.steps,
        "seconds": round(time.perf_counter() - start, 3),
        "end": end,
        "found": [
            {"code": f.code, "severity": f.severity, "message": f.message, "evidence": dict(f.evidence),
             "symptoms": [s.code for s in f.symptoms]}
            for f in report.findings
        ],
        "every": [(f.code, f.severity) for f in all_findings(report.findings)],
        "messages": {f.code: f.message for f in all_findings(report.findings)},
        "unsaid": [text.split()[0] for text in target.not_measurable],
        "reasons": list(target.not_measurable),
    }  # fmt: skip


def cases(one: Host, keys: Sequence[str]) -> list[Row]:
    """The sound run of a host and its broken ones; in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = host(*one)
    about = {
        "host": recipe.name, "optimizer": recipe.optimizer, "rate": recipe.rate, "period": recipe.period,
        "schedule": recipe.schedule, "habits": sorted(recipe.habits),
    }  # fmt: skip
    start = quality(recipe)
    sound = {**about, "fault": None, "start": start, **watched(recipe)}
    sound["learnt"] = _has_learnt(one, sound)
    rows = [sound]
    for fault in (each for each in FAULTS if each.key in keys):
        faulty = broken(one, fault)
        assert faulty is not None
        row = {
            **about,
            "fault": fault.name,
            "rule": fault.rule,
            "also": fault.also,
            **watched(faulty),
        }
        row["harm"] = harm(start, sound["end"], row["end"]) if fault.by_effect else None
        row["counts"] = not fault.by_effect or (row["harm"] is not None and row["harm"] > HARM)
        if fault.rule == "GRD003":  # a root of what is never 0 makes no NaN
            row["counts"] = _is_lost(faulty)
        rows.append(row)
    gc.collect()
    return rows


def _is_lost(recipe: Recipe) -> bool:
    """Whether weights have become NaN or infinite."""
    return not all(bool(p.isfinite().all()) for p in recipe.model.parameters())


def harm(start: float | None, sound: float | None, broken: float | None) -> float | None:
    """The share of the twin's gain that is gone. None where the twin did not gain, or nothing tells."""
    if start is None or sound is None or not is_finite(sound) or start - sound < GAIN * abs(start):
        return None
    if broken is None or not math.isfinite(broken):
        return math.inf
    return (broken - sound) / (start - sound)


def _has_learnt(one: Host, sound: Row) -> bool | None:
    """Whether a sound run learns anything, now or later. None for games, whose losses do not tell."""
    start, end = sound["start"], sound["end"]
    if start is None:
        return None
    if is_finite(end) and start - end >= GAIN * abs(start):
        return True
    longer = host(*one)
    longer.steps *= LONGER
    longer.schedule = "none"
    train(longer)
    later = quality(longer)
    return later is not None and start - later >= GAIN * abs(start)


# ---------------------------------------------------------------------- what it adds up to


def is_found(row: Row) -> bool:
    return any(code == row["rule"] for code, _ in row["every"])


def is_named(row: Row) -> bool:
    return is_found(row) or any(code in row["also"] for code, _ in row["every"])


def _beside(row: Row) -> list[str]:
    """What is said at warning or above beside the fault, and not of it."""
    meant = {row["rule"], *row["also"]}
    return [
        f["code"]
        for f in row["found"]
        if f["severity"] in SERIOUS and not meant & {f["code"], *f["symptoms"]}
    ]


def _share(rows: Sequence[Row], are: Any) -> str:
    return f"{sum(map(are, rows)) / len(rows):.2f}" if rows else "-"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each rule, then the means."""
    yield "| rule | injected | n/a | found | loud | other name | severe | unsaid | beside |"
    yield "|---|---|---|---|---|---|---|---|---|"
    recalls, named = [], []
    for rule in sorted({row["rule"] for row in rows}):
        ours = [row for row in rows if row["rule"] == rule]
        counted = [row for row in ours if row["counts"]]
        severe = [row for row in counted if row["harm"] is not None and row["harm"] > SEVERE]
        beside = collections.Counter(code for row in counted for code in _beside(row))
        found = sum(map(is_found, counted))
        loud = sum(any(c == rule and s in SERIOUS for c, s in row["every"]) for row in counted)
        other = sum(is_named(row) and not is_found(row) for row in counted)
        unsaid = sum(rule in row["unsaid"] for row in counted)
        if counted:
            recalls.append(found / len(counted))
            named.append((found + other) / len(counted))
        yield (
            f"| {rule} | {len(counted)} | {len(ours) - len(counted)} | {_share(counted, is_found)} | "
            f"{loud / max(1, len(counted)):.2f} | {other} | "
            f"{f'{_share(severe, is_named)} ({len(severe)})' if severe else '-'} | {unsaid or ''} | "
            f"{', '.join(f'{code} {n}' for code, n in beside.most_common(4))} |"
        )
    if recalls:
        yield ""
        yield (
            f"macro recall over {len(recalls)} rules: {sum(recalls) / len(recalls):.3f} by the rule "
            f"itself, {sum(named) / len(named):.3f} with those named otherwise"
        )


def by_fault(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each fault."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["fault"]), []).append(row)
    for (rule, name), ours in sorted(groups.items()):
        counted = [row for row in ours if row["counts"]]
        missed = [f"{row['host']} ({row['harm'] or 0:.2g})" for row in counted if not is_named(row)]
        line = f"{rule} {name}: {len(counted) - len(missed)} of {len(counted)}"
        if len(ours) > len(counted):
            line += f", n/a {len(ours) - len(counted)}"
        yield f"{line}; missed: {', '.join(missed)}" if missed else line


def of_sound(rows: Sequence[Row]) -> Iterator[str]:
    """What is said of sound runs."""
    counted = [row for row in rows if row["learnt"] is not False]
    alarmed = [row for row in counted if any(f["severity"] in SERIOUS for f in row["found"])]
    # Twice nothing is no proof: Clopper and Pearson's upper bound.
    yield (
        f"sound runs: {len(counted)}, with a finding at warning or above: {len(alarmed)} "
        f"({len(alarmed) / max(1, len(counted)):.2%}; 95% bound {upper(len(alarmed), len(counted)):.2%})"
    )
    for row in alarmed:
        for finding in row["found"]:
            if finding["severity"] in SERIOUS:
                yield f"  {row['host']}: {finding['code']} {finding['message']}"
    advice = collections.Counter(
        code for row in counted for code in {c for c, s in row["every"] if s == "info"}
    )
    yield f"advice on them: {', '.join(f'{code} {n}' for code, n in advice.most_common())}"
    unsaid = collections.Counter(code for row in counted for code in set(row["unsaid"]))
    yield f"not measurable: {', '.join(f'{code} {n}' for code, n in unsaid.most_common()) or 'none'}"
    hopeless = [row for row in rows if row["learnt"] is False]
    if hopeless:
        yield f"not counted, they learn nothing in {LONGER} times as many steps either: {len(hopeless)}"
        for row in hopeless:
            codes = [f["code"] for f in row["found"] if f["severity"] in SERIOUS]
            yield f"  {row['host']} ({row['optimizer']}): {', '.join(codes) or 'nothing said'}"


def upper(alarms: int, runs: int, level: float = 0.05) -> float:
    """The rate above which so few alarms would have a chance below `level`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        chance_of = sum(
            math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(alarms + 1)
        )
        low, high = (rate, high) if chance_of > level else (low, rate)
    return high


def problems(rows: Sequence[Row]) -> Iterator[str]:
    """Rules that failed, sound loops that raised."""
    for row in rows:
        if row["problem"] or (row["raised"] and row["fault"] is None):
            yield f"{row['host']} {row['fault'] or 'sound'}: {row['problem'] or row['raised']}"


def run(
    half: str, *, seed: int, repeat: int, count: int, only: Sequence[str], jobs: int
) -> list[Row]:
    """All rows of a half."""
    planned = plan(half, seed, repeat, list(of(list(only))), count)
    if only:
        planned = {one: faults for one, faults in planned.items() if faults}
    work = [(one, [fault.key for fault in faults]) for one, faults in planned.items()]
    work.sort(key=lambda item: -len(item[1]))
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")  # a fork after tensors were computed may hang
    if jobs == 1:
        for number, (one, keys) in enumerate(work):
            rows += cases(one, keys)
            _progress(number + 1, len(work))
        return rows
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(cases, one, keys) for one, keys in work]
        for number, future in enumerate(futures):
            rows += future.result()
            _progress(number + 1, len(work))
    return rows


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{done}/{total} hosts", end="" if done < total else "\n", file=sys.stderr, flush=True
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--half", choices=HALVES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], metavar="RULE")
    parser.add_argument("--hosts", type=int, default=6, help="hosts of each fault")
    parser.add_argument(
        "--repeat", type=int, default=3, help="seeds of each architecture and data set"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", action="store_true", help="a line for each fault")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    rows = run(
        options.half, seed=options.seed, repeat=options.repeat, count=options.hosts, only=options.only,
        jobs=options.jobs,
    )  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, default=str), encoding="utf-8")
    faulty = [row for row in rows if row["fault"] is not None]
    sound = [row for row in rows if row["fault"] is None]
    print(
        f"half {options.half}, seed {options.seed}: {len({r['host'].split('/')[0] for r in rows})} "
        f"architectures, {len({r['host'].split('/')[1] for r in rows})} of {len(DATASETS)} data sets, "
        f"{len(FAULTS)} faults, {len(rows)} runs in {time.perf_counter() - start:.0f} s"
    )
    for line in (*table(faulty), "", *of_sound(sound), *(by_fault(faulty) if options.show else ())):
        print(line)
    failures = list(problems(rows))
    for line in failures:
        print("problem:", line)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
