"""A rule pack's examples are tested as ours are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from trainlint import testing
from trainlint.errors import UsageError
from trainlint.examples import examples_of, failures
from trainlint.registry import find_rule
from trainlint.rule import Finding, Rule

MODEL = "model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d({}))"
SCRIPT = """
torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(6):
    {}
    F.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
    optimizer.step()
"""


def with_examples(rule: Rule, **blocks: str) -> Rule:
    headings = "".join(
        f"\n## {kind.title()}\n```python\n{text}\n```\n" for kind, text in blocks.items()
    )

    def documented() -> Iterator[Finding]:
        yield from ()

    documented.__doc__ = f"One line.\n{headings}"
    return replace(rule, function=documented)


@pytest.fixture
def norm() -> Rule:
    return find_rule("NRM001")


@pytest.fixture
def stale() -> Rule:
    return find_rule("GRD007")


def test_examples_that_hold_are_no_failures(norm: Rule, stale: Rule) -> None:
    layers = with_examples(norm, bad=MODEL.format(16), good=MODEL.format(8))
    script = with_examples(
        stale, bad=SCRIPT.format("pass"), good=SCRIPT.format("optimizer.zero_grad()")
    )
    assert list(failures([layers, script])) == []


def test_a_bad_example_that_is_silent_and_a_good_one_that_fires_are_named(
    norm: Rule, stale: Rule
) -> None:
    layers = with_examples(norm, bad=MODEL.format(8), good=MODEL.format(16))
    script = with_examples(stale, bad=MODEL.format(4), good=SCRIPT.format("pass"))
    silent, fires, other, watched = failures([layers, script])
    assert silent == "NRM001 norm-features-mismatch, example 1 below ## Bad: the rule is silent"
    assert fires.startswith("NRM001 norm-features-mismatch, example 1 below ## Good: NRM001")
    assert "BatchNorm2d(16) receives 8 channels" in fires
    assert other.endswith("the rule is silent, and NRM001 fires")
    assert watched.startswith("GRD007 stale-gradient, example 1 below ## Good: GRD007")


def test_no_block_is_passed_over_where_a_heading_comes_twice(norm: Rule) -> None:
    twice = with_examples(norm, bad=MODEL.format(16), good=MODEL.format(8), Good=MODEL.format(4))
    assert [example.kind for example in examples_of([twice])] == ["bad", "good", "good"]


def test_missing_blocks_models_that_fail_and_files_without_one_are_named(norm: Rule) -> None:
    assert list(failures([with_examples(norm, bad=MODEL.format(16))])) == [
        "NRM001 norm-features-mismatch has no example below ## Good"
    ]
    unfit = with_examples(norm, bad="x = torch.ones(2)", good="raise KeyError('weights')")
    empty, broken = failures([unfit])
    assert "no model" in empty
    assert "KeyError" in broken


def test_each_block_is_an_example_with_the_imports_that_it_needs(norm: Rule) -> None:
    bad, *_, good = examples_of([norm])
    assert (bad.kind, good.kind) == ("bad", "good")
    assert bad.text.startswith("import torch\nfrom torch import nn\n")
    assert not bad.is_script


def test_the_assertion_takes_selectors(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def note(rules: tuple[Rule, ...]) -> Iterator[str]:
        chosen.extend(rule.code for rule in rules)
        yield from ["one", "two"] if len(rules) > 1 else []

    monkeypatch.setattr("trainlint.examples.failures", note)
    testing.assert_examples("bias-before-batchnorm")
    assert chosen == ["NRM005"]
    with pytest.raises(AssertionError, match="one\ntwo"):
        testing.assert_examples("NRM00")
    with pytest.raises(UsageError):
        testing.assert_examples("NOSUCH")
