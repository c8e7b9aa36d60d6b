"""The callbacks for Lightning and Hugging Face, with the real packages where they are installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainlint
from trainlint.integrations.watched import Watched


class Net(nn.Module):
    """Two classes by the sign of the first of 8 features; with `twice`, a softmax before the loss."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        self.twice = twice

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        scores = self.body(x)
        if self.twice:
            scores = torch.softmax(scores, 1)
        return (
            scores
            if labels is None
            else {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}
        )


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long()


def weights(model: nn.Module) -> list[float]:
    return [float(p.detach().double().sum()) for p in model.parameters()]


# ---------------------------------------------------------------------- Hugging Face


class Named(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.x, self.y = data()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


def hugging_face(folder: Path, model: nn.Module, *callbacks: Any, steps: int = 24) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    args = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, save_strategy="no", report_to=[],
        use_cpu=True, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=Named(), callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def test_a_trainer_of_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from trainlint.integrations.huggingface import TrainlintCallback

    callback = TrainlintCallback()
    torch.manual_seed(0)
    watched = Net(twice=True)
    hugging_face(tmp_path, watched, callback)
    assert "LOS001" in [finding.code for finding in callback.report().findings]
    assert "double-softmax" in capsys.readouterr().err
    torch.manual_seed(0)
    alone = Net(twice=True)
    hugging_face(tmp_path, alone)
    assert weights(watched) == weights(alone)


def test_a_hopeless_trainer_is_stopped(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from trainlint.integrations.huggingface import TrainlintCallback

    callback = TrainlintCallback(show=False, on="error")
    with pytest.raises(trainlint.TrainingStopped, match="double-softmax"):
        hugging_face(tmp_path, Net(twice=True), callback)
    callback._watched.end()


def test_a_sound_trainer_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from trainlint.integrations.huggingface import TrainlintCallback

    callback = TrainlintCallback(show=False)
    with pytest.raises(RuntimeError, match="no training was watched yet"):
        callback.report()
    hugging_face(tmp_path, Net(), callback, steps=60)
    report = callback.report()
    assert [f.code for f in report.findings if f.severity != "info"] == []
    assert "60 steps" in (report.targets[0].watched or "")
    assert "trainlint" not in capsys.readouterr().err


# ---------------------------------------------------------------------- Lightning


def lightning_fit(folder: Path, model: nn.Module, *callbacks: Any, epochs: int = 4) -> nn.Module:
    lightning = pytest.importorskip("lightning")
    warnings.simplefilter("ignore")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=list(callbacks),
    )  # fmt: skip
    dataset = torch.utils.data.TensorDataset(*data())
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(dataset, 8, shuffle=True))
    return module


def test_a_trainer_of_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    from trainlint.integrations.lightning import TrainlintCallback

    callback = TrainlintCallback()
    torch.manual_seed(0)
    watched = Net(twice=True)
    lightning_fit(tmp_path, watched, callback)
    assert "LOS001" in [finding.code for finding in callback.report().findings]
    assert "double-softmax" in capsys.readouterr().err
    torch.manual_seed(0)
    alone = Net(twice=True)
    lightning_fit(tmp_path, alone)
    assert weights(watched) == weights(alone)


def test_lightning_is_stopped_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    from trainlint.integrations.lightning import TrainlintCallback

    callback = TrainlintCallback(on="error")
    with pytest.raises(trainlint.TrainingStopped):
        lightning_fit(tmp_path, Net(twice=True), callback)
    assert "double-softmax" in capsys.readouterr().err


def test_two_fits_are_one_report(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from trainlint.integrations.lightning import TrainlintCallback

    callback = TrainlintCallback(show=False)
    model = Net()
    lightning_fit(tmp_path, model, callback, epochs=3)
    lightning_fit(tmp_path, model, callback, epochs=2)
    trace = callback._watched._watch.trace
    assert sum(optimizer.steps for optimizer in trace.optimizers) == 40


# ---------------------------------------------------------------------- what they share


def test_begin_and_end_may_come_twice(capsys: pytest.CaptureFixture[str]) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watched = Watched()
    watched.begin(model, optimizer)
    watched.begin(model, optimizer)
    x, y = data(16)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    watched.end()
    watched.end()
    assert capsys.readouterr().err.count("3 steps of SGD") == 2
