"""`trainlint new-rule`: the skeleton of a rule file, with the next free code of its family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from trainlint import __version__
from trainlint.errors import UsageError
from trainlint.registry import all_rules

# The folders of rules/ and the letters of the codes in them.
FAMILY_CODES: Final = {
    "architecture": "ARC",
    "initialization": "INI",
    "normalization": "NRM",
    "activation": "ACT",
    "gradients": "GRD",
    "loss": "LOS",
    "optimization": "OPT",
    "regularization": "REG",
    "generalization": "GEN",
    "data": "DAT",
    "suppression": "SUP",
}

_SKELETON: Final = '''"""{code} {name}."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Finding, Fix, Graph, Severity, rule


@rule("{code}", severity=Severity.WARNING, since="{version}")
def {function}(graph: Graph) -> Iterator[Finding]:
    """One line: what is wrong, as a statement about the model.

    Why it hurts training, in three sentences, with the formula and its source.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x)
    ```

    ## When to ignore it
    Where the pattern is sound.

    ## Fix safety
    Safe, unsafe or display-only, and why.

    ## References
    The paper and section that the claim rests on.
    """
    for node in graph.calls("an operation"):
        yield Finding(
            f"{{graph.label(node)}} does what it should not",
            where=node,
            evidence={{}},
            fixes=[Fix("what to change")],
        )
'''


def write_rule(directory: Path, family: str, name: str, letters: str | None = None) -> Path:
    """Write `directory/family/name.py` and return its path.

    Its code is the next free one of the family's letters, or of a pack's own `letters`. Raises `UsageError`
    for an unknown family, letters that are no three to five capitals, a malformed or taken name, or an
    existing file.
    """
    family = family.replace("-", "_")
    if family not in FAMILY_CODES:
        raise UsageError(f"unknown family {family!r}; known: {', '.join(FAMILY_CODES)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is not a kebab-case name such as flat-loss")
    if any(rule.name == name for rule in all_rules()):
        raise UsageError(f"there is a rule {name} already")
    letters = letters or FAMILY_CODES[family]
    if not re.fullmatch(r"[A-Z]{3,5}", letters):
        raise UsageError(f"{letters!r} are no letters of a code: three to five capitals, as ACME")
    numbered = re.compile(rf"{letters}(\d+)")
    taken = [int(found[1]) for rule in all_rules() if (found := numbered.fullmatch(rule.code))]
    code = f"{letters}{max(taken, default=0) + 1:03d}"
    function = name.replace("-", "_")
    path = directory / family / f"{function}.py"
    if path.exists():
        raise UsageError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    package = path.parent / "__init__.py"
    if not package.exists():
        package.write_text(f'"""{letters}: {family} rules."""\n', encoding="utf-8")
    version = ".".join(__version__.split(".")[:2])
    text = _SKELETON.format(code=code, name=name, function=function, version=version)
    path.write_text(text, encoding="utf-8")
    return path
