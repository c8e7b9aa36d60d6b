"""How good are the fixes? Faulty files, their first fix, and what comes of making it.

    python -m benchmarks.repair --jobs 2 --json repair.json

`--part harm` trains each faulty file and its unbroken twin, `detection` asks trainlint for its findings,
`repair` lets it repair the file and trains what it gives, `sound` looks for fixes where nothing is wrong.
Results are kept in the JSON file as they come, so that a run may be broken off and taken up again;
`--report` prints what is there. See benchmarks/repair.md for the definitions and the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.repair_faults import FAULTS, Fault, faults
from benchmarks.repair_models import MODELS

SEEDS = (0, 1)
SHARE = 0.8
RATIO = 1.2
Results = dict[str, dict[str, Any]]


# ---------------------------------------------------------------------- what a fix changes


def described(fix: Any) -> str:
    """What a fix is called and changes, as text: where accepted remedies are looked for."""
    lines = [fix.title]
    for edit in fix.edits:
        lines.append("+" + edit.content)
        if not edit.content.strip():
            lines.append("remove")
    lines += [msgspec.json.encode(patch).decode() for patch in fix.patches]
    return "\n".join(lines)


def is_accepted(fault: Fault, code: str, text: str) -> bool:
    """Whether a fix, as `described`, is a textbook remedy of the fault, under a rule that may say it."""
    kind = fault.kind
    return (
        code in kind.codes
        and kind.remedy.search(text) is not None
        and (kind.never is None or not kind.never.search(text))
        and (not fault.right or fault.right in text)
    )


# ---------------------------------------------------------------------- harm


def _harm(name: str) -> dict[str, Any]:
    from benchmarks.repair_training import outcome

    fault = FAULTS[name]
    results = [outcome(fault.text, fault.twin, seed) for seed in SEEDS]
    return {"losses": [r.loss for r in results], "error": results[0].error}


def _twin(name: str) -> dict[str, Any]:
    from benchmarks.repair_training import constant, outcome

    text = MODELS[name].text
    return {
        "losses": [outcome(text, text, seed).loss for seed in SEEDS],
        # How near one seed comes to another: what no repair can be expected to do better.
        "others": [outcome(text, text, seed + len(SEEDS)).loss for seed in SEEDS],
        "constants": [constant(text, seed) for seed in SEEDS],
    }


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def reaches(losses: Sequence[float], twin: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the twin's loss is reached: as a share of its improvement, and as a ratio."""
    loss, reference, baseline = mean(losses), mean(twin["losses"]), mean(twin["constants"])
    return baseline - loss >= SHARE * (baseline - reference), loss <= RATIO * reference


# ---------------------------------------------------------------------- detection


def findings_of(texts: dict[str, str], jobs: int, folder: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """What trainlint says of files, in order, the worst first: names, findings, targets."""
    import trainlint
    from trainlint.config import Config

    paths = {}
    for name, text in texts.items():
        path = folder / (name.replace("/", "__").replace(" ", "_") + ".py")
        path.write_text(text)
        paths[name] = path
    report = trainlint.check(list(paths.values()), config=Config(jobs=jobs, probe_seconds=60))
    for name, path in paths.items():
        mine = [f for f in report.findings if f.filename and Path(f.filename).name == path.name]
        targets = [t for t in report.targets if path.name in t.target]
        yield name, mine, targets


def _loud(finding: dict[str, Any]) -> bool:
    return str(finding["severity"]) != "info"


def _finding(found: Any) -> dict[str, Any]:
    return {
        "code": found.code,
        "severity": str(found.severity),
        "message": found.message,
        "module": found.module,
        "symptoms": [s.code for s in found.symptoms],
        "fixes": [
            {
                "title": fix.title,
                "safety": str(fix.safety),
                "edits": bool(fix.edits),
                "obstacle": fix.obstacle,
                "text": described(fix),
            }
            for fix in found.fixes
        ],
    }


def detect(names: Sequence[str], texts: Callable[[str], str], results: Results, keep: Callable[[], None], jobs: int) -> None:
    left = [name for name in names if name not in results]
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(left), 12):
            part = left[start : start + 12]
            for name, found, targets in findings_of({n: texts(n) for n in part}, jobs, Path(folder)):
                results[name] = {
                    "findings": [_finding(f) for f in found],
                    "targets": [[t.target, str(t.status), t.reason] for t in targets],
                }
            keep()
            print(f"detection: {start + len(part)} of {len(left)}", flush=True)


def verdict(fault: Fault, detection: Results, twins: Results) -> dict[str, Any]:
    """Of one case: is it found, is it named, is its first fix accepted."""
    mine = [f for f in detection[fault.name]["findings"] if _loud(f)]
    usual = {f["code"] for f in twins[fault.model]["findings"] if _loud(f)}
    new = [f for f in mine if f["code"] not in usual]
    first = new[0] if new else None
    fix = first["fixes"][0] if first and first["fixes"] else None
    return {
        "detected": bool(new),
        "named": any(f["code"] in fault.kind.codes for f in new),
        "accepted": bool(fix) and is_accepted(fault, first["code"], fix["text"]),
        "code": first["code"] if first else "",
        "fix": fix["title"] if fix else "",
        "edits": bool(fix and fix["edits"]),
        "obstacle": fix["obstacle"] if fix else "",
        "codes": [f["code"] for f in new],
        "message": first["message"] if first else "",
    }


# ---------------------------------------------------------------------- the run


class Store:
    """Results of parts by case, in a JSON file that is written as they come."""

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.parts: dict[str, Results] = defaultdict(dict)
        if self.path and self.path.exists():
            self.parts.update(json.loads(self.path.read_text()))

    def save(self) -> None:
        if self.path:
            scratch = self.path.with_suffix(".part")
            scratch.write_text(json.dumps(self.parts, indent=1))
            os.replace(scratch, self.path)


def in_processes(work: Callable[[str], dict[str, Any]], names: Iterable[str], results: Results, store: Store, jobs: int) -> None:
    left = [name for name in names if name not in results]
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        for name, result in zip(left, pool.map(work, left), strict=True):
            results[name] = result
            if len(results) % 10 == 0:
                store.save()
    store.save()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds or names that contain this")
    parser.add_argument("--half", default="", choices=["", "looked-at", "held-out"])
    parser.add_argument("--part", action="append", choices=["harm", "detection", "repair", "sound"])
    parser.add_argument("--json", help="file of results; what it holds is not run again")
    parser.add_argument("--report", action="store_true", help="print what the file holds")
    options = parser.parse_args(arguments)
    store = Store(options.json)
    cases = [fault for fault in faults(options.half) if options.only in fault.name]
    names = [fault.name for fault in cases]
    models = list(dict.fromkeys(fault.model for fault in cases))
    wanted = [] if options.report else options.part or ["harm", "detection", "repair", "sound"]
    if "harm" in wanted:
        in_processes(_twin, models, store.parts["twins"], store, options.jobs)
        in_processes(_harm, names, store.parts["harm"], store, options.jobs)
    if "detection" in wanted:
        detect(models, lambda n: MODELS[n].text, store.parts["twin findings"], store.save, options.jobs)
        detect(names, lambda n: FAULTS[n].text, store.parts["detection"], store.save, options.jobs)
    report(cases, store)


def report(cases: Sequence[Fault], store: Store) -> None:
    parts = store.parts
    for half in ("looked-at", "held-out"):
        mine = [f for f in cases if f.half == half]
        harmful = [
            f for f in mine
            if f.name not in parts["harm"] or f.kind.unseen
            or not reaches(parts["harm"][f.name]["losses"], parts["twins"][f.model])[0]
        ]  # fmt: skip
        found = [f for f in harmful if f.name in parts["detection"] and f.model in parts["twin findings"]]
        if not mine:
            continue
        print(f"\n{half}: {len(mine)} cases, {len(harmful)} do harm")
        if found:
            verdicts = {f.name: verdict(f, parts["detection"], parts["twin findings"]) for f in found}
            detected = [v for v in verdicts.values() if v["detected"]]
            print(f"  detected {len(detected)} of {len(found)}")
            print(f"  named {sum(v['named'] for v in detected)} of {len(detected)}")
            print(f"  first fix accepted {sum(v['accepted'] for v in detected)} of {len(detected)}")
            print(f"  ... with edits {sum(v['edits'] for v in detected)}")
            for name, v in verdicts.items():
                if not v["accepted"]:
                    print(f"    {name}: {v['codes']} {v['fix']!r} | {v['message'][:110]}")


if __name__ == "__main__":
    main()
