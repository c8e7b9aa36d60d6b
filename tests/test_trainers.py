"""Libraries that own the loop, in `trainlint run`: the same training, the user's lines, no false alarms.

Skipped where a library is not installed; the extras `trainers` and `dev` have them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run import bare, run, script

from trainlint.fixes.source import SourceText
from trainlint.targets.discovery import discover
from trainlint.targets.loops import Script

DATA = """\
import warnings
warnings.filterwarnings("ignore")
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Data(torch.utils.data.Dataset):
    def __init__(self, count):
        self.x = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return ITEM


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 2)

    def forward(self, x, labels=None):
        scores = self.head(self.body(x))
        if labels is None:
            return scores
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}

"""
PAIRS = DATA.replace("ITEM", "self.x[index], (self.x[index, 0] > 0).long()")
NAMED = DATA.replace("ITEM", '{"x": self.x[index], "labels": (self.x[index, 0] > 0).long()}')
END = """
print([p.double().sum().item() for p in model.parameters()], torch.get_rng_state().sum().item())
"""
TRANSFORMERS = (
    NAMED
    + """
from transformers import PrinterCallback, Trainer, TrainingArguments

model = Net()
args = TrainingArguments(
    "out", num_train_epochs=3, per_device_train_batch_size=8, gradient_accumulation_steps=2,
    eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True, learning_rate=1e-2,
    disable_tqdm=True,
)
trainer = Trainer(model, args, train_dataset=Data(64), eval_dataset=Data(16))
trainer.remove_callback(PrinterCallback)  # prints how long it took
trainer.train()
"""
    + END
)
ACCELERATE = (
    PAIRS
    + """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
loader = torch.utils.data.DataLoader(Data(64), 8, shuffle=True)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
for epoch in range(3):
    model.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            accelerator.gather_for_metrics(model(x))
"""
    + END
)
LIGHTNING = (
    PAIRS
    + """
import logging
logging.disable(logging.WARNING)
import lightning


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, index):
        x, y = batch
        self.log("loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


model = Module()
trainer = lightning.Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2,
    gradient_clip_val=1.0,
)
load = torch.utils.data.DataLoader
trainer.fit(model, load(Data(64), 8, shuffle=True), load(Data(32), 8))
"""
    + END
)
SCRIPTS = {
    "transformers": (TRANSFORMERS, 12, "AdamW"),
    "accelerate": (ACCELERATE, 12, "AdamW"),
    "lightning": (LIGHTNING, 16, "AdamW"),
}


@pytest.mark.parametrize("library", SCRIPTS)
def test_a_sound_training_is_the_same_and_clean(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    text, steps, kind = SCRIPTS[library]
    path = script(tmp_path, text, header="")
    expected = bare(path)
    done, report = run(path)
    assert expected.returncode == 0, expected.stderr
    assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)
    assert [f["message"] for f in report["findings"] if f["severity"] != "info"] == []
    assert report["targets"][0]["watched"].startswith(f"{steps} steps of {kind}")


@pytest.mark.parametrize(
    ("library", "says"),
    [
        ("transformers", "trainer.train() trains"),
        ("accelerate", "the loop there trains"),
        ("lightning", "trainer.fit() trains"),
    ],
)
def test_a_check_knows_what_trains_there(library: str, says: str) -> None:
    text = SourceText("train.py", SCRIPTS[library][0])
    assert text.tree is not None
    program = Script(text.tree, discover(text))
    assert [*filter(None, map(program.says, text.tree.body))] == [says]


# A fault of the user's: what stands in the script, what in its place, and the finding on it.
SOFTMAX = (
    "        scores = self.head(self.body(x))",
    "        scores = self.head(self.body(x)).softmax(1)",
)
FAULTS = {
    "transformers": (*SOFTMAX, "LOS001"),
    "accelerate": ("            optimizer.zero_grad()\n", "", "GRD007"),
    "lightning": (*SOFTMAX, "LOS001"),
}


@pytest.mark.parametrize("library", FAULTS)
def test_a_fault_is_named_at_the_users_line(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    before, after, code = FAULTS[library]
    assert before in SCRIPTS[library][0]
    path = script(tmp_path, SCRIPTS[library][0].replace(before, after), header="")
    _, report = run(path)
    (finding,) = (f for f in report["findings"] if f["code"] == code)
    assert finding["filename"] == "train.py"
    line = path.read_text().splitlines()[finding["location"]["row"] - 1]
    assert line.strip() == (after.strip() or "optimizer.step()")
