"""The static rules on a model that is being trained: what is measured later is joined to what causes it.

Comes in: a model just before its first optimizer step, with the inputs of its latest forward: real ones,
and weights as they were initialised. Goes out: located findings, which hold nothing of the model, its
inputs or its graph. The forward runs once more, on meta tensors, and all that it changes is put back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from trainlint.analysis.outline import outline
from trainlint.capture.tracer import capture, is_wrapped
from trainlint.engine import RawFinding, failures_as_text, run_rules
from trainlint.observe.quiet import quiet
from trainlint.observe.sharding import has_others
from trainlint.preserve import is_lazy, preserved
from trainlint.rule import FACT_STAGES

if TYPE_CHECKING:
    from trainlint.loss.source import LossUse
    from trainlint.loss.uses import Recipe
    from trainlint.records import ModelGraph
    from trainlint.rule import Rule, Settings

# Seconds: a capture that took longer is not repeated for the rules that compare two, and after so much in
# all, and so many models (folds, a search), no more are looked at.
_LONG: Final = 5.0
_LONGEST: Final = 20.0
_MOST_MODELS: Final = 16
# Names and numbers of elements of a model's parameters: they tell apart models of one class.
Sizes = tuple[tuple[str, int], ...]


def static_rules(rules: Sequence[Rule]) -> list[Rule]:
    """Those that the graph alone suffices for. What reads a `Trace` as well, judges the run by that."""
    return [
        rule
        for rule in rules
        if "Trace" not in rule.facts.values()
        and any(fact in ("Graph", "Variants") for fact in rule.facts.values())
        and all(
            FACT_STAGES[fact] == "static" or parameter in rule.optional
            for parameter, fact in rule.facts.items()
        )
    ]


@dataclass
class StaticFindings:
    """What the static rules of `settings` say to each model that is trained; `notes` where they could not.

    `graphs` are outlines of the models' graphs, each with the names and sizes of its parameters, if the
    settings ask for them. Nothing is ever raised.
    `seconds` is what it took of this thread, whatever else the machine does.
    """

    settings: Settings
    target: str
    findings: list[RawFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    graphs: list[tuple[Sizes, ModelGraph]] = field(default_factory=list)
    seconds: float = 0.0
    models: int = 0

    def look_at(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        losses: tuple[LossUse, ...] = (),
    ) -> None:
        """Capture the model on these inputs and judge the graph, by the `losses` that it is trained by."""
        if self.models >= _MOST_MODELS or self.seconds > _LONGEST:
            return
        self.models += 1
        started = time.thread_time()
        number = len(self.findings)
        try:
            reason = _why_not(model)
            if reason is None:
                reason = self._judge(model, args, kwargs, losses)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            del self.findings[number:]
            self.notes.append(f"the graph of {type(model).__name__} was not judged: {reason}")
        self.seconds += time.thread_time() - started

    def _judge(
        self, model: nn.Module, args: Any, kwargs: Any, losses: tuple[LossUse, ...]
    ) -> str | None:
        from trainlint.capture.inputs import Inputs
        from trainlint.graph import Graph
        from trainlint.subject import static_facts

        rules = static_rules(self.settings.rules)
        if not rules:
            return None
        started = time.thread_time()
        # An observer is called with function modes shut out. Rules may draw random numbers as well.
        with torch._C._EnableTorchFunction(), torch.enable_grad(), quiet(), preserved(model):
            recording = capture(model, args, kwargs)
            if recording.exception is not None:
                error = recording.exception
                return f"on meta tensors it raised {type(error).__name__}: {error}"
            if recording.faults:
                return "it runs on these inputs, but not on meta tensors of their shapes"
            if time.thread_time() - started > _LONG:
                rules = [rule for rule in rules if "Variants" not in rule.facts.values()]
                self.notes.append("the graph took long to make: rules that compare two did not run")
            inputs = Inputs(args, kwargs, "of the training", given=True)
            graph = Graph(recording.graph, recording.model, inputs_given=True)
            facts = static_facts(inputs, graph, _recipe(model, losses))
            outcome = run_rules(rules, facts, target=self.target, options=self.settings.options)
            if self.settings.graphs:
                sizes = tuple((name, p.numel()) for name, p in model.named_parameters())
                self.graphs.append((sizes, outline(graph, model=type(model).__name__)))
        self.notes.extend(failures_as_text(outcome.failures))
        self.findings.extend(_detached(outcome.findings, f"{id(self)}/{len(self.findings)}"))
        return None


def _recipe(model: nn.Module, losses: tuple[LossUse, ...]) -> Recipe:
    """What is seen of the training: these losses, and an optimizer that holds its parameters."""
    from trainlint.loss.training import Training
    from trainlint.loss.uses import Recipe

    names = frozenset({type(model).__name__})
    training = Training(optimized=(names,), has_backward=True)
    return Recipe(uses=losses, names=names, training=training)


def _why_not(model: nn.Module) -> str | None:
    if isinstance(model, torch.jit.ScriptModule):
        return "it is compiled by torch.jit"
    if _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        return "another torch function mode is active"
    if torch.is_inference_mode_enabled():
        return "inference mode is on"
    if has_others():
        return "its forward may wait for other processes"
    for tensor in (*model.parameters(), *model.buffers()):
        if is_lazy(tensor) or is_wrapped(tensor):
            return f"it has tensors of a kind of their own ({type(tensor).__name__})"
    return None


def _detached(findings: list[RawFinding], label: str) -> Iterator[RawFinding]:
    """With names in place of graph nodes, which would keep the model and its inputs alive."""
    tokens: dict[Any, str] = {}
    for finding in findings:
        yield replace(
            finding,
            fault=None
            if finding.fault is None
            else tokens.setdefault(("fault", finding.fault), f"{label}/{len(tokens)}"),
            affects=frozenset(
                tokens.setdefault(("node", node), f"{label}/{len(tokens)}")
                for node in finding.affects
            ),
        )
