"""The figures of the benchmark of repairs, from its results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.repair_faults import FAULTS, Fault
from benchmarks.repair_judging import (
    Store,
    is_loud,
    mean,
    new_findings,
    reaches,
    verdict,
)


def harmful(cases: Sequence[Fault], store: Store) -> list[Fault]:
    """Cases whose training is the worse for their fault, or whose kind says why that does not show."""
    harm, twins = store.parts["harm"], store.parts["twins"]
    return [
        fault
        for fault in cases
        if fault.kind.unseen
        or (
            fault.name in harm
            and not reaches(harm[fault.name]["losses"], twins[fault.twin_name])[0]
        )
    ]


def share(count: int, total: int) -> str:
    return f"{count} of {total}" + (f" ({count / total:.3f})" if total else "")


def report(cases: Sequence[Fault], store: Store) -> None:
    for half in ("looked-at", "held-out"):
        mine = [fault for fault in cases if fault.half == half]
        if mine:
            report_half(half, mine, store)
    _report_sound(store)


def report_half(half: str, cases: Sequence[Fault], store: Store) -> None:
    parts = store.parts
    harming = harmful(cases, store)
    seen = [
        f for f in harming if f.name in parts["detection"] and f.model in parts["twin findings"]
    ]
    verdicts = {f.name: verdict(f, parts["detection"], parts["twin findings"]) for f in seen}
    found = {name: v for name, v in verdicts.items() if v["detected"]}
    print(f"\n{half}: {len(cases)} cases, of which {len(harming)} do harm")
    print(f"  detected: {share(len(found), len(verdicts))}")
    print(f"  by a rule of its kind: {share(sum(v['named'] for v in found.values()), len(found))}")
    print(f"  first fix accepted: {share(sum(v['accepted'] for v in found.values()), len(found))}")
    print(f"  ... whatever its rule: {share(sum(v['remedy'] for v in found.values()), len(found))}")
    with_edits = sum(v["edits"] for v in found.values())
    live = sum(v["patches"] and not v["edits"] for v in found.values())
    print(f"  first fix has edits: {with_edits}, only patches: {live}")
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for name, v in found.items():
        by_kind[FAULTS[name].kind.name].append(v["accepted"])
    print(
        f"  ... in the mean over {len(by_kind)} kinds: {mean(mean(v) for v in by_kind.values()):.3f}"
    )
    for name, v in verdicts.items():
        if not v["accepted"]:
            print(
                f"    {name}: {v['codes']} {v['fix']!r}" if v["detected"] else f"    missed: {name}"
            )
    if not all(fault.twin_name in parts["twins"] for fault in seen):
        return  # harm has not been measured yet
    if parts["repair"]:
        _report_repair(found, store)
    if parts["verified"]:
        _report_verified(seen, store)
    if parts["rivals"]:
        _report_rivals([f for f in seen if f.name in parts["rivals"]], verdicts, store)


def _report_repair(found: dict[str, Any], store: Store) -> None:
    parts = store.parts
    cleared = by_share = by_ratio = 0
    for name in found:
        case = parts["repair"].get(name)
        if case is None:
            continue
        clear = any(outcome in ("cleared", "patched") for *_, outcome in case["rounds"])
        twin = parts["twins"][FAULTS[name].twin_name]
        reached = reaches(case["losses"], twin) if "losses" in case else (False, False)
        cleared += clear
        by_share += clear and reached[0]
        by_ratio += clear and reached[1]
        if not (clear and reached[0]):
            losses = [round(loss, 4) for loss in case.get("losses", [])]
            print(f"    not repaired: {name} {case['rounds']} {losses} {case.get('error', '')}")
    print(f"  a fix was made and its finding cleared: {share(cleared, len(found))}")
    print(f"  repaired, by share of the twin's improvement: {share(by_share, len(found))}")
    print(f"  repaired, by ratio to the twin's loss: {share(by_ratio, len(found))}")
    twins = [parts["twins"][FAULTS[name].twin_name] for name in found]
    again = [reaches(twin["others"], twin) for twin in twins]
    print(
        f"  the twin itself on other seeds: {share(sum(a for a, _ in again), len(again))} by share, "
        f"{share(sum(b for _, b in again), len(again))} by ratio"
    )


def _report_verified(cases: Sequence[Fault], store: Store) -> None:
    parts = store.parts
    results = {f.name: parts["verified"][f.name] for f in cases if f.name in parts["verified"]}
    found = {n: x for n, x in results.items() if new_findings(FAULTS[n], x, parts["twin findings"])}
    first = {n: verdict(FAULTS[n], results, parts["twin findings"])["accepted"] for n in found}
    reached = {
        n: reaches(x["losses"], parts["twins"][FAULTS[n].twin_name])
        if "losses" in x
        else (False, False)
        for n, x in found.items()
    }
    total = len(found)
    print(f"  with --verify, on {total} of the detected:")
    print(f"    first fix accepted: {share(sum(first.values()), total)}")
    print(f"    its finding cleared: {share(sum(x['cleared'] for x in found.values()), total)}")
    good = [n for n, x in found.items() if x["cleared"] and reached[n][0]]
    print(f"    repaired, by share: {share(len(good), total)}")
    by_ratio = sum(x["cleared"] and reached[n][1] for n, x in found.items())
    print(f"    repaired, by ratio: {share(by_ratio, total)}")
    for name, x in found.items():
        if name not in good or not first[name]:
            losses = [round(loss, 4) for loss in x.get("losses", [])]
            print(
                f"      {name}: {x['fixes']} accepted {first[name]} {losses} {x.get('error', '')}"
            )


def _report_rivals(cases: Sequence[Fault], verdicts: dict[str, Any], store: Store) -> None:
    """What a random fix and the fix of least loss come to, where trainlint's is judged as well."""
    parts = store.parts
    accepted, repaired, best_accepted, best_repaired, own = [], [], [], [], []
    for fault in cases:
        tried = parts["rivals"][fault.name]["candidates"]
        if not verdicts[fault.name]["detected"] or not tried:
            continue
        twin = parts["twins"][fault.twin_name]
        first = {"losses": twin["losses"][:1], "constants": twin["constants"][:1]}
        reached = [reaches([c["loss"]], first)[0] for c in tried]
        accepted.append(mean(c["accepted"] for c in tried))
        repaired.append(mean(reached))
        best = min(range(len(tried)), key=lambda i: tried[i]["loss"])
        best_accepted.append(tried[best]["accepted"])
        best_repaired.append(reached[best])
        own.append(verdicts[fault.name]["accepted"])
    print(
        f"  rivals, on {len(own)} of the detected; trainlint's first fix accepted: {mean(own):.3f}"
    )
    print(f"    a random fix: accepted {mean(accepted):.3f}, repairs {mean(repaired):.3f}")
    print(f"    least loss: accepted {mean(best_accepted):.3f}, repairs {mean(best_repaired):.3f}")


def _report_sound(store: Store) -> None:
    for part in ("sound findings", "twin findings"):
        results = store.parts[part]
        alarms = {
            name: [f["code"] for f in result["findings"] if is_loud(f)]
            for name, result in results.items()
        }
        wrong = {name: codes for name, codes in alarms.items() if codes}
        print(f"\n{part}: {len(wrong)} of {len(results)} have a warning or an error {wrong or ''}")
    proofs = store.parts["proofs"]
    if proofs:
        bad = {name: result for name, result in proofs.items() if result["verified"]}
        print(f"a fix is called verified in {len(bad)} of {len(proofs)} {bad or ''}")
        changed = [name for name, result in proofs.items() if result["changed"]]
        print(f"--fix --unsafe-fixes changes {len(changed)} of {len(proofs)} {changed or ''}")
