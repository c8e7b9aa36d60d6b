"""Settings: `[tool.trainlint]` of the nearest pyproject.toml, overridden by the command line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from trainlint.errors import ConfigError
from trainlint.patterns import rooted


class Config(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The keys of `[tool.trainlint]`, in kebab-case; `docs/reference/configuration.md` is made of this."""

    targets: Annotated[
        list[str],
        msgspec.Meta(description="What `trainlint check` checks when it is given nothing."),
    ] = []
    select: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="The rules that are used: codes, prefixes, names, families or `ALL`."
        ),
    ] = ("ALL",)
    extend_select: Annotated[
        list[str], msgspec.Meta(description="Rules that are used besides those of `select`.")
    ] = []
    ignore: Annotated[
        list[str],
        msgspec.Meta(
            description="Rules that are not used; of this and `select` the more specific one wins."
        ),
    ] = []
    per_file_ignores: Annotated[
        dict[str, list[str]],
        msgspec.Meta(
            description="Rules that are not used in some files: a table of patterns, see below, and rules."
        ),
    ] = {}
    exclude: Annotated[
        list[str],
        msgspec.Meta(
            description="Files and folders that are passed over, by patterns, see below: where a directory "
            "is searched, and of what a commit hook hands over."
        ),
    ] = []
    fail_on: Annotated[
        str,
        msgspec.Meta(
            description="The least severity for exit status 1: `error`, `warning`, `info` or `never`."
        ),
    ] = "error"
    fail_on_skipped: Annotated[
        bool,
        msgspec.Meta(
            description="A model that cannot be constructed is an error, exit status 2, and not skipped, "
            "unless another one that was checked has it as a part."
        ),
    ] = False
    inputs: Annotated[
        str | None,
        msgspec.Meta(
            description="Inputs of the models: `2x3x32x32`, `2x16:long`; else they are found."
        ),
    ] = None
    timeout: Annotated[float, msgspec.Meta(description="Seconds for each model.", ge=1)] = 120.0
    memory_limit: Annotated[
        int,
        msgspec.Meta(
            description="MiB for each child process; 0 is four fifths of the machine's memory.",
            ge=0,
        ),
    ] = 0
    jobs: Annotated[
        int,
        msgspec.Meta(
            description="Files checked, or folds trained, at once; 0 is one a core.", ge=0
        ),
    ] = 0
    probe_steps: Annotated[
        int, msgspec.Meta(description="Optimizer steps that a probe trains; 0 for none.", ge=0)
    ] = 50
    probe_seconds: Annotated[
        float, msgspec.Meta(description="Seconds of a probe at most.", gt=0)
    ] = 30.0
    verify: Annotated[
        bool,
        msgspec.Meta(
            description="Try the fixes of errors and warnings on copies, and say which are proved to help."
        ),
    ] = False
    verify_seconds: Annotated[
        float, msgspec.Meta(description="Seconds of `verify` at most.", gt=0)
    ] = 120.0
    baseline: Annotated[
        str | None,
        msgspec.Meta(
            description="A file of findings that are left out, as `--write-baseline` writes it."
        ),
    ] = None
    fix: Annotated[bool, msgspec.Meta(description="Write safe fixes to the files.")] = False
    unsafe_fixes: Annotated[
        bool, msgspec.Meta(description="With `fix`, also fixes that change the model.")
    ] = False
    rules: Annotated[
        dict[str, dict[str, Any]], msgspec.Meta(description="Options of rules, see below.")
    ] = {}


FAIL_ON = ("error", "warning", "info", "never")


def load_config(path: Path | None = None, start: Path | None = None) -> Config:
    """Read the configuration from `path`, else from the nearest pyproject.toml at or above `start`.

    A pyproject.toml without `[tool.trainlint]` ends the search too: it marks the project's root.
    Raises `ConfigError` for a file that does not parse, an unknown key or a value of the wrong type.
    """
    if path is None:
        folder = (start or Path.cwd()).resolve()
        candidates = [parent / "pyproject.toml" for parent in (folder, *folder.parents)]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            return Config()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    tools = data.get("tool", {})
    section = tools.get("trainlint", {}) if isinstance(tools, dict) else {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: [tool.trainlint] must be a table")
    _refuse_unknown(path, section)
    try:
        config = msgspec.convert(section, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: [tool.trainlint]: {_in_words(error, section)}") from None
    if config.fail_on not in FAIL_ON:
        near = difflib.get_close_matches(config.fail_on, FAIL_ON, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{path}: [tool.trainlint]: fail-on must be one of {', '.join(FAIL_ON)}, "
            f"not {config.fail_on!r}{hint}"
        )
    baseline = config.baseline
    return msgspec.structs.replace(
        config,
        exclude=[_rooted(path, "exclude", pattern) for pattern in config.exclude],
        per_file_ignores={
            _rooted(path, "per-file-ignores", pattern): rules
            for pattern, rules in config.per_file_ignores.items()
        },
        targets=_from_here(config.targets, path.parent),
        baseline=None if baseline is None else os.path.relpath(path.parent / baseline),
    )


def _rooted(path: Path, key: str, pattern: str) -> str:
    """A pattern for files in a configuration is relative to its file."""
    if key == "exclude" and pattern.startswith("!"):
        raise ConfigError(f"{path}: [tool.trainlint]: exclude knows no !, of {pattern!r}")
    try:
        return rooted(pattern, path.parent.resolve())
    except ConfigError as error:
        raise ConfigError(f"{path}: [tool.trainlint]: {key}: {error}") from None


def _from_here(targets: list[str], folder: Path) -> list[str]:
    """Targets in a configuration are relative to its file; name them as the user would here."""
    return [
        os.path.relpath(folder / target)
        if (folder / target.partition("::")[0]).exists()
        else target
        for target in targets
    ]


def kind_of(field: msgspec.structs.FieldInfo) -> str:
    """What a key's value has to be, in words: `list of texts`, `number ≥ 1`."""
    info = msgspec.inspect.type_info(field.type)
    if isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(each for each in info.types if not isinstance(each, msgspec.inspect.NoneType))
    kind = "list of texts"
    if isinstance(info, msgspec.inspect.DictType):
        lists = isinstance(info.value_type, msgspec.inspect.ListType)
        kind = "table of lists of texts" if lists else "table of tables"
    kind = _KINDS.get(type(info), kind)
    for name, sign in (("ge", "≥"), ("gt", ">")):
        bound = getattr(info, name, None)
        if bound is not None:
            kind += f" {sign} {bound:g}"
    return kind


_KINDS: Final = {
    msgspec.inspect.BoolType: "true or false", msgspec.inspect.StrType: "text",
    msgspec.inspect.IntType: "integer", msgspec.inspect.FloatType: "number",
}  # fmt: skip


def _in_words(error: msgspec.ValidationError, section: Mapping[str, Any]) -> str:
    """`ignore must be a list of texts, not 'NRM'`."""
    for field in msgspec.structs.fields(Config):
        key = field.encode_name
        if key in section and re.search(rf"`\$\.{key}(?![\w-])", str(error)):
            return f"{key} must be {_with_article(kind_of(field))}, not {section[key]!r}"
    return str(error)


def _with_article(kind: str) -> str:
    if kind.startswith("true"):
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _refuse_unknown(path: Path, section: dict[str, Any]) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(Config)]
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                f"{path}: [tool.trainlint] has no key {key!r}{hint}; valid: {', '.join(known)}"
            )
