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
