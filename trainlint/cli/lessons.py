"""`trainlint explain`, `rules` and `new-rule`: what is said of the rules themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from trainlint.cli.completing import complete_rules
from trainlint.cli.terminal import console_on


@click.command()
@click.argument("rule", shell_complete=complete_rules)
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text",
    show_default=True, help="How to write it.",
)  # fmt: skip
@click.option(
    "--example", type=click.Choice(["bad", "good"]), help="Only this example, as a file that runs."
)
@click.option(
    "--full", is_flag=True, help="Also how it is judged, options, related rules and references."
)
def explain(rule: str, form: str, example: str | None, full: bool) -> None:
    """Explain a rule: what the fault does to training, the formula, examples, when to ignore it.

    RULE is a code or name (saturating-stack). A family or prefix (ARC), or a word that names have in
    common (dropout), lists its rules.
    """
    from trainlint.report import explanation

    found = explanation.rules_named(rule)
    if example is not None:
        click.echo(explanation.example(found, example), nl=False)
    elif form == "text":
        explanation.print_rules(found, console_on(sys.stdout), full=full)
    else:
        click.echo(explanation.as_json(found) if form == "json" else explanation.as_markdown(found))


@click.command()
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
def rules(form: str) -> None:
    """List the rules."""
    from trainlint.registry import all_rules

    if form == "json":
        rows = [
            {
                "code": rule.code, "name": rule.name, "family": rule.family,
                "severity": str(rule.severity), "stages": list(rule.stages),
                "summary": rule.summary, "since": rule.since,
                "options": dict(rule.options),
            }
            for rule in all_rules()
        ]  # fmt: skip
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    from trainlint.report.explanation import print_table

    print_table(all_rules(), console_on(sys.stdout))


@click.command("new-rule")
@click.argument("family")
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), default=Path("rules"),
    show_default=True, help="Root of the rule pack.",
)  # fmt: skip
@click.option("--letters", help="The pack's own letters, such as ACME, for the code.")
def new_rule(family: str, name: str, directory: Path, letters: str | None) -> None:
    """Write the skeleton of a rule: trainlint new-rule normalization batchnorm-on-output."""
    from trainlint.scaffold import write_rule

    click.echo(f"wrote {write_rule(directory, family, name, letters)}")
