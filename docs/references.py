"""The reference pages that the code itself writes: the command line, and the configuration.

`generate.py` puts what these functions return into `docs/reference/`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from trainlint.cli import main
from trainlint.config import Config, kind_of
from trainlint.report.schema import described
from trainlint.report.schema import schema as report_schema

NOTE = "<!-- written by docs/generate.py -->"

COMMAND_LINE = """\
What `trainlint --help` and `trainlint COMMAND --help` say. Lists of values are separated by commas, or the
option is given several times. Options come before the settings in [pyproject.toml](configuration.md); exit
statuses have [a page of their own](exit-status.md)."""
CONFIGURATION = """\
`[tool.trainlint]` of the nearest `pyproject.toml`, at or above the directory in which trainlint is run; a
`pyproject.toml` without it ends the search, too. `--config FILE` reads another file. Options of the
[command line](cli.md) come first. An unknown key, or a value of the wrong type, is an error ([exit status
2](exit-status.md)). Files are relative to the `pyproject.toml`."""

PATTERNS = """\
`exclude` and `per-file-ignores` name files by patterns, as ruff has them:

```toml
[tool.trainlint]
exclude = ["legacy", "src/vendor/*"]

[tool.trainlint.per-file-ignores]
"src/zoo/*.py" = ["NRM005", "initialization"]
"{demo,sketch}.py" = ["ALL"]
"!src/**.py" = ["DAT"]
```

A pattern without `/` is for that name at any depth, one with `/` begins where the `pyproject.toml` lies.
`*` and `**` match any signs, `/` as well; `**/` any number of folders; `?` one sign, `[ab]` one of these,
`{a,b}` either; a `!` in front of a pattern of `per-file-ignores` makes it one for all other files.
`exclude` also holds for what lies in a folder that it matches. A file that is named on the command line is
checked all the same, unless `--scan` is given, as commit hooks do. A finding is ignored by the file that it
lies in."""

# The options of `check`, by what they are about; one that is not named here comes last.
GROUPS = {
    "What is checked": (
        "exclude", "inputs", "static", "scan", "importers", "probe_steps", "probe_seconds", "kfold",
        "epochs", "watch",
    ),
    "Which rules": ("select", "extend_select", "ignore", "baseline", "write_baseline"),
    "Fixes": (
        "fix", "unsafe_fixes", "diff", "fix_only", "interactive", "verify", "verify_seconds",
    ),
    "The report": ("form", "output", "statistics", "show_info", "plots"),
    "Exit status": ("fail_on", "fail_on_skipped", "exit_zero"),
    "Limits and settings": ("timeout", "memory_limit", "jobs", "config_path", "debug"),
}  # fmt: skip


def command_line() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    context = click.Context(main, info_name="trainlint")
    lines = [
        "# Command line", "", NOTE, "",
        COMMAND_LINE,
        "",
    ]  # fmt: skip
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if not command.hidden:
            lines += [*_command(command, click.Context(command, context, info_name=name)), ""]
    lines += ["## trainlint", "", *_options(main.params), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    name = f"trainlint {command.name}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (
        f"## {name}",
        "",
        f"`{name} {usage}`",
        "",
        _marked(inspect.cleandoc(command.help or "")),
        "",
    )
    options = [each for each in command.params if isinstance(each, click.Option)]
    named = {each.name: each for each in options}
    groups = {
        title: [named[name] for name in names if name in named] for title, names in GROUPS.items()
    }
    if sum(bool(group) for group in groups.values()) < len(GROUPS):
        yield from _options(options)
        return
    grouped = {each.name for group in groups.values() for each in group}
    groups["Other"] = [each for each in options if each.name not in grouped]
    for title, group in groups.items():
        if group:
            yield from (f"### {title}", "", *_options(group), "")


def _options(options: Sequence[click.Parameter]) -> Iterator[str]:
    shown = [each for each in options if isinstance(each, click.Option) and not each.hidden]
    if shown:
        yield from ("| option | |", "|---|---|")
    for option in shown:
        spelling = ", ".join([*option.opts, *option.secondary_opts])
        if not option.is_flag and not option.secondary_opts:
            spelling += f" {_metavar(option)}"
        said = [_cell(option.help or ""), _choices(option), _default(option)]
        yield f"| `{spelling}` | {' '.join(part for part in said if part)} |"


def _metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "NAME"
    return (
        option.type.name.upper()
        .removesuffix(" RANGE")
        .replace("INTEGER", "N")
        .replace("FLOAT", "X")
    )


def _choices(option: click.Option) -> str:
    if not isinstance(option.type, click.Choice):
        return ""
    return f"One of {', '.join(f'`{choice}`' for choice in option.type.choices)}."


def _default(option: click.Option) -> str:
    is_shown = option.show_default and option.default is not None
    return f"Default: `{option.default}`." if is_shown else ""


def _cell(text: str) -> str:
    return _marked(" ".join(text.split()).replace("|", "\\|"))


def _marked(text: str) -> str:
    """Options that are named in a help text, as code."""
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*", r"`\g<0>`", text)


def configuration() -> str:
    """Every key of `[tool.trainlint]`."""
    options = {each.name: each.opts[0] for each in main.commands["check"].params}
    lines = [
        "# Configuration", "", NOTE, "",
        CONFIGURATION,
        "", "| key | type | default | |", "|---|---|---|---|",
    ]  # fmt: skip
    for field in msgspec.structs.fields(Config):
        kind, meaning = kind_of(field), _meaning(field.type)
        option = options.get(field.name)
        also = f" On the command line: `{option}`." if option and option.startswith("-") else ""
        default = _toml(Config(), field.name)
        lines.append(f"| `{field.encode_name}` | {kind} | {default} | {_cell(meaning)}{also} |")
    lines += ["", "## Files", "", *PATTERNS.splitlines()]
    lines += [
        "", "## Options of rules", "",
        "A rule's page lists its options. They stand in a table of its name:", "",
        "```toml", "[tool.trainlint.rules.saturating-stack]", "least = 4", "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _meaning(annotation: Any) -> str:
    """A field's description."""
    info = msgspec.inspect.type_info(annotation)
    is_described = isinstance(info, msgspec.inspect.Metadata)
    return str((info.extra_json_schema or {}).get("description", "")) if is_described else ""


def _toml(config: Config, name: str) -> str:
    value = getattr(config, name)
    if value is None:
        return "none"
    return f"`{msgspec.json.encode(value).decode()}`" if value != {} else "none"


# ---------------------------------------------------------------------- JSON


def schema() -> str:
    """The JSON Schema of reports."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


def fields() -> str:
    """The fields of each object in a report, as tables."""
    definitions = report_schema()["$defs"]
    lines: list[str] = []
    for name in described():
        definition = definitions[name]
        lines += [
            f"### {name}",
            "",
            definition["description"],
            "",
            "| field | type | |",
            "|---|---|---|",
        ]
        for field, value in definition["properties"].items():
            lines.append(f"| `{field}` | {_json_type(value)} | {_cell(value['description'])} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _json_type(value: dict[str, Any]) -> str:
    """`text or null`, `list of Finding`, `0.5 or "nan"`."""
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f'`"{each}"`' for each in value["enum"])
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name in described() else "text"
    if "anyOf" in value:
        return " or ".join(_json_type(each) for each in value["anyOf"])
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return "[" + ", ".join(_json_type(each) for each in value["prefixItems"]) + "]"
        return f"list of {_json_type(value['items'])}"
    return {"string": "text", "object": "object", None: "any"}.get(kind, str(kind))
