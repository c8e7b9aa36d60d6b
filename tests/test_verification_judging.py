"""From measurements to a verdict, without a training."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import msgspec
import pytest

from trainlint.fixes.edit import Attempt, Edit, Fix, Location, Safety
from trainlint.fixes.patch import Patch
from trainlint.fixes.source import apply
from trainlint.records import CombinedFixes, Report, ReportedFinding, Series, TargetResult
from trainlint.verification.candidates import candidates, ranked, with_attempts
from trainlint.verification.changes import Budget, Loss, Outcome, Training, Trial, Version
from trainlint.verification.judging import NOT_LOWER, STAYS, Checked, Verdict, judged, moved
from trainlint.verification.measured_rates import with_rates
from trainlint.verification.verifying import Verification

RESULT = TargetResult("net.py::model", "ok", stages=["static", "signal", "probe"])


def finding(
    code: str = "INI001", *, row: int = 10, module: str = "fc", stage: str = "signal",
    severity: str = "warning", symptoms: list[ReportedFinding] | None = None,
    fixes: list[Fix] | None = None,
) -> ReportedFinding:  # fmt: skip
    place = Location(row, 5)
    return ReportedFinding(
        code, code.lower(), severity, "certain", "", stage, "net.py::model", module,
        "/net.py", place, place, symptoms=symptoms or [], fixes=fixes or [],
    )  # fmt: skip


def trained(*ends: float, start: float = 1.0, guess: float | None = 1.0) -> list[Training]:
    return [
        Training(
            seed, None, Loss(start, end, guess), steps=50, asked=50, parameters=10, seconds=0.1
        )
        for seed, end in enumerate(ends)
    ]


def verdict(
    before: list[ReportedFinding],
    after: list[ReportedFinding],
    *,
    control: list[Training],
    changed: list[Training],
    edits: list[Edit] | None = None,
    was: TargetResult = RESULT,
    now: TargetResult = RESULT,
) -> Verdict:
    return judged(
        before[0],
        Checked(before, was),
        Outcome(trainings=control),
        Outcome(after, now, changed),
        edits or [],
    )


LOWER = {"control": trained(0.9, 0.8), "changed": trained(0.5, 0.6)}


def test_a_cleared_finding_and_a_lower_loss_are_a_proof() -> None:
    found = verdict([finding()], [], **LOWER)

    attempt = found.attempt
    assert (attempt.before, attempt.after, attempt.reason) == (0.85, 0.55, "")
    assert attempt.gain == pytest.approx(0.3)
    assert attempt.error == pytest.approx(0.1)  # of 0.4 and 0.2
    assert (found.clears, found.trains, found.costs) == (True, True, False)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [((0.85, 0.75), NOT_LOWER), ((0.2, 0.9), "the loss is not lower with each seed")],
)
def test_a_loss_that_is_not_lower_beyond_doubt_is_none(
    ends: tuple[float, float], reason: str
) -> None:
    found = verdict([finding()], [], control=trained(0.9, 0.8), changed=trained(*ends))

    assert found.attempt.reason == reason
    assert found.attempt.cleared


def test_a_lower_loss_proves_nothing_while_the_finding_stays() -> None:
    found = verdict([finding()], [finding()], **LOWER)

    assert (found.attempt.cleared, found.attempt.reason, found.clears) == (False, STAYS, False)


def test_a_symptom_that_now_stands_alone_is_the_finding_still() -> None:
    symptom = finding("GRD001", row=20, module="out", stage="probe")

    alone = verdict([finding(symptoms=[symptom])], [symptom], **LOWER)
    under_another = finding("OPT002", row=30, module="", symptoms=[symptom])
    explained = verdict([finding(symptoms=[symptom]), under_another], [under_another], **LOWER)

    assert alone.attempt.reason == STAYS
    assert explained.attempt.reason == ""


def test_the_place_of_a_finding_is_followed_through_the_edits() -> None:
    above = Edit("/net.py", Location(1, 1), Location(1, 1), "import math\n")

    stays = verdict([finding()], [finding(row=11, module="other")], edits=[above], **LOWER)
    another = verdict([finding()], [finding(row=12, module="other")], edits=[above], **LOWER)

    assert stays.attempt.reason == STAYS
    assert another.attempt.reason == "it brings another finding: INI001 ini001"


def test_a_warning_in_place_of_an_error_is_no_proof_but_a_step_ahead() -> None:
    new = finding("LOS010", module="out", row=20)
    warning = msgspec.structs.replace(new, severity="warning")

    for severity, clears in (("error", True), ("warning", False)):
        before = finding(severity=severity)
        assert verdict([before], [warning], **LOWER).clears == clears
        assert "another finding" in verdict([before], [warning], **LOWER).attempt.reason
    assert not verdict([finding(severity="error")], [msgspec.structs.replace(new, severity="error")],
                       **LOWER).clears  # fmt: skip


def test_another_finding_is_held_against_it_unless_it_was_hidden() -> None:
    new = finding("GRD001", module="out", row=20, stage="probe")
    crashed = msgspec.structs.replace(RESULT, stages=["static"])
    short = msgspec.structs.replace(RESULT, series=Series(5, 5, "cross_entropy"))
    whole = msgspec.structs.replace(RESULT, series=Series(50, 50, "cross_entropy"))

    assert "another finding: GRD001" in verdict([finding()], [new], **LOWER).attempt.reason
    hidden = verdict([finding(stage="static")], [new], was=crashed, **LOWER)
    ended = verdict([finding()], [new], was=short, now=whole, **LOWER)
    advice = msgspec.structs.replace(new, severity="info")

    assert hidden.attempt.reason == ""
    assert ended.attempt.reason == ""
    assert verdict([finding()], [advice], **LOWER).attempt.reason == ""


def test_what_learns_at_last_may_learn_by_heart() -> None:
    overfit = finding("GEN001", module="", row=30, stage="probe")
    no_better = {"control": trained(0.5, 0.5), "changed": trained(0.5, 0.5)}

    assert verdict([finding()], [overfit], **LOWER).attempt.reason == ""
    assert "GEN001" in verdict([finding()], [overfit], **no_better).attempt.reason


def test_another_loss_costs_nothing_as_long_as_it_falls() -> None:
    squared = [
        msgspec.structs.replace(each, train=Loss(0.25, 0.04, 0.24)) for each in trained(0, 0)
    ]

    found = verdict([finding()], [], control=squared, changed=trained(0.3, 0.3))
    stands = verdict([finding()], [], control=squared, changed=trained(1.0, 1.0))

    assert (found.costs, found.attempt.reason) == (False, NOT_LOWER)
    assert stands.costs


def test_a_finding_that_was_not_looked_for_is_not_cleared() -> None:
    unprobed = msgspec.structs.replace(RESULT, stages=["static", "signal"])

    found = verdict([finding(stage="probe")], [], now=unprobed, **LOWER)

    assert found.attempt.cleared is False


def test_one_of_two_faults_that_stop_a_model_may_be_mended_first() -> None:
    stopped = [Training(seed, "the training raised RuntimeError", parameters=10) for seed in (0, 1)]
    unrun = msgspec.structs.replace(RESULT, stages=["static"])
    first = finding("NRM001", stage="static", severity="error")
    second = finding("ARC002", row=20, module="head", stage="static", severity="error")

    one = verdict([first, second], [second], control=stopped, changed=stopped, was=unrun, now=unrun)
    unknown = verdict([first], [], control=stopped, changed=stopped, was=unrun, now=unrun)
    worse = verdict(
        [first, second], [second], changed=stopped, now=unrun, control=trained(0.9, 0.8)
    )

    assert one.attempt.reason == "the model does not run yet for another fault: ARC002 arc002"
    assert (one.clears, one.costs) == (True, False)
    assert unknown.costs
    assert worse.costs


def test_what_did_not_run_has_to_learn() -> None:
    broken = [Training(seed, "the training raised ValueError", parameters=10) for seed in (0, 1)]

    learns = verdict([finding()], [], control=broken, changed=trained(0.6, 0.7))
    stands = verdict([finding()], [], control=broken, changed=trained(0.95, 0.99))

    assert (learns.attempt.reason, learns.attempt.before) == ("", None)
    assert learns.attempt.gain == pytest.approx(0.35)
    assert stands.attempt.reason == NOT_LOWER
    assert (stands.clears, stands.costs) == (True, False)


def test_what_did_not_run_gains_nothing_by_a_bad_start() -> None:
    broken = [Training(seed, "the training raised ValueError", parameters=10) for seed in (0, 1)]

    near = verdict([finding()], [], control=broken, changed=trained(0.5, 0.5, start=1.2))
    far = verdict([finding()], [], control=broken, changed=trained(15.0, 15.0, start=1800.0))

    assert near.attempt.gain == pytest.approx(0.5)
    assert far.attempt.gain == pytest.approx(-14.0)
    assert far.attempt.reason == NOT_LOWER


def test_a_loss_that_became_no_number_is_no_loss() -> None:
    diverged = [
        msgspec.structs.replace(each, train=Loss(1.0, "nan", 1.0)) for each in trained(1.0, 1.0)
    ]

    mended = verdict([finding()], [], control=diverged, changed=trained(0.5, 0.5))
    worse = verdict([finding()], [], control=trained(0.9, 0.9), changed=diverged)

    assert (mended.attempt.reason, mended.attempt.before) == ("", None)
    assert worse.attempt.reason == "the loss became no number"
    assert (worse.trains, worse.costs) == (False, True)


def test_a_training_that_no_longer_moves_is_no_remedy_of_one_that_diverges() -> None:
    found = verdict([finding()], [], control=trained(1e6, 1e6), changed=trained(1.0, 1.0))

    assert found.attempt.reason == NOT_LOWER


def test_losses_of_other_targets_are_compared_in_their_own_units() -> None:
    scaled = [
        msgspec.structs.replace(each, train=Loss(100.0, 90.0, 100.0)) for each in trained(0, 0)
    ]

    found = verdict([finding()], [], control=scaled, changed=trained(0.5, 0.5))

    assert found.attempt.gain == pytest.approx(0.4)
    assert found.attempt.reason == ""


def test_loops_are_compared_after_equally_many_steps() -> None:
    falling = [1.0 - step / 40 for step in range(20)]
    control = [
        Training(seed, None, Loss(1.0, 0.5, 1.0), watched=True, series=falling, steps=20)
        for seed in (0, 1)
    ]
    shorter = [
        Training(seed, None, Loss(1.0, 0.8, 1.0), watched=True, series=falling[:8], steps=8)
        for seed in (0, 1)
    ]

    found = verdict([finding()], [], control=control, changed=shorter)

    assert (found.attempt.gain, found.attempt.steps) == (0.0, 8)


# ---------------------------------------------------------------------- places


def test_a_place_lies_where_its_text_lies_after_the_edits() -> None:
    generator = random.Random(0)
    for _ in range(300):
        letters = [chr(ord("a") + n % 26) for n in range(60)]
        mark = generator.randrange(60)
        letters[mark] = "#"
        for row_end in sorted(generator.sample(range(60), 5)):
            if letters[row_end] != "#":
                letters[row_end] = "\n"
        text = "".join(letters)
        cuts = sorted(generator.sample(range(61), 6))
        spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)
                 if not a <= mark < b]  # fmt: skip
        contents = [generator.choice(["", "XY", "X\nYY", "\n"]) for _ in spans]
        edits = [
            Edit("f", place(text, a), place(text, b), content)
            for (a, b), content in zip(spans, contents, strict=True)
        ]

        after = apply(text, edits)

        assert moved(place(text, mark), edits) == place(after, after.index("#"))


def place(text: str, offset: int) -> Location:
    before = text[:offset]
    return Location(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


# ---------------------------------------------------------------------- order


def proved(gain: float, *patches: Patch) -> Fix:
    return Fix(f"{gain}", verified=Attempt(gain=gain), patches=list(patches))


def test_of_fixes_that_gain_about_as_much_the_least_invasive_comes_first() -> None:
    norm = proved(0.50, Patch.norm("batch", ["fc"]))
    value = proved(0.45, Patch.training("learning-rate", factor=0.1))
    weak = proved(0.20, Patch.attribute(["drop"], p=0.1))
    untried = Fix("untried")
    stays = Fix("stays", attempt=Attempt(cleared=False, reason=STAYS))

    assert ranked([stays, untried, norm, weak, value]) == [value, norm, weak, untried, stays]


def test_the_first_choice_of_the_rule_wins_a_tie() -> None:
    first, second = proved(0.5), proved(0.5)

    assert ranked([first, second])[0] is first


def test_findings_are_ranked_by_severity_and_then_by_what_their_fixes_gain() -> None:
    patch = Patch.unfreeze(["fc.weight"])
    little = finding("AAA001", fixes=[Fix("a", patches=[patch])])
    much = finding("BBB001", fixes=[Fix("b", patches=[patch])])
    error = finding("CCC001", severity="error")
    listed = [error, little, much]

    found = candidates(listed)
    after = with_attempts(listed, [(found[0], Attempt(gain=0.2)), (found[1], Attempt(gain=0.6))])

    assert [each.code for each in after] == ["CCC001", "BBB001", "AAA001"]


def test_a_finding_without_a_fix_to_try_shows_those_of_its_symptoms() -> None:
    patch = Patch.unfreeze(["fc.weight"])
    symptom = finding("GRD001", fixes=[Fix("s", patches=[patch])])
    head = finding(fixes=[Fix("only words")], symptoms=[symptom])
    advice = finding("ADV001", severity="info", fixes=[Fix("c", patches=[patch])])
    known = finding("GEN001", fixes=[proved(0.3, patch)])

    [candidate] = candidates([head, advice, known])

    assert candidate.owner([head, advice, known]) is symptom


# ---------------------------------------------------------------------- together


class Workshop:
    """Makes trials whose outcomes are known, by the kinds of the patches that are applied."""

    def __init__(self, outcomes: dict[tuple[str, ...], Outcome]) -> None:
        self.outcomes = outcomes
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, trials: Sequence[Trial], *_: object) -> list[Outcome]:
        kinds = [tuple(patch.kind for patch in trial.version.patches) for trial in trials]
        self.asked += kinds
        return [self.outcomes[each] for each in kinds]


def patch_fix(kind: str, safety: Safety = Safety.UNSAFE) -> Fix:
    return Fix(kind, safety, patches=[Patch(kind)])


def together(listed: list[ReportedFinding], workshop: Workshop) -> CombinedFixes | None:
    budget = Budget(50, 1.0, time.monotonic() + 1000.0, 1, 1000.0)
    report = Report(listed, [RESULT])
    made = Verification(workshop, budget, lambda outcome, _: outcome.findings or (), live=True)
    return made.of(report, listed).report.targets[0].repair


def test_fixes_are_added_as_long_as_one_more_clears_a_finding() -> None:
    one = finding("AAA001", module="a", row=1, fixes=[patch_fix("a")])
    two = finding("BBB001", module="b", row=2, fixes=[patch_fix("b")])
    three = finding("CCC001", module="c", row=3, fixes=[patch_fix("c")])
    workshop = Workshop(
        {
            (): Outcome(trainings=trained(0.9, 0.9)),
            ("a",): Outcome([two, three], RESULT, trained(0.5, 0.5)),
            ("b",): Outcome([one, three], RESULT, trained(0.7, 0.7)),
            ("c",): Outcome([one, two, three], RESULT, trained(0.2, 0.2)),  # a loss alone
            ("a", "b"): Outcome([three], RESULT, trained(0.49, 0.49)),
        }
    )

    found = together([one, two, three], workshop)

    assert found is not None
    assert [fix.code for fix in found.fixes] == ["AAA001", "BBB001"]
    assert (found.before, found.after, found.gain) == (0.9, 0.49, 0.41)
    assert found.left == ["CCC001 ccc001"]
    assert ("a", "c") not in workshop.asked  # it did not clear its finding alone


def test_of_fixes_that_gain_about_as_much_that_of_the_cause_is_made() -> None:
    effect = finding("AAA001", module="a", row=1, fixes=[patch_fix("a")])
    cause = finding("BBB001", module="b", row=2, fixes=[patch_fix("b")])
    outcomes = {
        (): Outcome(trainings=trained(0.9, 0.9)),
        ("a",): Outcome([cause], RESULT, trained(0.10, 0.10)),
        ("b",): Outcome([], RESULT, trained(0.12, 0.12)),
        ("a", "b"): Outcome([], RESULT, trained(0.5, 0.5)),
    }

    near = together([effect, cause], Workshop(outcomes))
    outcomes["b",] = Outcome([], RESULT, trained(0.6, 0.6))
    far = together([effect, cause], Workshop(outcomes))

    assert near is not None
    assert far is not None
    assert [fix.code for fix in near.fixes] == ["BBB001"]
    assert [fix.code for fix in far.fixes] == ["AAA001"]


# ---------------------------------------------------------------------- a rate that is measured


def rates(content: str) -> list[Fix]:
    edit = Edit("/net.py", Location(10, 5), Location(10, 5), content)
    literal = Fix(
        "raise it",
        Safety.UNSAFE,
        edits=[edit] if content else [],
        patches=[Patch.training("learning-rate", factor=100.0)],
        obstacle="" if content else "two groups",
    )
    sought = Fix(
        "a range test",
        patches=[Patch.training("learning-rate", range_test=True)],
        obstacle="it is known once it was measured",
    )
    return [literal, sought]


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (", lr=0.002", ", lr=0.03"),
        ("2e-3", "0.03"),
        ("lr2=rate", None),
        ("1 / 500", None),
        ("", None),
    ],
)
def test_a_measured_rate_is_said_and_written_where_a_computed_one_is(
    content: str, written: str | None
) -> None:
    listed = [
        finding(fixes=rates(content)),
        finding("ADV001", severity="info", fixes=rates(content)),
    ]
    asked: list[Trial] = []

    def make(trials: Sequence[Trial], *_: object) -> list[Outcome]:
        asked.extend(trials)
        return [Outcome(trainings=[Training(0, rate=0.0312)]) for _ in trials]

    found, advice = with_rates(listed, Version(), make, Budget(50, 1.0, 0.0, 1, 1.0))

    [trial] = asked
    assert (trial.finds_rate, trial.check) == (True, False)
    assert advice == listed[1]
    literal, measured = found.fixes
    assert literal == listed[0].fixes[0]
    assert measured.title == "lr=0.03, from a range test"
    assert measured.patches == [Patch.training("learning-rate", value=0.03)]
    assert [edit.content for edit in measured.edits] == ([] if written is None else [written])
    assert bool(measured.obstacle) == (written is None)
    assert measured.safety == (Safety.DISPLAY_ONLY if written is None else Safety.UNSAFE)


def test_a_range_test_that_fails_says_why_and_is_not_tried_again() -> None:
    listed = [finding(fixes=rates("0.002"))]

    def make(trials: Sequence[Trial], *_: object) -> list[Outcome]:
        return [Outcome(trainings=[Training(0, "LBFGS searches its step itself")]) for _ in trials]

    [found] = with_rates(listed, Version(), make, Budget(50, 1.0, 0.0, 1, 1.0))

    attempt = found.fixes[1].attempt
    assert attempt is not None
    assert attempt.reason == "LBFGS searches its step itself"
    assert [each.fix for each in candidates([found])] == [0]


def test_a_further_fix_that_loses_gain_is_left_out() -> None:
    one = finding("AAA001", module="a", row=1, fixes=[patch_fix("a")])
    two = finding("BBB001", module="b", row=2, fixes=[patch_fix("b")])
    workshop = Workshop(
        {
            (): Outcome(trainings=trained(0.9, 0.9)),
            ("a",): Outcome([two], RESULT, trained(0.5, 0.5)),
            ("b",): Outcome([one], RESULT, trained(0.9, 0.9)),
            ("a", "b"): Outcome([], RESULT, trained(0.6, 0.6)),
        }
    )

    found = together([one, two], workshop)

    assert found is not None
    assert [fix.code for fix in found.fixes] == ["AAA001"]
    assert found.left == ["BBB001 bbb001"]


@pytest.mark.parametrize(
    ("safety", "end", "is_applied"),
    [
        (Safety.SAFE, 0.7, True),  # plainly meant, and the model learns
        (Safety.UNSAFE, 0.7, False),
        (Safety.SAFE, 1.2, False),  # it does not learn with it
    ],
)
def test_what_is_plainly_meant_may_cost_something_in_a_few_steps(
    safety: Safety, end: float, is_applied: bool
) -> None:
    one = finding("AAA001", module="a", row=1, fixes=[patch_fix("a", safety)])
    workshop = Workshop(
        {
            (): Outcome(trainings=trained(0.5, 0.5)),
            ("a",): Outcome([], RESULT, trained(end, end)),
        }
    )

    assert (together([one], workshop) is not None) == is_applied
