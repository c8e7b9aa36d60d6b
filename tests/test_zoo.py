"""A quick sample of the zoo: awkward models are captured as they are, and not accused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.registry import all_rules
from trainlint.rule import Settings
from trainlint.sites import recording
from trainlint.subject import analyze

pytest.importorskip("numpy", reason="benchmarks/zoo_awkward.py needs numpy")
sys.path.insert(0, str(Path(__file__).parent.parent))

with recording(), single_node_functions(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from benchmarks import zoo_awkward

ENTRIES = zoo_awkward.entries()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name.partition("/")[2])
def test_awkward_models_are_captured_and_not_accused(entry: Any) -> None:
    torch.manual_seed(0)
    with recording(), single_node_functions():
        model = entry.build()
    args, kwargs = entry.inputs()
    recorded = capture(model, args, kwargs)
    assert recorded.exception is None
    assert [node.meta["operation"].error for node in recorded.faults] == []
    if entry.name.endswith("_unsound"):
        return
    args, kwargs = entry.inputs()  # some inputs can be used only once
    analysis = analyze(
        model,
        Inputs(args, kwargs, "given", given=True),
        target="zoo",
        settings=Settings(all_rules()),
    )
    assert analysis.result.status == "ok", analysis.result.reason
    alarms = [raw.reported for raw in analysis.findings if raw.reported.severity != "info"]
    assert [(alarm.code, alarm.module, alarm.message) for alarm in alarms] == []
