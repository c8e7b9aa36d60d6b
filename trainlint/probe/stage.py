"""The probe as a stage of a check: its facts, when it may end, and what a second seed confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trainlint.engine import Facts, FactUnavailable, Outcome, run_rules
from trainlint.probe.batches import batches, first_samples, same_draws, split
from trainlint.probe.loop import Limits
from trainlint.probe.probing import Guard, Probe
from trainlint.rule import Confidence, Rule, Settings

if TYPE_CHECKING:
    from torch import nn

    from trainlint.capture.inputs import Inputs
    from trainlint.engine import RawFinding
    from trainlint.observe.trace import Trace
    from trainlint.probe.setup import Setup

_SAMPLES = 16


def first_inputs(model: nn.Module, setup: Setup) -> Inputs | None:
    """At most 16 samples of the loader's first batch, if forward takes such arguments.

    Raises `ProbeProblem` where the loader gives none.
    """
    from trainlint.capture.inputs import Inputs, fits_signature

    name = setup.names.get("train_loader", "train_loader")
    with same_draws(setup.train_loader):
        batch = split(next(batches(setup.train_loader, name)), model, setup.loss, name)
    args, kwargs = first_samples((batch.args, dict(batch.kwargs)), _SAMPLES)
    inputs = Inputs(args, kwargs, f"from {name}", given=True)
    return inputs if fits_signature(inputs, model) else None


def probe_of(
    model: nn.Module,
    inputs: Inputs,
    setup: Setup,
    facts: Facts,
    settings: Settings,
    progress: Callable[[str], None] | None,
    guard: Guard | None,
) -> Probe:
    """The probe of this subject, offered as the facts `Trace` and `Memorisation`."""
    from trainlint.loss.objective import objective_of

    losses = facts.get("Losses")
    rules = [rule for rule in settings.rules if "Trace" in rule.facts.values()]

    def decided(trace: Trace) -> bool:
        """Whether a certain error is seen: more steps would only show more of it."""
        own = Facts({"Trace": trace, "SourceEdits": facts.get("SourceEdits")})
        found = run_rules(rules, own, target="", options=settings.options).findings
        return any(
            f.reported.severity == "error" and f.reported.confidence == Confidence.CERTAIN
            for f in found
        )

    probe = Probe(
        model,
        inputs,
        setup,
        Limits(settings.probe_steps, settings.probe_seconds),
        loss=None if losses is None else objective_of(losses),
        progress=progress,
        decided=decided,
        guard=guard,
        options=settings.options,
    )
    facts.offer("Trace", probe.trace)
    facts.offer("Memorisation", lambda: _memorisation(probe, facts))
    return probe


def _memorisation(probe: Probe, facts: Facts) -> Any:
    if facts.get("Trace") is None:
        raise FactUnavailable("there was no probe")
    return probe.memorisation()


def probed(
    probe: Probe, facts: Facts, rules: Sequence[Rule], run: Callable[[Sequence[Rule]], Outcome]
) -> Outcome:
    """The findings of a probe. What is not certain must come again with another seed.

    Another seed means another order of the data and other dropout, from the same initial weights.
    """
    outcome = run(rules)
    reason = facts.missing.get("Memorisation")
    if reason and facts.has("Trace") and not probe.is_decided:
        asking = [rule for rule in rules if "Memorisation" in rule.facts.values()]
        outcome.unmeasured += [(rule, reason) for rule in asking]
    doubtful = [finding for finding in outcome.findings if _is_doubtful(finding)]
    if not doubtful or probe.ran is None or probe.setup.train is not None:
        return outcome
    try:
        trace = probe.trace(seed=1)
    except FactUnavailable:
        return outcome
    again = Facts({"Trace": trace, "SourceEdits": facts.get("SourceEdits")})
    asked = list({finding.rule.code: finding.rule for finding in doubtful}.values())
    confirmed = {
        (finding.reported.code, finding.reported.module)
        for finding in run_rules(asked, again, target="", options=probe.options).findings
    }
    outcome.findings = [
        finding
        for finding in outcome.findings
        if finding not in doubtful or (finding.reported.code, finding.reported.module) in confirmed
    ]
    return outcome


def _is_doubtful(finding: RawFinding) -> bool:
    """Whether it rests on the trace alone, and is no plain fact."""
    facts = set(finding.rule.facts.values())
    return (
        finding.reported.stage == "probe"
        and finding.reported.confidence != Confidence.CERTAIN
        and finding.reported.severity != "info"
        and "Trace" in facts
        and facts <= {"Trace", "SourceEdits"}
    )
