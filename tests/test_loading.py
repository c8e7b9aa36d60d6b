"""Strangers' scripts through the real command line: what is found in them, and why a run stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Result, run_command, write_files

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width{default}):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3)
            self.norm = nn.BatchNorm2d(32)

        def forward(self, x):
            return self.norm(self.conv(x)).mean((2, 3))
"""
NEEDS = NET.replace("{default}", "")
HAS = NET.replace("{default}", "=64")
TRAIN = (
    HAS
    + """
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()
"""
)
SMALL = """
    class {0}(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)
"""

# file: (source, {target: status}, what the notes or the reason say)
FILES: dict[str, tuple[str, dict[str, str], str]] = {
    "guard.py": (NEEDS + """
    if __name__ == "__main__":
        width = 32 * 2
        model = Net(width)
    """, {"guard.py::Net": "ok"}, ""),
    "in_main.py": (NEEDS + """
    def main():
        widths = {"small": 64}
        net = Net(width=widths.get("small", 8))
        net.train()
    """, {"in_main.py::Net": "ok"}, ""),
    "missing.py": ("""
    import einopsx as ein
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return ein.rearrange(self.fc(x))

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = ein.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)
    """, {"missing.py::Net": "error", "missing.py::Made": "skipped"},
        r"^No module named 'einopsx' \(line 1\) .*\nNo module named 'einopsx' \(line 1\)$"),
    "unset.py": ("""
    from torch import nn

    WIDTHS = open("no_such.txt").read()
    WIDTH = int(WIDTHS)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, WIDTH)

        def forward(self, x):
            return self.fc(x)
    """, {"unset.py::Net": "error"}, "^the run of the file stopped at line 3: FileNotFoundError"),
    "config.py": (NEEDS.replace("width, 3", "width.width, 3") + """
    from dataclasses import dataclass

    @dataclass
    class Config:
        width: int = 64

    def main():
        config = Config()
        net = Net(config)
    """, {"config.py::Net": "ok"}, ""),
    "namespace.py": (NEEDS + """
    import argparse

    def main():
        parser = argparse.ArgumentParser()
        parser.add_argument("--width", type=int, required=True)
        args = parser.parse_args()
        net = Net(args.width)
    """, {"namespace.py::Net": "error"}, r"needs arguments \(width\).*parse_args.*build_model"),
    "argparse_top.py": ("""
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    """ + HAS, {"argparse_top.py::Net": "ok"}, r"line 4: it exits there \(status 2\)"),
    "meta.py": (HAS + """
    with torch.device("meta"):
        model = Net()
    """, {"meta.py::model": "ok"}, ""),
    "loop.py": (TRAIN + """
    for step in range(3):
        optimizer.zero_grad()
        loss = criterion(torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
    late = nn.Linear(2, 2)
    """, {"loop.py::model": "ok"},
        r"line 17: the loop there trains, which `trainlint run loop\.py` watches"),
    "folds.py": (TRAIN + """
    for fold in range(2):
        net = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        criterion(net(torch.ones(2, 3)), torch.tensor([0, 1])).backward()
        optimizer.step()
    """, {"folds.py::model": "ok", "folds.py::net": "ok"},
        r"line 20: training begins there \(backward\), which `trainlint run folds\.py` watches"),
    "compiler.py": (TRAIN + """
    import sys
    loaded = "torch._dynamo.eval_frame"
    optimizer.zero_grad()
    assert loaded not in sys.modules, "an optimizer waits for the compiler"
    torch.compile(torch.relu)
    assert loaded in sys.modules, "what wants the compiler gets it"
    """, {"compiler.py::model": "ok"}, ""),
    "in_function.py": (TRAIN + """
    def train():
        for group in optimizer.param_groups:
            pass
        optimizer.step()

    train()
    """, {"in_function.py::model": "ok"},
        r"line 22 \(in train, line 20\): training begins there \(optimizer step\)"),
    "swallowed.py": (TRAIN + """
    try:
        torch.ones(2, requires_grad=True).sum().backward()
    except:
        pass
    raise ValueError("must not be reached")
    """, {"swallowed.py::model": "ok"}, r"line 18: training begins there"),
    "gan.py": ("""
    import torch
    from torch import nn
    """ + SMALL.format("Generator") + SMALL.format("Discriminator") + """
    netG = Generator()
    netD = Discriminator()
    """, {"gan.py::netG": "ok", "gan.py::netD": "ok"}, ""),
    "ema.py": (TRAIN + """
    import copy
    ema = copy.deepcopy(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    """, {"ema.py::model": "ok"}, ""),
    "wrapped.py": (HAS + """
    model = nn.DataParallel(Net())
    """, {"wrapped.py::model": "ok"}, ""),
    "compiled.py": (
        HAS
        + """
    model = torch.compile(Net())
    """,
        {"compiled.py::model": "ok"},
        "",
    ),
    "device.py": (
        HAS
        + """
    torch.set_default_device("meta")
    model = Net()
    """,
        {"device.py::model": "ok"},
        "",
    ),
    "cuda_default.py": (
        HAS
        + """
    torch.set_default_device("cuda")
    """,
        {"cuda_default.py::Net": "error"},
        "it wants CUDA",
    ),
    "cuda.py": (HAS + """
    device = "cuda"
    model = Net().to(device)
    other = Net().to(device)
    """, {"cuda.py::model": "ok", "cuda.py::other": "ok"}, r"line 14: it wants CUDA"),
    "losses.py": (TRAIN + """
    class FocalLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(1))

        def forward(self, x, y):
            return x - y

    class Penalty(nn.Module):
        def forward(self, x):
            return x.sum()

    extra = FocalLoss()
    relu = nn.ReLU()
    layers = nn.ModuleList([nn.Linear(2, 2)])
    """, {"losses.py::model": "ok"}, ""),
    "decorated.py": ("""
    import functools
    def register(cls): return cls
    """ + HAS.replace("class Net", "@register\n    class Net"), {"decorated.py::Net": "ok"}, ""),
    "nested.py": (HAS.replace("return self.norm", "return self.norm") + """
        class Inner(nn.Module):
            def forward(self, x):
                return x
    """, {"nested.py::Net": "ok"}, ""),
    "twice_same.py": (HAS + """
    a = Net()
    b = Net()
    """, {"twice_same.py::a": "ok", "twice_same.py::b": "ok"}, ""),
    "beside.py": ("""
    words = open("words.txt").read().split()
    import sibling
    """ + HAS, {"sub/beside.py::Net": "ok"}, "ran in its own folder, where words.txt lies"),
    "world.py": ("""
    import atexit, logging, multiprocessing, os, random, signal, sys, threading, time
    import torch
    logging.basicConfig(level=logging.DEBUG)
    logging.info("hello")
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(600,)).start()
    sys.stdout = open(os.devnull, "w")
    sys.stdout.close()
    process = multiprocessing.Process(target=os.getpid)
    process.start()
    process.join()
    atexit.register(time.sleep, 600)
    """ + HAS, {"world.py::Net": "ok"}, ""),
    "pool.py": ("""
    import math, multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        roots = pool.map(math.sqrt, [1, 4])
    assert roots == [1, 2]
    """ + HAS, {"pool.py::Net": "ok"}, ""),
    "replaced.py": (HAS + """
    import sys, types
    sys.modules[__name__] = types.SimpleNamespace()
    """, {"replaced.py::Net": "ok"}, ""),
    "future.py": ("    from __future__ import annotations\n" + HAS.replace(
        "def forward(self, x)", "def forward(self, x: no.such.Type) -> Nothing"),
        {"future.py::Net": "ok"}, ""),
}  # fmt: skip
PLACES = {"beside.py": "sub/beside.py"}
PACKAGE = {
    "sub/words.txt": "a b",
    "sub/sibling.py": "",
    "good/__init__.py": "",
    "good/layers.py": "WIDTH = 64\n",
    "good/models/__init__.py": "from .net import Net\n",
    "good/models/net.py": HAS.replace("import torch\n", "import torch\n    from ..layers import WIDTH\n"),
    "raising/__init__.py": "raise RuntimeError('not installed')\n",
    "raising/layers.py": "WIDTH = 64\n",
    "raising/net.py": HAS.replace("import torch\n", "import torch\n    from .layers import WIDTH\n"),
    "spaces/layers.py": "WIDTH = 64\n",
    "spaces/net.py": HAS.replace("import torch\n", "import torch\n    from .layers import WIDTH\n"),
    "my-repo/__init__.py": "",
    "my-repo/layers.py": "WIDTH = 64\n",
    "my-repo/net.py": HAS.replace(
        "import torch\n", "import torch\n    from .layers import WIDTH\n    import layers\n"),
    "zoo/__init__.py": "",
    "zoo/build.py": HAS + """
    def small():
        return Net(64)

    ready = Net(64)
    """,
}  # fmt: skip
TARGETS = {
    "good/models/net.py": {"good/models/net.py::Net": "ok"},
    "raising/net.py": {"raising/net.py::Net": "ok"},
    "spaces/net.py": {"spaces/net.py::Net": "ok"},
    "my-repo/net.py": {"my-repo/net.py::Net": "ok"},
    "zoo.build:small": {"zoo.build:small": "ok"},
    "zoo.build:ready": {"zoo.build:ready": "ok"},
    "zoo.build:Net": {"zoo.build:Net": "ok"},
    "good.models:Net": {"good.models:Net": "ok"},
    "gan.py::netD": {"gan.py::netD": "ok"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    files = {PLACES.get(name, name): source for name, (source, _, _) in FILES.items()}
    return write_files(folder, {**files, **PACKAGE})


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    files = [PLACES.get(name, name) for name in FILES]
    return run_command(
        "check", *files, *TARGETS, "--format", "json", "--timeout", "60", "--jobs", "3",
        cwd=folder, timeout=280,
    )  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_script(result: Result, name: str) -> None:
    _, expected, says = FILES[name]
    place = PLACES.get(name, name)
    got = {t: entry for t, entry in result.targets.items() if t.split(":")[0] == place}
    said = "\n".join(" ".join([entry["reason"] or "", *entry["notes"]]) for entry in got.values())
    assert {target: entry["status"] for target, entry in got.items()} == expected, said
    assert re.search(says, said), said
    if not says:
        assert said.strip() == ""


@pytest.mark.parametrize("name", TARGETS)
def test_target_in_a_package(result: Result, name: str) -> None:
    for target, status in TARGETS[name].items():
        assert result.targets[target]["status"] == status, result.targets[target]


def test_the_fault_is_found_once_a_file(result: Result) -> None:
    places = [(f["filename"], f["location"]["row"]) for f in result.found("NRM001")]
    assert len(set(places)) == len(places)
    healthy = {"gan.py", "namespace.py", "cuda_default.py", "missing.py", "unset.py"}
    expected = {PLACES.get(name, name) for name in FILES} - healthy
    expected |= {name for name in TARGETS if name.endswith(".py")} | {"zoo/build.py"}
    assert {filename for filename, _ in places} == expected


def test_a_package_that_raises_is_noted(result: Result) -> None:
    notes = " ".join(result.targets["raising/net.py::Net"]["notes"])
    assert "package raising stopped: RuntimeError: not installed" in notes


def test_nothing_is_written(folder: Path, result: Result) -> None:
    assert not list(folder.rglob("__pycache__"))


def test_a_directory(folder: Path) -> None:
    files = {
        "mixed/net.py": HAS,
        "mixed/needs.py": NEEDS,
        "mixed/data.py": "import torch\n",
        "none/data.py": "import torch\n",
        "none/text.txt": "",
        "bad/x.py": "import torch\nx = (\n",
    }
    write_files(folder, files)
    result = run_command("check", "mixed", "mixed/net.py", "none", "--format", "json", cwd=folder)
    assert result.statuses() == {
        "mixed/needs.py::Net": "skipped", "mixed/net.py::Net": "ok", "none": "skipped"
    }  # fmt: skip
    assert result.status == 1
    empty = run_command("check", "none", cwd=folder)
    assert empty.status == 2  # or a project whose models have moved would stay green
    assert empty.stderr == "trainlint: error: no model found in: none\n"
    assert run_command("check", "none", "--scan", cwd=folder).status == 0
    strict = run_command(
        "check", "mixed", "none", "--fail-on-skipped", "--format", "json", cwd=folder
    )
    assert strict.statuses() == {
        "mixed/needs.py::Net": "error", "mixed/net.py::Net": "ok", "none": "skipped"
    }  # fmt: skip
    assert strict.status == 2
    assert "(not skipped: fail-on-skipped)" in strict.targets["mixed/needs.py::Net"]["reason"]
    broken = run_command("check", "bad", cwd=folder)
    assert broken.status == 2
    assert (
        broken.stderr
        == "trainlint: error: bad/x.py: does not parse: '(' was never closed at line 2\n"
    )


def test_live_models() -> None:
    import torch
    from torch import nn

    import trainlint

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x))

    for target in (Net(), Net, lambda: nn.DataParallel(Net())):
        report = trainlint.check(target, inputs=torch.randn(2, 3, 8, 8), select=["NRM001"])
        assert [finding.code for finding in report.findings] == ["NRM001"]
    with pytest.raises(trainlint.TrainlintError, match=r"makes no torch\.nn\.Module but int"):
        trainlint.check(lambda: 3)
