"""What watching a training loop costs, as a ratio to the bare step.

    python -m benchmarks.overhead [--rounds 14] [--only PATTERN] [--validate BATCHES] [--peers]

For each architecture: the CPU time of blocks of training steps, bare, bare again (the noise floor), watched
adaptively, and watched with every step recorded. The blocks take turns, so that what else the machine does
falls on all alike, and each watched block is compared with the bare blocks beside it. Process CPU time, one
thread. The first steps of a block are not counted: Python has to get used to methods that were replaced,
which a training run does once. What is written down is the median over the rounds, with the quartiles.

With `--validate`, each block of 40 steps ends with a pass in eval mode over so many batches, at which
watching measures losses of single samples; the figures are of both, by step.

`--peers` installs other tools, each into an environment of its own that has this one's torch, and runs the
same loops with every step recorded by it; or tells why it does not install or run.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import trainlint

BLOCK = 40
UNCOUNTED = 5
_PATIENCE = 900


class FunctionalMLP(nn.Module):
    """All activations are functions, so that module hooks would see none of them."""

    def __init__(self, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.relu(layer(x))
        return self.head(x)


class Residual(nn.Module):
    """A small ResNet."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            )
            for _ in range(blocks)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for block in self.blocks:
            x = functional.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class GPT(nn.Module):
    """Causal attention and everything else through functions."""

    def __init__(
        self, width: int = 128, depth: int = 4, heads: int = 4, vocabulary: int = 200
    ) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            normed = functional.layer_norm(x, x.shape[-1:])
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in qkv(normed).chunk(3, -1)
            )
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(attended.transpose(1, 2).flatten(2))
            x = x + down(functional.gelu(up(functional.layer_norm(x, x.shape[-1:]))))
        return functional.linear(x, self.tokens.weight)


class Recurrent(nn.Module):
    """An LSTM classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(32, 128, 2, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def modular() -> nn.Module:
    """The MLP as nn.Sequential."""
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def encoder() -> nn.Module:
    """Torch's own transformer encoder."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(64 * 16, 10))


Task = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]


def _classes(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(*shape), torch.randint(0, 10, (shape[0],)))


def _tokens() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 200, (8, 65))
    return ids[:, :-1], ids[:, 1:]


TASKS: dict[str, Task] = {
    "mlp (modules)": (modular, _classes(64, 256)),
    "mlp (functions)": (FunctionalMLP, _classes(64, 256)),
    "resnet": (Residual, _classes(16, 3, 16, 16)),
    "transformer": (encoder, _classes(16, 16, 64)),
    "lstm": (Recurrent, _classes(16, 20, 32)),
    "gpt (functions)": (GPT, _tokens),
}


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, of sequences as well."""
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


class Loop:
    """A training loop that goes on from block to block."""

    def __init__(self, task: Task, validated: int = 0) -> None:
        torch.manual_seed(0)
        make, self._batch = task
        self._validation = [self._batch() for _ in range(validated)]
        self.model = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def block(self) -> float:
        """CPU seconds of a step."""
        batches = [self._batch() for _ in range(UNCOUNTED + BLOCK)]
        before = 0.0
        for number, (x, y) in enumerate(batches):
            if number == UNCOUNTED:
                before = time.process_time()
            self.optimizer.zero_grad()
            loss_of(self.model(x), y).backward()
            self.optimizer.step()
        if self._validation:
            self.model.eval()
            with torch.no_grad():
                for x, y in self._validation:
                    loss_of(self.model(x), y)
            self.model.train()
        return (time.process_time() - before) / BLOCK


def ratios(task: Task, rounds: int, validated: int = 0) -> dict[str, list[float]]:
    """Ratios to the bare blocks of the same round, by variant."""
    ways: dict[str, dict[str, Any] | None] = {
        "bare again": None,
        "adaptive": {},
        "every step": {"every": 1},
    }
    loops = {name: Loop(task, validated) for name in ("bare", *ways)}
    watches = {
        name: trainlint.watch(loops[name].model, **options)
        for name, options in ways.items()
        if options is not None
    }
    for loop in loops.values():
        loop.block()
    for watch in watches.values():
        # A long run's cost, not that of its first second.
        watch._observer._pace._free = watch._observer._checkpoints._seconds = 0.0
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        seconds = {}
        for name, loop in loops.items():
            with watches.get(name, nullcontext()):
                seconds[name] = loop.block()
        for name in ways:
            found[name].append(seconds[name] / seconds["bare"])
    found["bare"] = [seconds["bare"]]
    return found


def rows(rounds: int, only: str, validated: int = 0) -> Iterator[str]:
    """The table, line by line."""
    yield f"{'':<18}{'ms bare':>9}{'bare again':>22}{'adaptive':>22}{'every step':>22}"
    for name, task in TASKS.items():
        if not fnmatch.fnmatch(name, only):
            continue
        found = ratios(task, rounds, validated)
        cells = []
        for variant in ("bare again", "adaptive", "every step"):
            low, middle, high = statistics.quantiles(found[variant], n=4)
            cells.append(f"{middle:.3f} [{low:.3f}..{high:.3f}]")
        milliseconds = 1000 * found["bare"][0]
        digits = max(0, 2 - math.floor(math.log10(milliseconds)))
        yield f"{name:<18}{milliseconds:>9.{digits}f}" + "".join(f"{cell:>22}" for cell in cells)


def _torcheck(loop: Loop) -> None:
    import torcheck  # type: ignore[import-not-found]

    torcheck.register(loop.optimizer)
    torcheck.add_module_changing_check(loop.model, module_name="model")
    torcheck.add_module_nan_check(loop.model, module_name="model")
    torcheck.add_module_inf_check(loop.model, module_name="model")


def _smdebug(loop: Loop) -> None:
    from smdebug.pytorch import Hook, SaveConfig  # type: ignore[import-not-found]

    folder = str(Path(tempfile.mkdtemp()) / "out")
    hook = Hook(folder, save_config=SaveConfig(save_interval=1), include_collections=["gradients"])
    hook.register_module(loop.model)


# What is installed beside what is here, and how it is told of a loop.
PEERS: dict[str, tuple[list[str], Callable[[Loop], None]]] = {
    "torcheck": (["torcheck"], _torcheck),
    "smdebug": (
        ["smdebug", "protobuf<3.21", "pyinstrument<4", "boto3", "botocore", "jmespath", "s3transfer",
         "python-dateutil", "six", "requests", "urllib3", "idna", "certifi", "charset-normalizer",
         "pandas", "pytz", "tzdata"],
        _smdebug,
    ),
}  # fmt: skip


def peer_rows(peer: str, rounds: int, only: str) -> Iterator[str]:
    """The table of another tool that is installed here."""
    for name, task in TASKS.items():
        if fnmatch.fnmatch(name, only):
            bare, watched = Loop(task), Loop(task)
            PEERS[peer][1](watched)
            bare.block(), watched.block()
            found = [watched.block() / bare.block() for _ in range(rounds)]
            low, middle, high = statistics.quantiles(found, n=4)
            yield f"{peer:<18}{name:<18}{middle:>9.3f} [{low:.3f}..{high:.3f}]"


def run_peer(peer: str, rounds: int, only: str) -> str:
    """Its table, or what kept it from making one."""
    with tempfile.TemporaryDirectory() as folder:
        python = str(Path(folder, "bin", "python"))
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (inside,) = Path(folder).glob("lib/python*/site-packages")
        shared = Path(torch.__file__).parent.parent
        (inside / "shared.pth").write_text(str(shared))
        install = [python, "-m", "pip", "install", "-q", "--no-deps", *PEERS[peer][0]]
        runs = [
            python,
            "-m",
            "benchmarks.overhead",
            "--peer",
            peer,
            "--rounds",
            str(rounds),
            "--only",
            only,
        ]
        for what, command in (("install", install), ("run", runs)):
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=_PATIENCE
                )
            except subprocess.TimeoutExpired:
                return f"{peer:<18}does not {what} within {_PATIENCE} s"
            if done.returncode:
                last = (done.stderr.strip() or "?").splitlines()[-1]
                return f"{done.stdout if what == 'run' else ''}{peer:<18}does not {what}: {last}"
        return done.stdout.rstrip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--only", default="*", help="names, with * and ?")
    parser.add_argument("--validate", type=int, default=0, help="batches of a validation pass")
    parser.add_argument(
        "--peers", action="store_true", help="other tools as well, which are installed"
    )
    parser.add_argument("--peer", choices=PEERS, default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peer:
        table = peer_rows(options.peer, options.rounds, options.only)
    else:
        table = rows(options.rounds, options.only, options.validate)
    for row in table:
        print(row, flush=True)
    for peer in PEERS if options.peers else ():
        print(run_peer(peer, options.rounds, options.only), flush=True)


if __name__ == "__main__":
    main()
