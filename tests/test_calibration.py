"""The calibration benchmark itself: its runs run, its faults are in, its verdicts are fair."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.calibration import (
    HALVES,
    broken,
    cases,
    half_of,
    harm,
    hosts,
    is_found,
    is_named,
    of_sound,
    plan,
    table,
    upper,
)
from benchmarks.training_data import DATASETS
from benchmarks.training_faults import ELSEWHERE, FAULTS, NOT_YET, of
from benchmarks.training_models import ARCHITECTURES
from benchmarks.training_runs import compatible, host, quality, sound_rates, train
from trainlint.registry import all_rules


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_halves_share_no_architecture_data_set_or_seed() -> None:
    both = [hosts(half, 0, 2) for half in HALVES]
    for place in range(3):
        one, two = ({host[place] for host in every} for every in both)
        assert one
        assert two
        assert not one & two
    kinds = [{kind for name, (kind, *_) in DATASETS.items() if half_of(name) == h} for h in HALVES]
    assert kinds[0] == kinds[1]


def test_every_rule_on_traces_has_a_fault() -> None:
    judged = {rule.code for rule in all_rules() if "Trace" in rule.facts.values()}
    assert judged - NOT_YET - ELSEWHERE == {fault.rule for fault in FAULTS}
    assert judged >= NOT_YET | ELSEWHERE


def test_there_are_many_architectures_and_each_has_data() -> None:
    assert len(ARCHITECTURES) >= 40
    assert all(compatible(name) for name in ARCHITECTURES)


def test_the_same_names_give_the_same_run() -> None:
    ends = []
    for _ in range(2):
        recipe = host("batchnorm_mlp", "ring", 4)
        recipe.steps = 5
        train(recipe)
        ends.append(quality(recipe))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "name",
    ["mlp", "generative_adversarial", "actor_critic", "q_learning", "physics_informed", "lstm"],
)
def test_loops_of_all_kinds_train(name: str) -> None:
    recipe = host(name, compatible(name)[0], 1)
    recipe.steps = 3
    before = [p.detach().clone() for p in recipe.model.parameters()]
    train(recipe)
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, recipe.model.parameters(), strict=True)
    )


def test_a_fault_that_does_not_fit_is_refused() -> None:
    small = next(fault for fault in of(["NRM004"]))
    assert broken(("mlp", "blobs", 0), small) is None
    assert broken(("batchnorm_mlp", "blobs", 0), small) is not None


def test_some_faults_are_found_and_the_sound_run_is_quiet() -> None:
    keys = ["GRD007 never cleared", "LOS001 softmax in the loop", "OPT001 the head alone"]
    sound, *faulty = cases(("mlp", "blobs", 0), keys)
    assert sound["learnt"]
    assert [f["code"] for f in sound["found"] if f["severity"] != "info"] == []
    assert len(faulty) == len(keys)
    assert all(is_found(row) and row["counts"] for row in faulty)
    lines = list(table(faulty))
    assert lines[-1].startswith("macro recall over 3 rules: 1.000")
    assert next(of_sound([sound])).startswith(
        "sound runs: 1, with a finding at warning or above: 0 "
    )


def test_each_fault_goes_into_hosts_of_several_architectures() -> None:
    faults = list(of(["OPT008"]))
    planned = plan("tune", 0, 1, faults, 3)
    chosen = [one for one, of_host in planned.items() if of_host]
    assert len(chosen) == 3
    assert len({architecture for architecture, *_ in chosen}) >= 2


def test_harm_is_the_share_of_the_gain_that_is_lost() -> None:
    assert harm(2.0, 1.0, 1.5) == 0.5
    assert harm(2.0, 1.0, 1.0) == 0.0
    assert harm(2.0, 1.0, math.nan) == math.inf
    assert harm(2.0, 1.99, 5.0) is None  # the twin learnt next to nothing
    assert harm(None, None, None) is None


def test_named_by_another_rule_is_no_recall() -> None:
    row = {"rule": "OPT002", "also": ("GRD003",), "every": [("GRD003", "error")]}
    assert is_named(row)
    assert not is_found(row)


def test_the_bound_on_a_rate_is_that_of_clopper_and_pearson() -> None:
    assert upper(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-6)
    assert upper(2, 100) == pytest.approx(0.0616, abs=1e-3)


def test_the_rates_that_a_rule_calls_usual_are_those_of_the_sound_runs() -> None:
    (rule,) = (rule for rule in all_rules() if rule.name == "learning-rate-too-low")
    usual = rule.function.__globals__["SOUND_RATES"]
    drawn = sound_rates()
    assert usual.keys() == drawn.keys() - {"LBFGS"}
    for kind, rates in usual.items():
        assert rates == pytest.approx(drawn[kind], rel=0.02)
