"""Two processes on the CPU (gloo): each door sees the wrapped model, and the first one alone reports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainlint.running import is_first_of_several

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)

# Each loop forgets something that only watching shows, so that each has a report of its own.
NET = """\
import logging, os, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
from torch import nn
from torch.nn import functional as F

import trainlint

torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def data():
    x = torch.randn(192, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def tell(who, watched):
    report = watched.report()
    steps, _, rest = report.targets[0].watched.partition(", ")
    model = rest.partition("; ")[2].partition(" (")[0]
    print(">", who, [f.code for f in report.findings if f.severity == "error"], steps, "on", model)


"""
ACCELERATE = """\
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(data(), 16, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
assert type(model).__name__ == "DistributedDataParallel"
rows = []
with trainlint.watch(model, optimizer, log=lambda figures, step: rows.append(figures)) as watched:
    for epoch in range(2):
        for x, y in loader:
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
tell("accelerate", watched)
print("> logged", bool(rows))
"""
CALLBACKS = """\
import transformers
import lightning
from trainlint.integrations import huggingface, lightning as ours


class Named(torch.utils.data.Dataset):
    def __init__(self):
        self.pairs = data()

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        x, y = self.pairs[index]
        return {"x": x, "labels": y}


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.body(x).softmax(1), labels)}


args = transformers.TrainingArguments(
    "out", max_steps=12, per_device_train_batch_size=8, save_strategy="no", report_to=[], use_cpu=True,
    learning_rate=1e-2, disable_tqdm=True, ddp_backend="gloo", label_names=["labels"],
)
callback = huggingface.TrainlintCallback()
trainer = transformers.Trainer(Scores(), args, train_dataset=Named(), callbacks=[callback])
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
tell("huggingface", callback)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]).softmax(1), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


callback = ours.TrainlintCallback()
lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[callback],
).fit(Module(), torch.utils.data.DataLoader(data(), 8))
tell("lightning", callback)
"""
# As where `torch.multiprocessing` starts the processes: nothing in the environment says which is which.
SPAWNED = """\
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)
from trainlint.running import is_first_of_several
print("> without variables", is_first_of_several())
"""


def together(folder: Path, text: str) -> list[tuple[str, str]]:
    """What two processes of one training print, by rank: (stdout, stderr)."""
    (folder / "train.py").write_text(text, encoding="utf-8")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    known = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "train.py"], cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**known, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    done = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    return done


def test_each_door_sees_the_wrapped_model_and_the_first_process_reports(tmp_path: Path) -> None:
    for library in ("accelerate", "transformers", "lightning"):
        pytest.importorskip(library)
    done = together(tmp_path, NET + ACCELERATE + CALLBACKS + SPAWNED)
    for rank, (out, errors) in enumerate(done):
        said = [line for line in out.splitlines() if line.startswith("> ")]
        assert said == [
            "> accelerate ['GRD007'] 12 steps of SGD on Sequential",
            f"> logged {rank == 0}",
            "> huggingface ['LOS001'] 12 steps of AdamW on Scores",
            "> lightning ['LOS001'] 12 steps of AdamW on Module",
            f"> without variables {rank == 0}",
        ]
        assert errors.count("double-softmax LOS001") == (2 if rank == 0 else 0)


@pytest.mark.parametrize(
    ("variables", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "3", "WORLD_SIZE": "4"}, False),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "3"}, True),  # of whatever else
        ({"RANK": "", "WORLD_SIZE": "two"}, True),
    ],
)
def test_the_first_process_by_its_environment(
    variables: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_of_several() == is_first
