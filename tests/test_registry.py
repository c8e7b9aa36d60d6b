"""Which rules there are and which are asked for; packs of third parties; a rule that fails itself."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlint
from trainlint import registry
from trainlint.engine import Facts, Outcome, run_rules, unmeasured_as_text
from trainlint.errors import ConfigError, UsageError
from trainlint.observe.trace import Trace
from trainlint.registry import all_rules, check_options, find_rule, select_rules
from trainlint.rule import Finding, NotMeasurable, Severity, rule


def codes(*select: str, ignore: tuple[str, ...] = (), extend: tuple[str, ...] = ()) -> set[str]:
    return {chosen.code for chosen in select_rules(select, ignore, extend)}


EVERY = {known.code for known in all_rules()}

# ---------------------------------------------------------------------- selectors


def test_all_selects_every_rule() -> None:
    assert codes("ALL") == EVERY
    assert codes("ALL", ignore=("ALL",)) == set()
    assert codes() == set()


@pytest.mark.parametrize("known", all_rules(), ids=lambda known: known.code)
def test_a_rule_is_found_by_code_name_prefix_and_family(known: Any) -> None:
    assert codes(known.code) == {known.code} == codes(known.name)
    assert find_rule(known.code) is find_rule(known.name) is find_rule(known.code.lower()) is known
    for length in range(1, 6):
        prefix = known.code[:length]
        assert codes(prefix) == {code for code in EVERY if code.startswith(prefix)}
    assert codes(known.family) == {
        other.code for other in all_rules() if other.family == known.family
    }


@pytest.mark.parametrize(
    ("select", "ignore", "wanted"),
    [
        (("ALL",), ("ARC",), {code for code in EVERY if not code.startswith("ARC")}),
        (("ARC002",), ("ARC",), {"ARC002"}),  # the more specific wins
        (("ARC",), ("ARC002",), {c for c in EVERY if c.startswith("ARC")} - {"ARC002"}),
        (("ARC002",), ("ARC002",), set()),  # a tie ignores
        (("ARC",), ("ARC",), set()),
        (("ARC", "ARC002"), ("ARC",), {"ARC002"}),
        (("ARC0",), ("ARC",), {c for c in EVERY if c.startswith("ARC")}),
        (("architecture",), ("ARC002",), {c for c in EVERY if c.startswith("ARC")} - {"ARC002"}),
        (("architecture",), ("ARC",), set()),
        (("layer-input-mismatch",), ("ALL", "ARC", "architecture"), {"ARC002"}),
        (("layer-input-mismatch",), ("ARC002",), set()),
    ],
)
def test_the_more_specific_selector_wins_and_a_tie_ignores(
    select: tuple[str, ...], ignore: tuple[str, ...], wanted: set[str]
) -> None:
    assert codes(*select, ignore=ignore) == wanted


def test_extend_select_adds() -> None:
    assert codes("NRM", extend=("INI001",)) == codes("NRM", "INI001")
    assert codes("NRM", extend=("INI001",), ignore=("INI",)) == codes("NRM", "INI001")


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("ARC099", "did you mean ARC0"),
        ("layer-input-mismatsh", "did you mean layer-input-mismatch?"),
        ("normalisation", "did you mean normalization?"),
        ("qqqqqqq", "`trainlint rules` lists them"),
        ("", "`trainlint rules` lists them"),
        ("NRM*", "did you mean NRM"),
    ],
)
def test_an_unknown_selector_is_an_error_with_a_hint(selector: str, hint: str) -> None:
    for function in (
        lambda: select_rules([selector]),
        lambda: select_rules(["ALL"], [selector]),
        lambda: find_rule(selector),
    ):
        with pytest.raises(UsageError) as caught:
            function()
        assert repr(selector) in str(caught.value)
        assert hint in str(caught.value)


# ---------------------------------------------------------------------- options


def test_options_are_checked() -> None:
    with_options = [known for known in all_rules() if known.options]
    assert with_options
    chosen = with_options[0]
    option, default = next(iter(chosen.options.items()))
    spelt = option.replace("_", "-")
    for name in (chosen.name, chosen.code):
        check_options({name: {spelt: default}})
        check_options({name: {option: default}})
    with pytest.raises(ConfigError, match=f"unknown option 'no-such'; it has: .*{spelt}"):
        check_options({chosen.name: {"no-such": 1}})
    with pytest.raises(ConfigError, match="must be a number"):
        check_options({chosen.name: {spelt: "many"}})
    with pytest.raises(ConfigError, match="unknown rule 'no-such-rule'"):
        check_options({"no-such-rule": {}})
    bare = next(known for known in all_rules() if not known.options)
    with pytest.raises(ConfigError, match="it has: none"):
        check_options({bare.name: {spelt: 1}})


def test_options_reach_the_rule_by_name_and_by_code() -> None:
    seen: list[tuple[int, str]] = []

    @rule("ZZZ001", severity=Severity.INFO, since="0.1")
    def asks(graph: Graph, *, largest_step: int = 3, word: str = "a") -> Iterator[Finding]:  # type: ignore[name-defined]  # noqa: F821
        """Asks."""
        seen.append((largest_step, word))
        yield from ()

    asks_rule = asks.trainlint_rule
    facts = Facts({"Graph": object()})
    run_rules([asks_rule], facts, target="")
    run_rules([asks_rule], facts, target="", options={"asks": {"largest-step": 5}})
    run_rules([asks_rule], facts, target="", options={"ZZZ001": {"word": "b"}})
    assert seen == [(3, "a"), (5, "a"), (3, "b")]


# ---------------------------------------------------------------------- the decorator


def test_a_rule_declares_its_facts_and_stages_by_its_signature() -> None:
    @rule("ZZZ002", severity=Severity.ERROR, since="0.1", explains=["other"])
    def my_own_rule(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:  # type: ignore[name-defined]  # noqa: F821
        """First line.

        Second.
        """
        yield from ()

    declared = my_own_rule.trainlint_rule
    assert declared.name == "my-own-rule"
    assert dict(declared.facts) == {"graph": "Graph", "edits": "SourceEdits"}
    assert declared.stages == ("static",)
    assert declared.summary == "First line."
    assert declared.documentation.endswith("\n\nSecond.")
    assert declared.explains == ("other",)


def test_a_rule_judges_of_a_training_only_what_is_the_users() -> None:
    def on_data(trace: Trace) -> Iterator[Finding | NotMeasurable]:
        yield NotMeasurable("1 of 50 steps was seen")

    declared = rule("XXX001", severity=Severity.INFO, since="0", own=["data"])(on_data)
    chosen = [declared.trainlint_rule]  # type: ignore[attr-defined]
    trace = Trace(1, [0], [], [], [])
    outcome = run_rules(chosen, Facts({"Trace": trace}), target="t")
    assert list(unmeasured_as_text(outcome.unmeasured)) == [
        "XXX001 on-data: 1 of 50 steps was seen"
    ]
    made_up = replace(trace, own=frozenset({"loss", "optimizer"}))
    assert run_rules(chosen, Facts({"Trace": made_up}), target="t") == Outcome()


def test_an_unknown_fact_is_refused_when_the_rule_is_declared() -> None:
    def asks(weather: Weather) -> Iterator[Finding]:  # type: ignore[name-defined]  # noqa: F821
        yield from ()

    with pytest.raises(TypeError, match="ZZZ003: parameter 'weather' is annotated 'Weather'"):
        rule("ZZZ003", severity=Severity.ERROR, since="0.1")(asks)


def test_a_rule_without_its_facts_does_not_run() -> None:
    known = find_rule("ARC002")
    outcome = run_rules([known], Facts(), target="")
    assert (outcome.findings, outcome.failures) == ([], [])


# ---------------------------------------------------------------------- packs of third parties

PACK = """
from collections.abc import Iterator
from trainlint.rule import Finding, Graph, Severity, rule

@rule("{code}", severity=Severity.{severity}, since="0.1")
def {name}(graph: Graph) -> Iterator[Finding]:
    '''Finds things.'''
    {body}
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make a package of rule files, named by an entry point beside the installed ones."""
    original = importlib.metadata.entry_points
    packs: list[importlib.metadata.EntryPoint] = []

    def entry_points(**selection: Any) -> Any:
        found = list(original(**selection))
        return [*found, *packs] if selection.get("group") == registry.ENTRY_POINT_GROUP else found

    def make(package: str, **files: str) -> None:
        folder = tmp_path / package / "habits"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("")
        (folder / "__init__.py").write_text("")
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        packs.append(importlib.metadata.EntryPoint(package, package, registry.ENTRY_POINT_GROUP))
        all_rules.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield make
    all_rules.cache_clear()
    for name in [name for name in sys.modules if name.startswith("pack_of_")]:
        del sys.modules[name]


def a_rule(code: str, name: str, body: str, severity: str = "WARNING") -> str:
    return PACK.format(code=code, name=name, body=body, severity=severity)


FINDS = 'yield Finding("one of these", where=next(graph.calls("linear")), evidence={"n": 1})'


def test_a_pack_of_a_third_party_is_found_selected_and_run(install: Install) -> None:
    install("pack_of_ours", house_style=a_rule("HSE001", "house_style", FINDS))
    assert {known.code for known in all_rules()} == EVERY | {"HSE001"}
    assert find_rule("house-style").family == "habits"
    assert codes("habits") == codes("HSE") == {"HSE001"}
    report = trainlint.check(nn.Linear(3, 2), torch.randn(2, 3))
    assert [(found.code, found.severity) for found in report.findings] == [("HSE001", "warning")]
    assert report.findings[0].evidence == {"n": 1}
    assert report.exit_status() == 0
    assert report.exit_status("warning") == 1
    assert trainlint.check(nn.Linear(3, 2), ignore=["habits"]).findings == []


@pytest.mark.parametrize(
    "body",
    ['raise KeyError("a hole")', f'{FINDS}\n    raise KeyError("a hole")'],
    ids=["at once", "after a finding"],
)
def test_a_rule_that_raises_is_an_error_of_the_target_and_the_others_still_run(
    install: Install, body: str
) -> None:
    install(
        "pack_of_two",
        breaks=a_rule("AAA001", "breaks", body),
        works=a_rule("ZZZ001", "works", FINDS),
    )
    report = trainlint.check(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), torch.randn(2, 3))
    found = {finding.code for finding in report.findings}
    assert {"ZZZ001", "ARC002"} <= found
    (target,) = report.targets
    assert target.status == "error"
    assert "AAA001" in (target.reason or "")
    assert "KeyError: 'a hole'" in (target.reason or "")
    assert report.exit_status() == 2


def test_two_rules_of_one_code_or_one_name_are_refused(install: Install) -> None:
    install("pack_of_doubles", other=a_rule("ARC002", "other", "yield from ()"))
    with pytest.raises(ConfigError, match="ARC002 is defined by both"):
        all_rules()


def test_two_rules_of_one_name_are_refused(install: Install) -> None:
    install("pack_of_names", mine=a_rule("HSE002", "layer_input_mismatch", "yield from ()"))
    with pytest.raises(ConfigError, match="two rules are named layer-input-mismatch"):
        all_rules()


def test_a_pack_that_cannot_be_imported_is_named(install: Install) -> None:
    install("pack_of_nothing", broken="import no_such_module_at_all")
    with pytest.raises(ConfigError, match=r"pack_of_nothing.* cannot be imported"):
        all_rules()
