"""The benchmark of repairs: its files are whole, its counts are as promised, and a case runs through."""

from __future__ import annotations

import ast
import math

import pytest

from benchmarks.repair import detect, repair, sound_texts
from benchmarks.repair_faults import FAULTS, KINDS
from benchmarks.repair_judging import Store, digest, is_accepted, reaches, verdict
from benchmarks.repair_models import MODELS
from benchmarks.repair_sound import SOUND
from trainlint.registry import all_rules


def test_there_are_as_many_as_the_page_says() -> None:
    assert len(FAULTS) >= 150
    assert len({fault.kind.name for fault in FAULTS.values()}) == len(KINDS) >= 30
    assert len({MODELS[fault.model].family for fault in FAULTS.values()}) >= 15
    assert len(sound_texts()) == len(SOUND) + len(MODELS) >= 40


@pytest.mark.parametrize("name", [*MODELS, *SOUND])
def test_every_sound_file_is_python(name: str) -> None:
    tree = ast.parse(sound_texts()[name])
    assert (
        any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
        or "Sequential" in (sound_texts()[name])
    )


def test_every_fault_changes_its_file_into_another_that_is_python() -> None:
    for fault in FAULTS.values():
        assert ast.dump(ast.parse(fault.text)) != ast.dump(ast.parse(fault.twin)), fault.name


def test_no_two_cases_are_the_same_file() -> None:
    assert len({digest(fault.text) for fault in FAULTS.values()}) == len(FAULTS)


def test_the_halves_are_halves() -> None:
    held_out = sum(fault.half == "held-out" for fault in FAULTS.values())
    assert 0.4 < held_out / len(FAULTS) < 0.6


def test_kinds_name_rules_that_exist() -> None:
    codes = {rule.code for rule in all_rules()}
    for kind in KINDS.values():
        assert kind.codes <= codes, kind.name


def test_a_remedy_is_judged_by_its_rule_its_words_and_its_number() -> None:
    fault = FAULTS["wrong num_features/cancer_classifier"]
    assert is_accepted(fault, "NRM001", "num_features=30 → 32 in norm")
    assert not is_accepted(fault, "NRM001", "num_features=30 → 16 in norm")
    assert not is_accepted(fault, "GRD001", "num_features=30 → 32 in norm")


def test_the_twin_is_reached_by_share_or_by_ratio() -> None:
    twin = {"losses": [0.1, 0.1], "constants": [1.1, 1.1]}
    assert reaches([0.11], twin) == (True, True)
    assert reaches([0.25], twin) == (True, False)
    assert reaches([0.4], twin) == (False, False)
    assert reaches([math.inf], twin) == (False, False)


def test_a_case_is_found_repaired_and_trains_as_its_twin_does() -> None:
    faults = [FAULTS["zero init/digits_mlp"], FAULTS["softmax before cross entropy/digits_mlp"]]
    store = Store(None)
    detect(
        {"digits_mlp": MODELS["digits_mlp"].text}, store.parts["twin findings"], store.save, 1, ""
    )
    detect({f.name: f.text for f in faults}, store.parts["detection"], store.save, 1, "")
    repair(faults, store, 1)
    for fault in faults:
        answer = verdict(fault, store.parts["detection"], store.parts["twin findings"])
        assert answer["detected"]
        assert answer["accepted"]
        # A network of digits that knows nothing is at ln 10 = 2.30.
        assert max(store.parts["repair"][fault.name]["losses"]) < 0.4
