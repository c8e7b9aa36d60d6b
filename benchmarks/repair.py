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
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.repair_faults import FAULTS, Fault, faults
from benchmarks.repair_judging import (
    Results,
    Store,
    described,
    digest,
    is_drawn,
    is_of,
    is_remedy,
    new_findings,
    twin_text,
)  # fmt: skip
from benchmarks.repair_models import MODELS
from benchmarks.repair_report import report
from benchmarks.repair_sound import SOUND

SEEDS = (0, 1)
ROUNDS = 4
PARTS = ["harm", "detection", "repair", "verified", "rivals", "sound"]
AT_ONCE = 12


# ---------------------------------------------------------------------- harm


def _harm(name: str) -> dict[str, Any]:
    from benchmarks.repair_training import outcome

    fault = FAULTS[name]
    results = [outcome(fault.text, fault.twin, seed) for seed in SEEDS]
    return {
        "of": digest(fault.text),
        "losses": [r.loss for r in results],
        "error": results[0].error,
    }


def _twin(name: str) -> dict[str, Any]:
    from benchmarks.repair_training import constant, outcome

    text = twin_text(name)
    return {
        "of": digest(text),
        "losses": [outcome(text, text, seed).loss for seed in SEEDS],
        # How near one seed comes to another: what no repair can be expected to do better.
        "others": [outcome(text, text, seed + len(SEEDS)).loss for seed in SEEDS],
        "constants": [constant(text, seed) for seed in SEEDS],
    }


# ---------------------------------------------------------------------- detection


def findings_of(
    texts: dict[str, str], jobs: int, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What trainlint says of these files, each with its findings, the worst first."""
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
        yield (
            name,
            {
                "findings": [_finding(f, path, texts[name]) for f in mine],
                "targets": [
                    [t.target.rpartition("::")[2], str(t.status), t.reason]
                    for t in report.targets
                    if path.name in t.target
                ],
            },
        )


def _finding(found: Any, path: Path, text: str) -> dict[str, Any]:
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
                "obstacle": fix.obstacle,
                "text": described(fix),
                "edited": _edited(fix, path, text),
                "patches": msgspec.to_builtins(fix.patches),
            }
            for fix in found.fixes
        ],
    }


def _edited(fix: Any, path: Path, text: str) -> str | None:
    """The file with the fix made, if it changes this file alone."""
    from trainlint.fixes.source import apply

    if not fix.edits or {Path(edit.filename).name for edit in fix.edits} != {path.name}:
        return None
    return apply(text, fix.edits)


def detect(
    texts: dict[str, str], results: Results, keep: Callable[[], None], jobs: int, what: str
) -> None:
    left = [name for name, text in texts.items() if not is_of(results.get(name), text)]
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            for name, result in findings_of({n: texts[n] for n in some}, jobs, Path(folder)):
                results[name] = {"of": digest(texts[name]), **result}
            keep()
            print(f"{what}: {start + len(some)} of {len(left)}", flush=True)


# ---------------------------------------------------------------------- repair


def _step(case: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first fix that can be made and was not tried: by its edits, else by its patches."""
    for finding in found:
        for fix in finding["fixes"]:
            tried = [finding["code"], finding["module"], fix["title"]]
            if tried in case["tried"] or finding["code"] in case["patched"]:
                continue
            if fix["edited"] is not None or fix["patches"]:
                return {"finding": finding, "fix": fix, "tried": tried}
    return None


def repair(cases: Sequence[Fault], store: Store, jobs: int) -> None:
    """Make the first fix of the worst finding, check again, and so on; then train what came of it.

    An edit whose finding does not clear is taken back. A fix without edits is made live, by its patches.
    """
    results, twins = store.parts["repair"], store.parts["twin findings"]
    for fault in cases:
        if fault.name not in store.parts["detection"] or fault.name in results:
            continue
        detection = store.parts["detection"][fault.name]
        if new_findings(fault, detection, twins):
            results[fault.name] = {
                "text": fault.text, "now": detection, "rounds": [],
                "tried": [], "patched": [], "patches": [],
            }  # fmt: skip
    for number in range(ROUNDS):
        trials: dict[str, tuple[dict[str, Any], str]] = {}
        for fault in cases:
            case = results.get(fault.name)
            if case is None or len(case["rounds"]) != number or "losses" in case:
                continue
            step = _step(case, new_findings(fault, case["now"], twins))
            if step is None:
                continue
            case["tried"].append(step["tried"])
            if step["fix"]["edited"] is None:
                case["patched"].append(step["finding"]["code"])
                case["patches"] += step["fix"]["patches"]
                case["rounds"].append([*step["tried"], "patched"])
            else:
                trials[fault.name] = (step, step["fix"]["edited"])
        checked: Results = {}
        detect(
            {n: t for n, (_, t) in trials.items()}, checked, lambda: None, jobs, f"round {number}"
        )
        for name, (step, text) in trials.items():
            case, finding = results[name], step["finding"]
            after = new_findings(FAULTS[name], checked[name], twins)
            fine = all(status == "ok" for _, status, _ in checked[name]["targets"])
            if fine and not any(_same(finding, other) for other in after):
                case.update(text=text, now=checked[name])
                case["rounds"].append([*step["tried"], "cleared"])
            else:
                case["rounds"].append([*step["tried"], "taken back"])
        store.save()
    left = [n for n, case in results.items() if "losses" not in case and case["rounds"]]
    work = {n: [results[n]["text"], results[n]["patches"]] for n in left}
    trained: Results = {}
    in_processes(_trained, [json.dumps([n, *work[n]]) for n in left], trained, store, jobs)
    for result in trained.values():
        results[result["name"]].update(losses=result["losses"], error=result["error"])
    store.save()


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["code"], one["module"]) == (other["code"], other["module"])


def _trained(job: str) -> dict[str, Any]:
    from benchmarks.repair_training import outcome
    from trainlint.fixes.patch import Patch

    name, text, plain = json.loads(job)
    patches = msgspec.convert(plain, list[Patch])
    results = [outcome(text, FAULTS[name].twin, seed, patches) for seed in SEEDS]
    return {"name": name, "losses": [r.loss for r in results], "error": results[0].error}


def verified(cases: Sequence[Fault], store: Store, jobs: int) -> None:
    """`trainlint.verification.repair` on the drawn cases: each fix tried, the best combination made."""
    from trainlint.config import Config
    from trainlint.verification import repair as repair_file

    results, twins = store.parts["verified"], store.parts["twin findings"]
    left = [f for f in cases if is_drawn(f) and not is_of(results.get(f.name), f.text)]
    for number, fault in enumerate(left, 1):
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "case.py"
            path.write_text(fault.text)
            config = Config(jobs=jobs, probe_seconds=60, verify_seconds=300)
            repaired = repair_file(path, config=config)
            text = next(iter(repaired.texts.values()), fault.text)
            version = repaired.version
            patches = [] if version is None else msgspec.to_builtins(list(version.patches))
            found = [_finding(f, path, fault.text) for f in repaired.report.findings]
        result = {"of": digest(fault.text), "findings": found, "targets": []}
        result["fixes"] = [fix.title for fix in repaired.fixes]
        result["clears"] = [f.code for f in repaired.findings]
        new = new_findings(fault, result, twins)
        result["cleared"] = bool(new) and new[0]["code"] in result["clears"]
        if repaired.fixes:
            result.update(_trained(json.dumps([fault.name, text, patches])))
        results[fault.name] = result
        store.save()
        print(f"verified: {number} of {len(left)}", flush=True)


# ---------------------------------------------------------------------- rivals


def _rivals(job: str) -> dict[str, Any]:
    """Every candidate for one case, trained: the fixes that trainlint gives, and those for any model."""
    from benchmarks.repair_candidates import generic_fixes
    from benchmarks.repair_training import outcome, part, run
    from trainlint.fixes.patch import Patch

    name, own = json.loads(job)
    fault = FAULTS[name]
    candidates = [(fix["title"], fix["text"], fix["edited"], fix["patches"]) for fix in own]
    try:
        names = run(fault.text)
        generic = generic_fixes(part(names, "model"), part(names, "optimizer"))
    except Exception:
        generic = []
    for title, patches in generic:
        plain = msgspec.to_builtins(patches)
        text = "\n".join([title, *(msgspec.json.encode(patch).decode() for patch in patches)])
        candidates.append((title, text, None, plain))
    tried = []
    for title, text, edited, plain in candidates:
        patches = msgspec.convert(plain, list[Patch])
        result = outcome(edited or fault.text, fault.twin, SEEDS[0], [] if edited else patches)
        tried.append(
            {
                "title": title,
                "accepted": is_remedy(fault, text),
                "loss": result.loss,
                "error": result.error,
            }
        )
    return {"of": digest(fault.text), "name": name, "candidates": tried}


def rivals(cases: Sequence[Fault], store: Store, jobs: int) -> None:
    detection, results = store.parts["detection"], store.parts["rivals"]
    work = []
    for fault in cases:
        if not is_drawn(fault) or is_of(results.get(fault.name), fault.text):
            continue
        found = detection.get(fault.name, {"findings": []})["findings"]
        own = [f for x in found for f in x["fixes"] if f["edited"] is not None or f["patches"]]
        work.append(json.dumps([fault.name, own]))
    done: Results = {}
    in_processes(_rivals, work, done, store, jobs)
    for result in done.values():
        results[result.pop("name")] = result
    store.save()


# ---------------------------------------------------------------------- sound files


def sound_texts() -> dict[str, str]:
    """What must be left alone: sound trainings that look faulty, and the unbroken twins."""
    return {**SOUND, **{name: model.text for name, model in MODELS.items()}}


def prove(store: Store) -> None:
    """`check --verify` on sound files, and `check --fix --unsafe-fixes`, which has to change none."""
    results = store.parts["proofs"]
    left = {n: text for n, text in sound_texts().items() if not is_of(results.get(n), text)}
    names = list(left)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for name in some:
                (folder / f"{name}.py").write_text(left[name])
            files = [f"{name}.py" for name in some]
            told = json.loads(_command(["--verify", "--format", "json", *files], folder).stdout)
            _command(["--fix", "--unsafe-fixes", *files], folder)
            for name in some:
                results[name] = {
                    "of": digest(left[name]),
                    "changed": (folder / f"{name}.py").read_text() != left[name],
                    "verified": [
                        [finding["code"], fix["title"]]
                        for finding in told["findings"]
                        if Path(finding["filename"] or "").stem == name
                        for fix in finding["fixes"]
                        if fix["verified"]
                    ],
                }
        store.save()
        print(f"sound: {start + len(some)} of {len(names)}", flush=True)


def _command(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainlint", "check", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------- the run


def in_processes(
    work: Callable[[str], dict[str, Any]],
    names: Iterable[str],
    results: Results,
    store: Store,
    jobs: int,
) -> None:
    left = list(names)
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        for name, result in zip(left, pool.map(work, left), strict=True):
            results[name] = result
            if len(results) % 10 == 0:
                store.save()
                print(f"trained: {len(results)}", flush=True)
    store.save()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds or names that contain this")
    parser.add_argument("--half", default="", choices=["", "looked-at", "held-out"])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--json", help="file of results; what it holds is not run again")
    parser.add_argument("--report", action="store_true", help="print what the file holds")
    options = parser.parse_args(arguments)
    store = Store(options.json)
    cases = [fault for fault in faults(options.half) if options.only in fault.name]
    models = list(dict.fromkeys(fault.model for fault in cases))
    wanted = [] if options.report else options.part or PARTS
    if "harm" in wanted:
        twins, harm = store.parts["twins"], store.parts["harm"]
        names = dict.fromkeys(fault.twin_name for fault in cases)
        stale = [name for name in names if not is_of(twins.get(name), twin_text(name))]
        in_processes(_twin, stale, twins, store, options.jobs)
        stale = [f.name for f in cases if not is_of(harm.get(f.name), f.text)]
        in_processes(_harm, stale, harm, store, options.jobs)
    if "detection" in wanted:
        texts = {name: MODELS[name].text for name in models}
        detect(texts, store.parts["twin findings"], store.save, options.jobs, "twins")
        texts = {fault.name: fault.text for fault in cases}
        detect(texts, store.parts["detection"], store.save, options.jobs, "detection")
    if "repair" in wanted:
        repair(cases, store, options.jobs)
    if "verified" in wanted:
        verified(cases, store, options.jobs)
    if "rivals" in wanted:
        rivals(cases, store, options.jobs)
    if "sound" in wanted:
        detect(dict(SOUND), store.parts["sound findings"], store.save, options.jobs, "sound")
        prove(store)
    report(cases, store)


if __name__ == "__main__":
    main()
