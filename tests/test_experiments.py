"""Trials in child processes: what one of them dies of costs that one, and Ctrl-C ends all."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import COMMAND, is_alive, wait_for, write_files
from test_crossvalidation import HEAD
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainlint.config import Config
from trainlint.errors import UsageError
from trainlint.generalization.experiments import (
    Experiment,
    ExperimentError,
    Trials,
    TrialSpec,
    run_trials,
)
from trainlint.generalization.laboratory import Laboratory
from trainlint.generalization.variants import Variant
from trainlint.probe.setup import Setup
from trainlint.processes.jobs import Prepared, Tried, decode_message, encode
from trainlint.processes.supervisor import _room

pytest.importorskip("sklearn")

# Does something at the given reading of sample 7, counted from the start of each process: the first time.
TROUBLE = (
    HEAD
    + """
    import pathlib


    class Trouble(TensorDataset):
        read = 0

        def __getitem__(self, place):
            if place == 7:
                Trouble.read += 1
                done = pathlib.Path(__file__).with_suffix(".pid")
                if Trouble.read == {at} and not done.exists():
                    done.write_text(str(os.getpid()))
                    {what}
            return super().__getitem__(place)

        __getitems__ = None


    del Trouble.__getitems__
    train_loader = DataLoader(Trouble(x, y), batch_size=16, shuffle=True)
"""
)
QUICK = Experiment(folds=4, steps=6, ends_only=True)


def specs(folds: int = 4, **options: Any) -> list[TrialSpec]:
    return [TrialSpec(fold=fold, **options) for fold in range(folds)]


def test_a_file_gives_the_same_results_in_any_number_of_processes(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": HEAD})
    told: list[tuple[float, str]] = []
    wanted = [*specs(3), TrialSpec(Variant(l2=0.1), 1, 5)]
    several, one = (
        run_trials(
            str(tmp_path / "net.py"), wanted, QUICK, Config(jobs=jobs),
            lambda share, text: told.append((share, text)),
        )
        for jobs in (3, 1)
    )  # fmt: skip
    assert [result.spec for result in several.results] == wanted
    assert figures(several) == figures(one)
    assert several.results[1].last != several.results[3].last
    assert told[-1] == (1.0, "4 of 4 trainings")
    shares = [share for share, _ in told[: told.index((1.0, "4 of 4 trainings"))]]
    assert shares == sorted(shares)


def figures(trials: Trials) -> list[Any]:
    return [msgspec.structs.replace(result, seconds=0.0, memory=0) for result in trials.results]


def test_results_have_what_paired_comparisons_need(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": HEAD})
    variants = [Variant(), Variant(dropout=0.3)]
    found = run_trials(
        str(tmp_path / "net.py"), [TrialSpec(variant) for variant in variants], QUICK
    )
    first, second = found.results
    assert first.scored == second.scored
    assert len(first.last.validation.losses) == first.validation_samples == 20
    assert first.checkpoints[0].step == 0
    assert first.last.step == first.steps == 6
    assert first.memory > 0
    assert decode_message(encode(Tried(first))) == Tried(first)
    assert decode_message(encode(Prepared(found.split))) == Prepared(found.split)


def test_the_files_own_validation_data(tmp_path: Path) -> None:
    others = (
        "    val_loader = DataLoader(TensorDataset(torch.randn(30, 6), y[:30]), batch_size=7)\n"
    )
    write_files(tmp_path, {"net.py": HEAD + others, "alone.py": HEAD})
    whole = Experiment(folds=0, steps=4)
    found = run_trials(str(tmp_path / "net.py"), [TrialSpec()], whole).results[0]
    assert (found.train_samples, found.validation_samples) == (80, 30)
    with pytest.raises(ExperimentError, match="no validation data are known"):
        run_trials(str(tmp_path / "alone.py"), [TrialSpec()], whole)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("os._exit(3)", "ended by itself (exit status 3)"),
        ("os.abort()", "crashed (Aborted, signal 6"),
        ("time.sleep(600)", "timed out after 16 s"),
        ("raise MemoryError", "out of memory"),
        ("raise SystemExit(2)", "it exits there (status 2)"),
    ],
)
def test_what_kills_one_trial_costs_that_one(tmp_path: Path, what: str, reason: str) -> None:
    # Two readings make the folds; a trial that trains on the sample reads it twice or more.
    write_files(tmp_path, {"net.py": TROUBLE.format(at=6, what=what)})
    config = Config(jobs=1, timeout=16)
    found = run_trials(str(tmp_path / "net.py"), specs(), QUICK, config).results
    failed = [result for result in found if result.reason is not None]
    assert len(failed) == 1
    assert reason in str(failed[0].reason)
    assert all(result.checkpoints for result in found if result.reason is None)


def test_what_ends_it_before_the_first_trial_is_said_at_once(tmp_path: Path) -> None:
    files = {
        "exits.py": HEAD + "    os._exit(3)\n",
        "reading.py": TROUBLE.format(at=1, what="raise KeyError('image 7')"),
        "none.py": "x = 1\n",
    }
    write_files(tmp_path, files)
    for name, reason in (
        ("exits.py", "ended by itself"),
        ("reading.py", "train_loader raised KeyError: 'image 7'"),
        ("none.py", "no model found"),
    ):
        with pytest.raises(ExperimentError, match=reason):
            run_trials(str(tmp_path / name), specs(), QUICK, Config(jobs=2))
    with pytest.raises(UsageError, match="is a directory"):
        run_trials(str(tmp_path), specs(), QUICK)
    with pytest.raises(UsageError, match="no such file"):
        run_trials(str(tmp_path / "missing.py"), specs(), QUICK)


def test_ctrl_c_ends_all_trainings(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": TROUBLE.format(at=6, what="time.sleep(600)")})
    command = [COMMAND, "check", "net.py", "--kfold", "4", "--probe-steps", "0", "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert wait_for((tmp_path / "net.pid").exists, 90)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert wait_for(lambda: not is_alive(int((tmp_path / "net.pid").read_text())))


def test_a_model_of_another_width_comes_from_elsewhere() -> None:
    x = torch.randn(40, 6)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8, shuffle=True)
    model = nn.Linear(6, 2)
    setup = Setup(nn.CrossEntropyLoss(), None, loader)
    laboratory = Laboratory(model, setup, QUICK)
    refused = laboratory.run(TrialSpec(Variant(width=2.0)))
    assert refused.reason == "a model of another width has to be built anew"
    assert laboratory.run(TrialSpec(Variant(noise=0.1))).reason is None


@pytest.mark.parametrize(
    ("free", "took", "running", "room"),
    [(None, 1, 1, 10**6), (10, 1, 1, 7), (10, 5, 1, 2), (1, 30, 1, 1), (4, 2, 3, 3)],
)
def test_memory_limits_how_many_run_at_once(
    free: int | None, took: int, running: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 40  # beside which what is spared does not count
    monkeypatch.setattr(
        "trainlint.processes.supervisor.available_memory",
        lambda: None if free is None else free * size,
    )
    found = _room(took * size, running)
    assert found >= room if free is None else found == room
