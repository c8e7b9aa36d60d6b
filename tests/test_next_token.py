"""The next token as a target, read from a file: what claims it and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainlint.fixes.source import SourceText
from trainlint.loss.source import loss_uses

HEAD = """
import torch
import torch.nn as nn
import torch.nn.functional as F
model = Net()
criterion = nn.CrossEntropyLoss()
"""
CLAIMS = {
    "slices of one tensor": """
for ids in loader:
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.reshape(-1, 50), ids[:, 1:].reshape(-1))
""",
    "scores sliced instead": """
def train(batch):
    out = model(batch)
    loss = criterion(out[:, :-1].transpose(1, 2), batch[:, 1:])
""",
    "names and a pair of outputs": """
def train(tokens):
    x, y = tokens[:, :-1], tokens[:, 1:]
    logits, state = model(x)
    loss = criterion(logits.view(-1, 50), y.contiguous().view(-1))
""",
    "windows of one text, from a function": """
data = load()
def get_batch(split):
    ix = torch.randint(len(data) - 8, (4,))
    x = torch.stack([data[i:i+8] for i in ix])
    y = torch.stack([data[i+1:i+8+1] for i in ix])
    x, y = x.to("cpu"), y.to("cpu")
    return x, y
for step in range(10):
    xb, yb = get_batch("train")
    loss = F.cross_entropy(model(xb).view(-1, 50), yb.view(-1))
""",
    "pairs from a dataset": """
class Text(torch.utils.data.Dataset):
    def __getitem__(self, i):
        chunk = self.data[i:i + self.block + 1]
        x = torch.tensor(chunk[:-1])
        y = torch.tensor(chunk[1:])
        return x, y
for i, (x, y) in enumerate(loader):
    x = x.to("cpu"); y = y.to("cpu")
    loss = F.cross_entropy(model(x).view(-1, 50), y.view(-1))
""",
    "a series and its next values": """
mse = nn.MSELoss()
for series in loader:
    loss = mse(model(series[:, :-1]), series[:, 1:])
""",
    "an entry of a batch": """
for batch in loader:
    ids = batch["input_ids"]
    logits = model(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
""",
}
OTHERS = {
    "labels": """
for x, y in loader:
    loss = criterion(model(x), y)
""",
    "the text itself": """
for x in loader:
    loss = criterion(model(x).transpose(1, 2), x)
""",
    "the text itself without its first token": """
for ids in loader:
    loss = criterion(model(ids)[:, 1:].transpose(1, 2), ids[:, 1:])
""",
    "what was hidden": """
for ids in loader:
    masked = corrupt(ids)
    loss = criterion(model(masked).transpose(1, 2), ids)
""",
    "tags without the first": """
for x, tags in loader:
    loss = criterion(model(x)[:, 1:].transpose(1, 2), tags[:, 1:])
""",
    "a dataset of other pairs": """
class Tagged(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return self.words[i], self.tags[i]
for x, y in loader:
    loss = criterion(model(x).transpose(1, 2), y)
""",
    "two steps ahead": """
for ids in loader:
    loss = criterion(model(ids[:, :-2]).transpose(1, 2), ids[:, 2:])
""",
}


WINDOWS = """
def get_batch(split):
    data = np.memmap(f"{split}.bin", dtype=np.uint16)
    ix = torch.randint(len(data) - 8, (4,))
    x = torch.stack([torch.from_numpy((data[i:i+8]).astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy((data[i+1:i+1+8]).astype(np.int64)) for i in ix])
    if device == "cuda":
        x, y = x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device)
    else:
        x, y = x.to(device), y.to(device)
    return x, y
"""
PAIRS = """
class Text(torch.utils.data.Dataset):
    def __getitem__(self, i):
        chunk = self.data[i:i + self.block + 1]
        return torch.tensor(chunk[:-1]), torch.tensor(chunk[1:])
"""
LOSS = "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)"
REBOUND = """
            B, T, C = logits.shape
            logits = logits.view(B*T, C)
            targets = targets.view(B*T)
            loss = F.cross_entropy(logits, targets)"""
SHIFTED = """
            shifted, labels = logits[:, :-1].contiguous(), targets[:, 1:].contiguous()
            loss = F.cross_entropy(shifted.view(-1, 50), labels.view(-1))"""
CHANGED = """
            targets = torch.where(targets > 0, targets, -1)
            loss = F.cross_entropy(logits.view(-1, 50), targets.view(-1))"""
FORWARD = """
class Net(nn.Module):
    def forward(self, idx, targets=None):
        logits = self.head(self.body(idx))
        loss = None
        if targets is not None:
            {}
        return logits, loss
"""
FETCHED = """
X, Y = get_batch("train")
while True:
    logits, loss = model(X, Y)
    X, Y = get_batch("train")
    loss.backward()
"""
INSIDE = {
    "nanoGPT": ("loss = " + LOSS, WINDOWS + FETCHED, ["idx"]),
    "names that are bound again": (REBOUND, WINDOWS + FETCHED, ["idx"]),
    "by keyword": (
        "loss = " + LOSS,
        WINDOWS + 'x, y = get_batch("train")\nloss = model(targets=y, idx=x)[1]\n', ["idx"]),
    "pairs from a dataset": (
        "loss = " + LOSS, PAIRS + "for x, y in loader:\n    loss = model(x, y)[1]\n", ["idx"]),
    "the shift is made inside": (
        SHIFTED, WINDOWS + 'x, y = get_batch("train")\nmodel(x, x)\n', [None]),
    "shifted twice": (SHIFTED, WINDOWS + FETCHED, [None]),
    "other targets": (CHANGED, WINDOWS + FETCHED, [None]),
    "the text itself": (
        "loss = " + LOSS, WINDOWS + 'x, y = get_batch("train")\nmodel(mask(x), x)\n', [None]),
    "batches of two kinds": (
        "loss = " + LOSS,
        WINDOWS + 'x, y = get_batch("train")\nif other:\n    x, y = z[:, 1:], z[:, 1:]\nmodel(x, y)\n',
        [None]),
}  # fmt: skip


def claims(tmp_path: Path, body: str) -> list[int | str | None]:
    path = tmp_path / "script.py"
    path.write_text(HEAD + body)
    text = SourceText.read(str(path))
    assert text is not None
    return [use.next_of for use in loss_uses(text)]


@pytest.mark.parametrize("body", CLAIMS.values(), ids=CLAIMS.keys())
def test_claims(tmp_path: Path, body: str) -> None:
    assert claims(tmp_path, body) == [0]


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS.keys())
def test_no_claims(tmp_path: Path, body: str) -> None:
    assert claims(tmp_path, body) == [None]


def test_a_decoder_is_asked_for_its_own_input(tmp_path: Path) -> None:
    body = """
for src, tgt in loader:
    out = model(src, tgt[:, :-1])
    loss = criterion(out.flatten(0, 1), tgt[:, 1:].flatten())
    out = model(src, decoder=tgt[:, :-1])
    loss = criterion(out.flatten(0, 1), tgt[:, 1:].flatten())
"""
    assert claims(tmp_path, body) == [1, "decoder"]


@pytest.mark.parametrize(("loss", "body", "expected"), INSIDE.values(), ids=INSIDE.keys())
def test_a_loss_in_the_forward(
    tmp_path: Path, loss: str, body: str, expected: list[str | None]
) -> None:
    assert claims(tmp_path, FORWARD.format(loss.strip()) + body) == expected
