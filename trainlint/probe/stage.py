"""The probe as a stage of a check: its facts, when it may end, and what a second seed confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainlint.engine import Facts, FactUnavailable, Outcome, run_rules
from trainlint.probe.batches import batches, first_samples, same_draws, split
from trainlint.probe.loop import Limits
from trainlint.probe.probing import Guard, OfWidth, Probe
from trainlint.rule import Confidence, Rule, Settings, Severity

if TYPE_CHECKING:
    from torch import nn

    from trainlint.capture.inputs import Inputs
    from trainlint.engine import RawFinding
    from trainlint.loss.uses import Losses, Recipe
    from trainlint.observe.trace import Trace
    from trainlint.probe.setup import Setup

_SAMPLES = 16
_LONGER = 8
# What a rule may ask for besides the trace, and a second training has no part in.
_SAME = ("SourceEdits", "Data", "Losses", "Memorisation")


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
    recipe: Recipe,
    target: str,
    facts: Facts,
    settings: Settings,
    progress: Callable[[str], None] | None,
    guard: Guard | None,
    of_width: OfWidth | None = None,
) -> Probe:
    """The probe of this subject, offered as the facts `Trace` and `Memorisation`."""
    from trainlint.loss.objective import objective_of

    setup = recipe.setup
    losses = facts.get("Losses")
    if losses is not None and not recipe.explicit and setup.train is None and setup.step is None:
        setup = with_loss_of_file(setup, losses)
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
        of_width=of_width,
        target=target,
        options=settings.options,
    )
    facts.offer("Trace", probe.trace)
    facts.offer("Memorisation", lambda: _memorisation(probe, facts))
    return probe


def with_loss_of_file(setup: Setup, losses: Losses) -> Setup:
    """With the loss as the file applies it to this model, which may take a part of the output only."""
    from trainlint.loss.objective import loss_from_outside

    found = loss_from_outside(losses)
    if found is None:
        return setup
    function, call = found
    return replace(setup, loss=function, judge=setup.loss, place=call.where)


def _memorisation(probe: Probe, facts: Facts) -> Any:
    if facts.get("Trace") is None:
        raise FactUnavailable("there was no probe")
    return probe.memorisation()


def probed(
    probe: Probe,
    facts: Facts,
    rules: Sequence[Rule],
    run: Callable[[Sequence[Rule]], Outcome],
    *,
    remedies: bool = True,
) -> Outcome:
    """The findings of a probe. What is not certain must come again with another seed.

    Another seed means another order of the data and other dropout, from the same initial weights. What is
    only possible, since more steps could tell, must come again after eight times as many. With `remedies`,
    what helps against a finding is tried where its rule asks for that.
    """
    outcome = run(rules)
    reason = facts.missing.get("Memorisation")
    if reason and facts.has("Trace") and not probe.is_decided:
        asking = [rule for rule in rules if "Memorisation" in rule.facts.values()]
        outcome.unmeasured += [(rule, reason) for rule in asking]
    if probe.ran is not None and probe.setup.train is None:
        watching = [rule for rule in rules if _watches_only(rule)]
        _confirm(outcome, probe, watching, facts, Confidence.LIKELY, longer=1)
        _confirm(outcome, probe, watching, facts, Confidence.POSSIBLE, longer=_LONGER)
        if remedies:
            _remedy(outcome, probe, facts, rules)
    return outcome


def _watches_only(rule: Rule) -> bool:
    """Whether it rests on the trace, and on nothing else that a second training would change."""
    facts = set(rule.facts.values())
    return "Trace" in facts and facts <= {"Trace", "Remedies", *_SAME}


def _remedy(outcome: Outcome, probe: Probe, facts: Facts, rules: Sequence[Rule]) -> None:
    """Try remedies where a finding stands whose rule asks for them, and let it speak again."""
    found = {finding.reported.code for finding in outcome.findings}
    asking = [r for r in rules if "Remedies" in r.facts.values() and r.code in found]
    if not asking:
        return
    facts.offer("Remedies", probe.remedies)
    again = {
        (finding.reported.code, finding.reported.module): finding
        for finding in run_rules(asking, facts, target=probe.target, options=probe.options).findings
    }
    outcome.findings = [
        again.get((finding.reported.code, finding.reported.module), finding)
        for finding in outcome.findings
    ]


def _confirm(
    outcome: Outcome,
    probe: Probe,
    rules: Sequence[Rule],
    known: Facts,
    confidence: Confidence,
    *,
    longer: int,
) -> None:
    """Keep of the findings of this confidence those that come again, as they then are.

    A longer run may show what it was instead: what other rules then say is added.
    """
    doubtful = [finding for finding in outcome.findings if _is_doubtful(finding, confidence)]
    if not doubtful:
        return
    try:
        trace = probe.trace(seed=longer, longer=longer)
    except FactUnavailable:
        return
    facts = Facts({"Trace": trace} | {name: known.get(name) for name in _SAME})
    again = run_rules(rules, facts, target=probe.target, options=probe.options).findings
    confirmed = {(f.reported.code, f.reported.module): f for f in again}
    there = {finding.reported.code for finding in outcome.findings}
    kept = [
        confirmed.get((finding.reported.code, finding.reported.module))
        if finding in doubtful
        else finding
        for finding in outcome.findings
    ]
    if longer > 1:
        kept += [finding for finding in again if finding.reported.code not in there]
    outcome.findings = [finding for finding in kept if finding is not None]


def _is_doubtful(finding: RawFinding, confidence: Confidence) -> bool:
    """Whether it is seen in a trace, and is no plain fact.

    Advice counts where it is no more than that only because more steps could tell.
    """
    is_advice = finding.reported.severity == "info" and (
        confidence is Confidence.LIKELY or finding.rule.severity == Severity.INFO
    )
    return (
        finding.reported.stage == "probe"
        and finding.reported.confidence == confidence
        and not is_advice
        and _watches_only(finding.rule)
    )
