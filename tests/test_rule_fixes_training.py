# ruff: noqa: E501
"""What rules on training advise: each fix says why, and its edits do away with the finding or are not made.

Rules of losses, gradients, optimisation, data, regularisation and generalisation, on their own examples and
on the broken fixtures; then the same faults in many spellings, each of them run before and after the edit.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import trainlint
from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceText, apply
from trainlint.overlay import overlaid
from trainlint.records import ReportedFinding
from trainlint.registry import all_rules
from trainlint.sites import recording

ROOT = Path(__file__).parent.parent
FAMILIES = ("LOS", "GRD", "OPT", "DAT", "REG", "GEN")
PRELUDE = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
UNTRAINED = ("static", "data", "signal")
RAW = "wine_as_it_is"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Nothing in a run or a graph shows the place, or what is meant there: these are shown, with what stands in
# the way. Everything else is edited in at least one of the examples and fixtures.
SHOWN_ONLY = {
    "DAT002": "what a missing value stands for",
    "DAT004": "where inputs and labels were put apart",
    "DAT006": "what the data set does with its index",
    "DAT009": "where the images are read",
    "GEN001": "what helps is measured, and where it stands is chosen",
    "GEN002": "which layer is too narrow",
    "GEN003": "the loop is to keep and restore a state",
    "GEN005": "which of the sets is to lose the samples",
    "GEN007": "what belongs together in a split",
    "GEN009": "what is computed in eval mode instead of the draw",
    "GRD004": "where the graph is cut, which a run does not show",
    "LOS008": "a symptom, of which the rate is next to be tried",
    "OPT007": "which line froze the parameters",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def watched(text: str, path: Path, *, every: int = 1) -> list[ReportedFinding]:
    """What is said of a script with this text, symptoms included."""
    torch.manual_seed(0)
    watch = trainlint.watch(every=every)
    program = compile(text, str(path), "exec", dont_inherit=True)
    with overlaid({str(path): text}), redirect_stdout(io.StringIO()):
        with suppress(Exception), watch, recording():
            exec(program, {"__name__": "__main__"})
        return flat(watch.report())


def flat(report: trainlint.Report) -> list[ReportedFinding]:
    return [found for each in report.findings for found in (each, *each.symptoms)]


def edited(text: str, fix: Fix, path: Path) -> str:
    """The text with the edits made, all of which must be of this file."""
    assert {Path(edit.filename).name for edit in fix.edits} == {path.name}
    new = apply(text, fix.edits)
    ast.parse(new)
    assert new != text
    return new


def loud(findings: list[ReportedFinding]) -> list[ReportedFinding]:
    """Warnings and errors of these families."""
    return [f for f in findings if f.code[:3] in FAMILIES and f.severity != "info"]


def texts_of(path: Path) -> str:
    text = SourceText.read(str(path))
    assert text is not None
    return text.text


# ---------------------------------------------------------------------- examples and fixtures


def trains_itself(text: str) -> bool:
    return any(
        ".backward()" in ast.unparse(node)
        for node in ast.parse(text).body
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    )


@lru_cache(maxsize=1)
def cases(folder: Path) -> tuple[list[Path], list[Path]]:
    """(scripts to watch, files to check)."""
    scripts, files = [], []
    for rule in all_rules():
        if rule.code[:3] not in FAMILIES or "sweep" in rule.stages:
            continue
        section = rule.documentation.partition("## Bad")[2].partition("## Good")[0]
        for number, block in enumerate(EXAMPLE.findall(section)):
            path = folder / f"{rule.code}_{number}.py".lower()
            path.write_text(PRELUDE + block, encoding="utf-8")
            (scripts if trains_itself(block) else files).append(path)
    expects = re.compile(rf"# expect: .*({'|'.join(FAMILIES)})")
    fixtures = ROOT / "fixtures"
    scripts += sorted((fixtures / "loops" / "broken").glob("*.py"))
    files += sorted((fixtures / "broken").glob("*.py"))
    chosen = [path for path in scripts if path.parent == folder or expects.search(texts_of(path))]
    return chosen, [p for p in files if p.parent == folder or expects.search(texts_of(p))]


@lru_cache(maxsize=1)
def all_found(folder: Path) -> dict[Path, list[ReportedFinding]]:
    """The findings by file."""
    scripts, files = cases(folder)
    every = 3
    found = {
        path: watched(texts_of(path), path, every=1 if path.parent == folder else every)
        for path in scripts
    }
    by_name = {path.name: path for path in files}
    assert len(by_name) == len(files)
    examples = [path for path in files if path.parent == folder]
    others = [path for path in files if path.parent != folder]
    # Of the fixtures what needs no training, and a raw table: the examples have the probe's.
    examples += [path for path in others if path.stem == RAW]
    others = [path for path in others if path.stem != RAW]
    reports = trainlint.check(examples), trainlint.check(others, stages=UNTRAINED)
    for finding in [each for report in reports for each in flat(report)]:
        name = Path(finding.filename or finding.target.partition("::")[0]).name
        found.setdefault(by_name[name], []).append(finding)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[ReportedFinding]]:
    return all_found(tmp_path_factory.mktemp("examples"))


def test_every_warning_has_a_fix_that_says_why(found: dict[Path, list[ReportedFinding]]) -> None:
    wanting = []
    for path, findings in found.items():
        for finding in loud(findings):
            if not finding.fixes:
                wanting.append((path.name, finding.code, "no fix"))
            for fix in finding.fixes:
                if not fix.title or not fix.reason or "\n" in fix.reason:
                    wanting.append((path.name, finding.code, fix.title))
                if not fix.edits and not fix.obstacle:
                    wanting.append(
                        (path.name, finding.code, f"neither edit nor obstacle: {fix.title}")
                    )
    assert wanting == []


def test_what_is_never_edited_is_what_cannot_be(found: dict[Path, list[ReportedFinding]]) -> None:
    codes = {f.code for findings in found.values() for f in loud(findings)}
    with_edits = {
        finding.code
        for findings in found.values()
        for finding in loud(findings)
        if any(fix.edits for fix in finding.fixes)
    }
    assert codes - with_edits == set(SHOWN_ONLY)


def test_an_edit_of_a_script_does_away_with_its_finding(
    found: dict[Path, list[ReportedFinding]],
) -> None:
    left, tried = [], set()
    for path, findings in found.items():
        text = texts_of(path)
        if not trains_itself(text) and "loops" not in path.parts:
            continue
        for finding in loud(findings):
            if not finding.fixes[0].edits:
                continue
            new = edited(text, finding.fixes[0], path)
            tried.add(finding.code)
            every = 3 if "loops" in path.parts else 1
            if finding.code in {f.code for f in loud(watched(new, path, every=every))}:
                left.append((path.name, finding.code, finding.fixes[0].title))
    assert left == []
    assert len(tried) >= 15


def test_an_edit_of_a_file_does_away_with_its_finding(
    found: dict[Path, list[ReportedFinding]], tmp_path: Path
) -> None:
    written: dict[str, tuple[str, int, str]] = {}
    for path, findings in found.items():
        text = texts_of(path)
        if trains_itself(text) or "loops" in path.parts:
            continue
        for number, finding in enumerate(loud(findings)):
            if not finding.fixes[0].edits:
                continue
            name = f"{path.stem}_{number}.py"
            new = edited(text, finding.fixes[0], path)
            (tmp_path / name).write_text(new, encoding="utf-8")
            count = sum(f.code == finding.code for f in loud(findings))
            written[name] = (finding.code, count, finding.fixes[0].title)
    assert len(written) >= 20
    paths = [tmp_path / name for name in written]
    probed = [path for path in paths if re.match(rf"[a-z]{{3}}\d{{3}}_|{RAW}", path.name)]
    others = [path for path in paths if path not in probed]
    reports = trainlint.check(probed), trainlint.check(others, stages=UNTRAINED)
    assert {t.status for report in reports for t in report.targets} == {"ok"}
    after = [finding for report in reports for finding in flat(report)]
    left = [
        (name, code, title)
        for name, (code, count, title) in written.items()
        if sum(f.code == code and Path(f.filename or "").name == name for f in loud(after)) >= count
    ]
    assert left == []


# ---------------------------------------------------------------------- spellings of a loop

SPELLINGS = ROOT / "tests" / "spelled.py"  # a name for texts that are never written
DATA = "x = torch.randn(16, 8)"
LOSS = "loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())"
MODEL = "nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))"
TOP = f"""\
import torch
import torch.nn.functional as F
from torch import nn, optim

model = {MODEL}
optimizer = optim.SGD(model.parameters(), lr=0.1)
"""
# Each holds CLEAR before the backward pass, CLIP between it and the step, BEHIND after the step, alone in
# their lines: what a fault leaves out is deleted.
LOOPS = {
    "plain": f"""{TOP}
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()
    CLIP
    optimizer.step()
    BEHIND
""",
    "while": f"""{TOP}
step = 0
while step < 20:
    step += 1
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()  # die Gradienten: größer als zuvor
    CLIP
    optimizer.step()  # Schritt
    BEHIND
""",
    "function": f"""{TOP}
def train(steps=20):
    for _ in range(steps):
        {DATA}
        {LOSS}
        CLEAR
        loss.backward()
        CLIP
        optimizer.step()
        BEHIND


train()
""",
    "arguments": f"""{TOP}
def train(model, optimizer, steps):
    for number in range(steps):
        {DATA}
        output = model(x)
        loss = F.cross_entropy(
            output,
            (x[:, 0] > 0).long(),
        )
        CLEAR
        loss.backward()
        CLIP
        optimizer.step()
        BEHIND
    return number


train(model, optimizer, 20)
""",
    "epochs": f"""{TOP}
for epoch in range(2):
    for _ in range(10):
        {DATA}
        {LOSS}
        CLEAR
        loss.backward()
        CLIP
        optimizer.step()
        BEHIND
    print(epoch)
""",
    "class": f"""{TOP}
class Trainer:
    def __init__(self, model, optimizer):
        self.model = model
        self.optimizer = optimizer
        self.kept = []

    def fit(self, steps):
        for _ in range(steps):
            {DATA}
            loss = F.cross_entropy(self.model(x), (x[:, 0] > 0).long())
            CLEAR
            loss.backward()
            CLIP
            self.optimizer.step()
            BEHIND


Trainer(model, optimizer).fit(20)
""",
    "autocast": f"""{TOP}
for _ in range(20):
    {DATA}
    with torch.autocast("cpu", enabled=False):
        {LOSS}
    CLEAR
    loss.backward()
    CLIP
    optimizer.step()
    BEHIND
""",
    "within": f"""{TOP}
for _ in range(20):
    {DATA}
    with torch.enable_grad():
        {LOSS}
        CLEAR
        loss.backward()
    CLIP
    optimizer.step()
    BEHIND
""",
    "accumulating": f"""{TOP}
for _ in range(20):
    CLEAR
    for _ in range(2):
        {DATA}
        {LOSS}
        (loss / 2).backward()
    CLIP
    optimizer.step()
    BEHIND
""",
    "main": f"""{TOP}
def main():
    for _ in range(20):
        {DATA}
        {LOSS}
        CLEAR
        loss.backward()
        CLIP
        optimizer.step()
        BEHIND


if __name__ == "__main__":
    main()
""",
    "guarded": f"""{TOP}
try:
    for _ in range(20):
        {DATA}
        {LOSS}
        CLEAR
        loss.backward()
        CLIP
        optimizer.step()
        BEHIND
except KeyboardInterrupt:
    print("stopped")
""",
    "named otherwise": f"""{TOP.replace("optimizer", "opt")}
for i, _ in enumerate(range(20)):
    {DATA}

    # forward
    {LOSS}

    # backward
    CLEAR
    loss.backward()
    CLIP
    opt.step()
    BEHIND
    if i % 10 == 0:
        print(i, loss.item())
""",
    "no closing newline": f"""{TOP}
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()
    CLIP
    BEHIND
    optimizer.step()""",
    "several names": f"""{TOP}
net, best = model, None
for _ in range(20):
    {DATA}
    out = net(x)
    loss = F.cross_entropy(out, (x[:, 0] > 0).long())
    CLEAR
    loss.backward()
    CLIP
    optimizer.step()
    BEHIND
""",
    "step under if": f"""{TOP}
for i in range(40):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()
    if i % 2:
        CLIP
        optimizer.step()
        BEHIND
""",
    "backward in a helper": f"""{TOP}
def pull(loss):
    CLEAR
    loss.backward()


for _ in range(20):
    {DATA}
    {LOSS}
    pull(loss)
    CLIP
    optimizer.step()
    BEHIND
""",
    "two optimizers": f"""{TOP}
other = optim.SGD(model[0].parameters(), lr=0.1)
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()
    CLIP
    optimizer.step()
    other.step()
    BEHIND
""",
    "scaled": f"""{TOP}
scaler = torch.amp.GradScaler("cpu")
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    scaler.scale(loss).backward()
    CLIP
    scaler.step(optimizer)
    scaler.update()
    BEHIND
""",
    "closure": f"""{TOP}
def closure():
    {LOSS}
    CLEAR
    loss.backward()
    return loss


for _ in range(20):
    {DATA}
    optimizer.step(closure)
    BEHIND
""",
    "one line": f"""{TOP}
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward(); optimizer.step()
    BEHIND
""",
    "a list of optimizers": f"""{TOP}
for _ in range(20):
    {DATA}
    {LOSS}
    CLEAR
    loss.backward()
    CLIP
    for each in [optimizer]:
        each.step()
    BEHIND
""",
    "at two places": f"""{TOP}
for i in range(40):
    {DATA}
    {LOSS}
    CLEAR
    if i < 20:
        loss.backward()
        optimizer.step()
    else:
        loss.backward()
        optimizer.step()
    BEHIND
""",
}
DRIVEN = ("step under if", "backward in a helper", "two optimizers", "scaled", "closure", "one line",
          "a list of optimizers", "at two places")  # fmt: skip


def spelled(
    loop: str, *, clear: str = "", clip: str = "", behind: str = "", first: str = ""
) -> str:
    """A loop with these lines; `{o}` stands for the optimizer there, `{m}` for the model."""
    text = LOOPS[loop]
    name = re.search(r"([\w.]+)\.step\((?:closure)?\)", text)
    model = re.search(r"F\.cross_entropy\(\s*([\w.]+)\(x\)|(?:output|out) = (\w+)\(x\)", text)
    assert model
    names = {"o": name[1] if name else "optimizer", "m": model[1] or model[2]}
    if names["o"] == "each":
        names["o"] = "optimizer"
    for mark, line in (("CLEAR", clear), ("CLIP", clip), ("BEHIND", behind)):
        line = line.format(**names)
        text = re.sub(rf"^( *){mark}\n?", rf"\1{line}\n" if line else "", text, flags=re.MULTILINE)
    return text.replace("\nfor ", f"\n{first}\nfor ", 1) if first else text


LAYOUTS = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: re.sub(
        "^( {4})+", lambda m: "\t" * (len(m[0]) // 4), text, flags=re.MULTILINE
    ),
}
CLEARED = "{o}.zero_grad()"
# Rule, and the lines that make its fault: what is left out, or stands where it should not.
LOOP_FAULTS = {
    "GRD007": {},
    "GRD008": {"clear": CLEARED, "behind": "kept = [*globals().get('kept', []), loss]"},
    "GRD009": {"clear": CLEARED, "behind": "torch.nn.utils.clip_grad_norm_({m}.parameters(), 1.0)"},
    "OPT001": {"clip": CLEARED},
}


def outcome(text: str, code: str) -> tuple[str, Fix | None]:
    """`absent`, `refused`, `gone` or `left`, and the fix."""
    before = [f for f in watched(text, SPELLINGS) if f.code == code]
    if not before:
        return "absent", None
    fix = before[0].fixes[0]
    if not fix.edits:
        return "refused", fix
    new = edited(text, fix, SPELLINGS)
    # Lines are added or moved, and no other byte changes.
    assert abs(len(new.splitlines()) - len(text.splitlines())) <= 2
    assert ("\r\n" in new) == ("\r\n" in text)
    assert not re.search("[^\r]\n", new) or "\r\n" not in text
    after = [f.code for f in watched(new, SPELLINGS)]
    return ("left" if code in after else "gone"), fix


@pytest.mark.parametrize("code", ["GRD007", "GRD009", "OPT001"])
def test_loops_are_mended_or_left_to_their_author(code: str) -> None:
    results: dict[str, str] = {}
    for number, loop in enumerate(LOOPS):
        layout = list(LAYOUTS)[number % len(LAYOUTS)]
        text = LAYOUTS[layout](spelled(loop, **LOOP_FAULTS[code]))
        results[loop], fix = outcome(text, code)
        if results[loop] == "refused":
            assert fix is not None
            assert fix.obstacle
            assert fix.reason
    wrong = {loop: result for loop, result in results.items() if result == "left"}
    assert wrong == {}
    edits = {loop for loop, result in results.items() if result == "gone"}
    assert edits & set(DRIVEN) == set()
    # Where the fault can be made, all the plain ones are mended.
    plain = [loop for loop in LOOPS if loop not in DRIVEN and results[loop] != "absent"]
    assert edits == set(plain)
    assert len(plain) >= 10


STEPPED_FIRST = """import torch
from torch import nn
from torch.nn import functional as F

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(20):
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.step()  # learn
    loss.backward()
"""


def test_a_step_before_the_backward_pass_is_moved_behind_it() -> None:
    result, fix = outcome(STEPPED_FIRST, "OPT001")
    assert result == "gone"
    assert fix is not None
    new = edited(STEPPED_FIRST, fix, SPELLINGS)
    assert new.endswith("    loss.backward()\n    optimizer.step()  # learn\n")


def test_a_step_before_the_backward_pass_of_a_rotated_loop_is_sound() -> None:
    rotated = STEPPED_FIRST.replace("    optimizer.zero_grad()\n", "").replace(
        "    loss.backward()", "    optimizer.zero_grad()\n    loss.backward()"
    )
    assert outcome(rotated, "OPT001") == ("absent", None)


def test_clipping_is_put_between_backward_and_step() -> None:
    """GRD005 on a recurrent model, in the same loops."""
    made = 0
    for number, loop in enumerate(LOOPS):
        text = spelled(loop, clear=CLEARED)
        text = text.replace(MODEL, "Net()").replace(
            "model = Net()",
            "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.rnn = nn.LSTM(1, 8, batch_first=True)\n        self.head = nn.Linear(8, 2)\n\n"
            "    def forward(self, x):\n        return self.head(self.rnn(x[..., None])[0][:, -1])\n\n\n"
            "model = Net()",
        )
        text = LAYOUTS[list(LAYOUTS)[number % len(LAYOUTS)]](text)
        result, fix = outcome(text, "GRD005")
        assert result in ("gone", "refused", "absent"), loop
        if result == "gone":
            made += 1
            assert loop not in DRIVEN
        elif fix is not None:
            assert fix.obstacle
    assert made >= 10


# ---------------------------------------------------------------------- spellings of an optimizer

SCRIPT = f"""\
import argparse
import functools

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import SGD, Adam

model = {MODEL}
MADE
for _ in range(60):
    x = torch.randn(256, 8)
    loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
# With a value that is far off; the constructor's place for it comes by position or keyword.
MADE = {
    "keyword": ["optimizer = torch.optim.SGD(model.parameters(), lr=VALUE)"],
    "position": ["optimizer = optim.SGD(model.parameters(), VALUE)"],
    "imported": ["optimizer = SGD(model.parameters(), lr=VALUE, momentum=0.0)"],
    "params by name": ["optimizer = SGD(params=model.parameters(), lr=VALUE)"],
    "several lines": [
        "optimizer = torch.optim.SGD(",
        "    model.parameters(),",
        "    lr=VALUE,  # the rate",
        ")",
    ],
    "parentheses": ["optimizer = SGD(model.parameters(), lr=(VALUE))"],
    "product": ["optimizer = SGD(model.parameters(), lr=0.5 * (2 * VALUE))"],
    "constant": ["LR = VALUE", "optimizer = SGD(model.parameters(), lr=LR)"],
    "constant by position": ["RATE = VALUE  # far", "optimizer = SGD(model.parameters(), RATE)"],
    "annotated": ["LR: float = VALUE", "optimizer = SGD(model.parameters(), lr=LR)"],
    "group": ["optimizer = SGD([{'params': model.parameters(), 'lr': VALUE}], lr=0.1)"],
    "list": ["optimizer = SGD(list(model.parameters()), lr=VALUE)"],
    "filtered": ["optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=VALUE)"],
    "function": [
        "def make(model):",
        "    return SGD(model.parameters(), lr=VALUE)",
        "optimizer = make(model)",
    ],
    "default": [
        "def make(model, lr=VALUE):",
        "    return SGD(model.parameters(), lr=lr)",
        "optimizer = make(model)",
    ],
    "passed": [
        "def make(model, lr):",
        "    return SGD(model.parameters(), lr=lr)",
        "optimizer = make(model, VALUE)",
    ],
    "dict": ["config = {'lr': VALUE}", "optimizer = SGD(model.parameters(), lr=config['lr'])"],
    "unpacked": ["config = {'lr': VALUE}", "optimizer = SGD(model.parameters(), **config)"],
    "argparse": [
        "parser = argparse.ArgumentParser()",
        "parser.add_argument('--lr', type=float, default=VALUE)",
        "args = parser.parse_args([])",
        "optimizer = SGD(model.parameters(), lr=args.lr)",
    ],
    "partial": ["make = functools.partial(SGD, lr=VALUE)", "optimizer = make(model.parameters())"],
    "by name": ["optimizer = getattr(optim, 'SGD')(model.parameters(), lr=VALUE)"],
    "used twice": ["LR = VALUE", "optimizer = SGD(model.parameters(), lr=LR)", "print(LR)"],
    "two groups": [
        "groups = [{'params': model[0].parameters()}, {'params': model[2].parameters()}]",
        "optimizer = SGD(groups, lr=VALUE)",
    ],
    "Adam": ["optimizer = Adam(model.parameters(), lr=VALUE)"],
}
OPTIMIZERS = {name: "\n".join(lines) for name, lines in MADE.items()}
ALWAYS = {"keyword", "position", "imported", "params by name", "several lines", "group", "list", "filtered",
          "function", "Adam"}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "value"), [("OPT003", "1e-7"), ("OPT002", "50.0")], ids=["too low", "too high"]
)
def test_rates_are_set_where_they_are_written(code: str, value: str) -> None:
    results = {}
    for name, made in OPTIMIZERS.items():
        if name == "Adam" and code == "OPT002":
            continue
        text = SCRIPT.replace("MADE", made.replace("VALUE", value))
        results[name], fix = outcome_of(text, code)
        assert results[name] in ("gone", "refused"), (name, results[name])
        if results[name] == "refused":
            assert fix is not None
            assert fix.obstacle
    refused = {name for name, result in results.items() if result == "refused"}
    assert refused & ALWAYS == set()
    assert {"unpacked", "two groups"} <= refused


def outcome_of(text: str, code: str) -> tuple[str, Fix | None]:
    """As `outcome`, for edits that may touch any place."""
    before = [f for f in watched(text, SPELLINGS, every=3) if f.code == code]
    if not before:
        return "absent", None
    fix = before[0].fixes[0]
    if not fix.edits:
        return "refused", fix
    new = edited(text, fix, SPELLINGS)
    assert 0 <= len(new.splitlines()) - len(text.splitlines()) <= 1
    after = [f.code for f in watched(new, SPELLINGS, every=3) if f.severity != "info"]
    return ("left" if code in after else "gone"), fix


# ---------------------------------------------------------------------- spellings of a loss

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import BCELoss

"""
BODY = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(12):
    x = torch.randn(16, 8)
    y = (x[:, 0] > 0).float()
    LOSS
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
ONE = "model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))"
BROADCASTS = [
    "loss = ((model(x) - y) ** 2).mean()",
    "loss = ((y - model(x)) ** 2).mean()",
    "loss = (model(x) - y).pow(2).mean()",
    "loss = (y - model(x)).abs().mean()",
    "loss = torch.mean((model(x) - y) ** 2)",
    "loss = torch.square(model(x) - y).mean()",
    "loss = F.mse_loss(model(x), y)",
    "loss = F.mse_loss(input=model(x), target=y)",
    "loss = F.mse_loss(model(x), target=y)",
    "loss = F.l1_loss(model(x), y)",
    "loss = F.smooth_l1_loss(model(x), y, beta=0.5)",
    "loss = F.huber_loss(model(x), y)",
    "loss = nn.MSELoss()(model(x), y)",
    "loss = nn.functional.mse_loss(model(x), y)",
    "loss = torch.nn.functional.mse_loss(model(x), y)",
    "out = model(x)\n    loss = F.mse_loss(out, y)",
    "out = model(x)\n    loss = F.mse_loss(\n        out,  # scores\n        y,\n    )",
    "out = model(x)\n    error = out - y\n    loss = (error * error).mean()",
    "out = model(x)\n    loss = F.mse_loss(2 * out, y)",
    "out = model(x)\n    loss = F.mse_loss(-out, y)",
    "out, target = model(x), y\n    loss = F.mse_loss(out, target)",
    "loss = (lambda a, b: F.mse_loss(a, b))(model(x), y)",
    "given = (model(x), y)\n    loss = F.mse_loss(*given)",
    "loss = F.mse_loss(model(x), y + 0)",
    "loss = F.mse_loss(torch.squeeze(model(x)), y.unsqueeze(1))",
]


def test_tables_of_all_pairs_become_differences() -> None:
    results = {}
    for line in BROADCASTS:
        text = HEAD + ONE + BODY.replace("LOSS", line)
        results[line], fix = outcome_of(text, "LOS005")
        if results[line] == "refused":
            assert fix is not None
            assert fix.obstacle
    assert {line for line, result in results.items() if result in ("left", "absent")} == set()
    assert {line for line, result in results.items() if result == "refused"} == {
        "given = (model(x), y)\n    loss = F.mse_loss(*given)"
    }


def net(made: str, *lines: str) -> str:
    """A model of one layer with another line in `__init__`, and this forward."""
    body = "".join(f"        {line}\n" for line in lines)
    return (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.fc = nn.Linear(8, 1)\n{made}\n    def forward(self, x):\n{body}\n\nmodel = Net()"
    )


SIGMOIDS = {
    "layer": "model = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid())",
    "not the last": "model = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid(), nn.Flatten())",
    "method": net("", "return self.fc(x).sigmoid()"),
    "function": net("", "return torch.sigmoid(self.fc(x))"),
    "own line": net("", "z = self.fc(x)", "p = F.sigmoid(z)", "return p"),
    "attribute": net("        self.out = nn.Sigmoid()\n", "return self.out(self.fc(x))"),
}
WITH_LOGITS = [
    "loss = F.binary_cross_entropy_with_logits({}, y[:, None])",
    "loss = nn.BCEWithLogitsLoss()({}, y[:, None])",
    "loss = nn.functional.binary_cross_entropy_with_logits({}, y[:, None])",
    "scores = {}\n    loss = F.binary_cross_entropy_with_logits(scores, y[:, None])",
]


def test_a_sigmoid_before_a_loss_that_has_one_is_taken_out() -> None:
    for kind, model in SIGMOIDS.items():
        for line in WITH_LOGITS:
            text = HEAD + model + BODY.replace("LOSS", line.format("model(x)"))
            result, fix = outcome_of(text, "LOS003")
            assert fix is not None
            assert result == "gone", (kind, line, fix)


BCES = [
    ("loss = F.binary_cross_entropy(model(x), y[:, None])", "gone"),
    ("loss = nn.functional.binary_cross_entropy(model(x), y[:, None])", "gone"),
    ("loss = torch.nn.functional.binary_cross_entropy(model(x), y[:, None])", "gone"),
    ("loss = F.binary_cross_entropy(\n        model(x), y[:, None]\n    )", "gone"),
    ("loss = criterion(model(x), y[:, None])", "gone"),
    ("loss = criterion(model(x), y.unsqueeze(1))  # größer", "gone"),
    ("loss = F.binary_cross_entropy(model(x), y[:, None], None)", "refused"),
    ("loss = BCELoss()(model(x), y[:, None])", "refused"),
]


def test_scores_go_into_the_loss_that_takes_them() -> None:
    for line, expected in BCES:
        for made in ("criterion = nn.BCELoss()", "criterion = torch.nn.BCELoss()"):
            text = HEAD + ONE + "\n" + made + BODY.replace("LOSS", line)
            result, fix = outcome_of(text, "LOS004")
            assert result == expected, (line, fix)


# ---------------------------------------------------------------------- modes, and loaders

VALIDATES = """\
import torch
import torch.nn.functional as F
from torch import nn

model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
BEFORE
for epoch in range(3):
    for _ in range(8):
        x = torch.randn(32, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    PASS
"""
QUIET = "with torch.no_grad():"
PASSES = {
    "comprehension": [
        QUIET,
        "    right = sum(int(model(x).argmax()) for x in torch.randn(4, 9, 8))",
    ],
    "loop": [QUIET, "    for x in torch.randn(4, 9, 8):", "        right = model(x).argmax(1)"],
    "loop around": ["for x in torch.randn(4, 9, 8):", f"    {QUIET}", "        right = model(x)"],
    "inference": [
        "with torch.inference_mode():",
        "    for x in torch.randn(4, 9, 8):",
        "        right = model(x)",
    ],
    "function": ["validate(model)"],
    "decorated": ["decorated(model)"],
    "returned": ["returned(model)"],
}
FUNCTIONS = """
def validate(net):
    total = 0
    with torch.no_grad():
        for x in torch.randn(4, 9, 8):
            total += net(x).sum().item()
    print(total)


@torch.no_grad()
def decorated(model):
    kept = []
    for x in torch.randn(4, 9, 8):
        kept.append(model(x).argmax(1))
    return torch.cat(kept)


def returned(model):
    with torch.no_grad():
        return [model(x) for x in torch.randn(4, 9, 8)]


"""


def test_passes_are_made_in_eval_mode() -> None:
    for name, lines in PASSES.items():
        for layout, lay in LAYOUTS.items():
            inner = "\n    ".join(lines)
            text = lay(VALIDATES.replace("BEFORE", FUNCTIONS).replace("PASS", inner))
            before = [f for f in watched(text, SPELLINGS) if f.code == "REG005"]
            assert before, (name, layout)
            fix = before[0].fixes[0]
            if name == "returned":
                assert fix.obstacle == "the pass ends in a return"
                continue
            new = edited(text, fix, SPELLINGS)
            assert len(new.splitlines()) == len(text.splitlines()) + 2
            assert "REG005" not in [f.code for f in watched(new, SPELLINGS)], (name, layout)


SWITCHES = {
    "behind the batches": "model.eval()",
    "in a function": "leave(model)",
    "with a pass": "model.eval()\n    with torch.no_grad():\n        print(model(x).mean().item())",
}


def test_training_goes_on_in_train_mode() -> None:
    leave = "def leave(net):\n    net.eval()\n\n"
    for name, lines in SWITCHES.items():
        for layout, lay in LAYOUTS.items():
            text = lay(VALIDATES.replace("BEFORE", leave).replace("PASS", lines))
            result, fix = outcome(text, "REG004")
            assert result == "gone", (name, layout, fix)
    # In the loop over batches itself, before the model is called.
    text = VALIDATES.replace("BEFORE", "").replace("    PASS\n", "")
    text = text.replace("optimizer.step()", "optimizer.step()\n        model.eval()")
    result, fix = outcome(text, "REG004")
    assert result == "gone", fix


SORTED = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data
from torch.utils.data import DataLoader, TensorDataset

x, y = torch.randn(640, 8), torch.arange(640) // 320
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
dataset = TensorDataset(x, y)
MADE
for inputs, labels in loader:
    loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
LOADERS = {
    "loader = DataLoader(dataset, batch_size=16)": "gone",
    "loader = DataLoader(dataset, 16)": "gone",
    "loader = DataLoader(dataset, 16, False)": "refused",
    "loader = DataLoader(dataset, batch_size=16, shuffle=False)": "gone",
    "loader = DataLoader(\n    dataset,\n    batch_size=16,\n)": "gone",
    "loader = DataLoader(\n    dataset,\n    batch_size=16,\n    shuffle=False,  # größer\n)": "gone",
    "loader = DataLoader(dataset, batch_size=16,)": "gone",
    "loader = DataLoader(TensorDataset(x, y), batch_size=16, drop_last=True)": "gone",
    "loader = torch.utils.data.DataLoader(dataset, batch_size=16)": "gone",
    "loader = data.DataLoader(dataset=dataset, batch_size=16)": "gone",
    "loader = DataLoader(dataset, batch_size=16  # a batch\n)": "refused",
    "options = dict(batch_size=16)\nloader = DataLoader(dataset, **options)": "refused",
    "flag = False\nloader = DataLoader(dataset, batch_size=16, shuffle=flag)": "refused",
    "loader = DataLoader(dataset, batch_size=16, sampler=data.SequentialSampler(dataset))": "refused",
    "def make(d):\n    return DataLoader(d, batch_size=16)\n\n\nloader = make(dataset)": "gone",
}


def test_loaders_shuffle() -> None:
    for made, expected in LOADERS.items():
        result, fix = outcome_of(SORTED.replace("MADE", made), "DAT003")
        assert result == expected, (made, fix)
        assert fix is not None
        assert (result == "gone") != bool(fix.obstacle)


# ---------------------------------------------------------------------- where loss and data meet

FILE = """import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(160, 6)


class Net(nn.Module):
    def __init__(self, outputs={outputs}):
        super(Net, self).__init__()
        self.fc1 = nn.Linear(6, 16)
        self.fc2 = nn.Linear(16, outputs)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


{data}
model = Net()
criterion = nn.{loss}()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
train_loader = DataLoader(TensorDataset(x[:128], y[:128]), batch_size=16, shuffle=True)
val_loader = DataLoader(TensorDataset(x[128:], y[128:]), batch_size=16)
"""
SCALES = "x = x * torch.tensor([1.0, 3.0, 0.2, 900.0, 40.0, 0.5]) + 7.0\n"
# (outputs, how the targets are made, loss, the rule, what the edited text holds, the patch)
MEETINGS = {
    "classes": (3, "y = torch.arange(160) % 5", "CrossEntropyLoss", "LOS007", "outputs=5)", ("rebuilt", {"out_features": 5})),
    "longer": (1, "y = x[:, 0] + x[:, 1]", "MSELoss", "LOS005", "y[128:].unsqueeze(1)", ("target-shape", {"unsqueeze": 1})),
    "columns": (3, f"y = (x[:, 0] > 0).long()\n{SCALES}", "CrossEntropyLoss", "DAT001", "(x[:128] - torch.tensor([", ("normalise-inputs", {})),
}  # fmt: skip


def test_where_data_and_model_do_not_meet_they_are_made_to(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    for name, (outputs, data, loss, *_) in MEETINGS.items():
        text = FILE.format(outputs=outputs, data=data, loss=loss)
        (before / f"{name}.py").write_text(text, encoding="utf-8")
    report = trainlint.check([before / f"{name}.py" for name in MEETINGS])
    for name, (_, _, _, code, part, patch) in MEETINGS.items():
        path = before / f"{name}.py"
        found = [f for f in flat(report) if f.code == code and f.filename == str(path)]
        assert len(found) == 1, name
        fix = found[0].fixes[0]
        assert len(fix.title) < 150
        assert [(p.kind, p.values) for p in fix.patches] == [patch], name
        new = edited(path.read_text(encoding="utf-8"), fix, path)
        assert part in new, new
        (after / f"{name}.py").write_text(new, encoding="utf-8")
    report = trainlint.check([after / f"{name}.py" for name in MEETINGS])
    assert loud(flat(report)) == []
