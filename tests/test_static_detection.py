"""The detection benchmark itself: its models are sound, its faults are in, its verdicts are fair."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.faults import Injection, Traced, built, forward, inject, objective
from benchmarks.sound_models import MODELS
from benchmarks.static_detection import judged, on_sound, table
from trainlint.records import Location, ReportedFinding

torch.set_num_threads(1)
VGG = Traced(MODELS["vgg"])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_sound_model_gets_a_gradient(name: str) -> None:
    model, inputs = built(MODELS[name].source, MODELS[name].main)
    objective(forward(model, inputs, train=True)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "rule", ["ARC002", "ARC004", "ARC005", "ARC012", "INI001", "REG002", "GRD003"]
)
def test_a_fault_is_in_the_source_at_the_lines_that_count(rule: str) -> None:
    injection = inject(rule, VGG, seed=0)
    assert injection is not None
    ast.parse(injection.source)
    old, new = VGG.source.splitlines(), injection.source.splitlines()
    changed = {row for row, line in enumerate(new, start=1) if line not in old}
    assert changed & injection.lines
    assert injection.codes[0] == rule


def test_the_same_seed_gives_the_same_fault() -> None:
    assert inject("ARC005", VGG, seed=3) == inject("ARC005", Traced(MODELS["vgg"]), seed=3)


def test_a_fault_that_does_not_fit_is_not_applicable() -> None:
    assert inject("ARC009", VGG, seed=0) is None
    assert inject("NRM003", VGG, seed=0) is None


def finding(code: str, row: int, severity: str = "error", **more: object) -> ReportedFinding:
    place = Location(row=row, column=1)
    return ReportedFinding(
        code,
        "name",
        severity,
        "certain",
        "message",
        "static",
        "file.py",
        "",
        "file.py",
        place,
        place,
        **more,
    )  # type: ignore[arg-type]


def test_verdicts() -> None:
    injection = Injection("ARC005", "m", "detach", "", frozenset({7}), ("ARC005",), ("ARC004",))
    hit = judged(injection, [finding("ARC005", 7), finding("ARC004", 3)], [])
    assert (hit["found"], hit["right_line"], hit["others"]) == (True, True, [])
    elsewhere = judged(injection, [finding("ARC005", 9), finding("INI001", 2)], [])
    assert (elsewhere["found"], elsewhere["right_line"], len(elsewhere["others"])) == (
        True,
        False,
        1,
    )
    as_before = judged(injection, [finding("ARC005", 9)], [finding("ARC005", 9)])
    assert not as_before["found"]
    symptom = judged(injection, [finding("ARC004", 1, symptoms=[finding("ARC005", 7)])], [])
    assert symptom["found"]


def test_the_table_counts_and_names_rules_that_do_not_exist() -> None:
    injection = Injection("ARC005", "m", "detach", "", frozenset({7}), ("ARC005",), ())
    rows = [
        {**judged(injection, [finding("ARC005", 7)], []), "problems": []},
        {**judged(injection, [], []), "problems": []},
        {"rule": "ARC005", "model": "other", "inapplicable": True},
        {"rule": "XYZ001", "missing": True},
    ]
    text = "\n".join(table(rows))
    assert "1 (50%)" in text
    assert "XYZ001   not in the registry" in text
    sound = [{"model": "m", "false": ["ARC001 line 3: x"], "advice": [], "problems": []}]
    assert next(iter(on_sound(sound, "sound"))).startswith("sound: 1 sound, 1 false")
