"""Settings: `[tool.trainlint]` of the nearest pyproject.toml, overridden by the command line."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trainlint.errors import ConfigError


class Config(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The keys of `[tool.trainlint]`, in kebab-case.

    `timeout` is in seconds a model, `memory_limit` in MiB (0: four fifths of the machine's memory),
    `jobs` the number of files checked, or folds trained, at once (0: one a core). `probe_steps` is how
    many optimizer steps a probe trains (0: none), `probe_seconds` for how long at most. `verify` tries the
    fixes of what is found, for `verify_seconds` at most. `fix` writes safe fixes to the files, with
    `unsafe_fixes` also those that change the model. `baseline` is a file of findings that are left out.
    `rules` holds the options of rules:
    `[tool.trainlint.rules.saturating-stack] least = 4`.
    """

    targets: list[str] = []
    select: tuple[str, ...] = ("ALL",)
    extend_select: list[str] = []
    ignore: list[str] = []
    fail_on: str = "error"
    inputs: str | None = None
    timeout: Annotated[float, msgspec.Meta(ge=1)] = 120.0
    memory_limit: Annotated[int, msgspec.Meta(ge=0)] = 0
    jobs: Annotated[int, msgspec.Meta(ge=0)] = 0
    probe_steps: Annotated[int, msgspec.Meta(ge=0)] = 50
    probe_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    verify: bool = False
    verify_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    baseline: str | None = None
    fix: bool = False
    unsafe_fixes: bool = False
    rules: dict[str, dict[str, Any]] = {}


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
        raise ConfigError(f"{path}: [tool.trainlint]: {error}") from None
    if config.fail_on not in FAIL_ON:
        raise ConfigError(f"{path}: fail-on must be one of {', '.join(FAIL_ON)}")
    baseline = config.baseline
    return msgspec.structs.replace(
        config,
        targets=_from_here(config.targets, path.parent),
        baseline=None if baseline is None else os.path.relpath(path.parent / baseline),
    )


def _from_here(targets: list[str], folder: Path) -> list[str]:
    """Targets in a configuration are relative to its file; name them as the user would here."""
    return [
        os.path.relpath(folder / target)
        if (folder / target.partition("::")[0]).exists()
        else target
        for target in targets
    ]


def _refuse_unknown(path: Path, section: dict[str, Any]) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(Config)]
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                f"{path}: [tool.trainlint] has no key {key!r}{hint}; valid: {', '.join(known)}"
            )
