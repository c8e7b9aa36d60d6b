"""Every bad input of issue 2: one clear line or a target with a reason, never a traceback of ours."""

# ruff: noqa: ISC004 -- sources, line by line
from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Result, Run, is_alive, run_command, write_files

GOOD = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x)
"""
FAULTY = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.bn = nn.BatchNorm2d(32)

        def forward(self, x):
            return self.bn(self.conv(x))
"""
LAST = "\n    " + GOOD.strip() + "\n"


def first(lines: str) -> str:
    """A file that begins with these lines and holds a sound model below them."""
    return "\n".join(f"    {line}" for line in lines.splitlines()) + LAST


# file: (source, {target: status}, what the reason or the notes say)
FILES: dict[str, tuple[str | bytes, dict[str, str], str]] = {
    "good.py": (GOOD, {"good.py::Net": "ok"}, ""),
    "faulty.py": (FAULTY, {"faulty.py::Net": "ok"}, ""),
    "empty.py": ("", {"empty.py": "error"}, r"no model found"),
    "nomodel.py": ("import torch\nx = 1\n", {"nomodel.py": "error"}, r"no model found"),
    "unnamed.py": (
        "import torch as nets\ndef load(path): return nets.open(path)\n"
        "def unet():\n    net = nets.UNet()\n    return net\n",
        {"unnamed.py": "error"}, r"no model found; if unet\(\) makes one: .*unnamed\.py::unet$"),
    "syntax.py": ("x = 1\nclass Net(:\n", {"syntax.py": "error"}, r"does not parse: .* line 2"),
    "nulls.py": (b"x = 1\0\n", {"nulls.py": "error"}, r"does not parse: .*null"),
    "missing.py": (first("import no_such_package"), {"missing.py::Net": "ok"},
                   r"line 1: ModuleNotFoundError: No module named 'no_such_package'"),
    "missing_base.py": (
        "from no_such_package import Base\nclass Net(Base):\n    def forward(self, x): return x\n",
        {"missing_base.py": "error"}, r"line 1: .*No module named 'no_such_package'"),
    "exits.py": (first("import sys\nsys.exit()"), {"exits.py::Net": "ok"}, r"line 2: .*exits"),
    "exits_only.py": ("import torch\nraise SystemExit(3)\n", {"exits_only.py": "error"},
                      r"line 2: .*exits.* 3"),
    "os_exit.py": (first("import os\nprint('farewell')\nos._exit(0)"), {"os_exit.py": "error"},
                   r"ended by itself \(exit status 0\)"),
    "endless.py": (GOOD + "\n    while True:\n        pass\n", {"endless.py::Net": "ok"},
                   r"line 1[01]: .*still running after"),
    "endless_first.py": (first("while True:\n    pass"), {"endless_first.py::Net": "ok"},
                         r"line [12]: .*still running after"),
    "endless_init.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        while True: pass\n    def forward(self, x): return x\n",
        {"endless_init.py::Net": "error"}, r"timed out after \d+ s"),
    "segfault.py": (first("import ctypes\nctypes.string_at(0)"), {"segfault.py": "error"},
                    r"crashed.*signal 11.*line 2"),
    "memory.py": (first("import torch\nx = torch.zeros(50 << 30, dtype=torch.uint8)"),
                  {"memory.py::Net": "ok"}, r"line 2: .*out of memory.*limit.*MiB"),
    "memory_init.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.x = bytearray(50 << 30)\n"
        "    def forward(self, x): return x\n",
        {"memory_init.py::Net": "error"}, r"out of memory.*limit.*MiB"),
    "chatter.py": (first("print('blah ' * 200_000)"), {"chatter.py::Net": "ok"}, ""),
    "chatter_exit.py": (first("import os\nprint('blah ' * 200_000, flush=True)\nos._exit(1)"),
                        {"chatter_exit.py": "error"}, r"exit status 1"),
    "needs.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width, depth=2):\n"
        "        super().__init__()\n        self.fc = nn.Linear(width, depth)\n"
        "    def forward(self, x): return self.fc(x)\n",
        {"needs.py::Net": "error"}, r"needs arguments \(width\)"),
    "raises.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(4, 2)\n\n"
        "    def forward(self, x):\n        raise ValueError('not today')\n",
        {"raises.py::Net": "error"}, r"ValueError: not today.* (at )?raises\.py:8"),
    "exits_forward.py": (
        "import sys\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, x): sys.exit(4)\n" + "class Other(nn.Linear):\n"
        "    def __init__(self): super().__init__(4, 2)\n"
        "    def forward(self, x): return super().forward(x)\n",
        {"exits_forward.py::Net": "error", "exits_forward.py::Other": "ok"}, r"exits.*4"),
    "os_exit_forward.py": (
        "import os\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, x): os._exit(0)\n" + "class Other(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, x): return self.fc(x)\n",
        {"os_exit_forward.py::Net": "error", "os_exit_forward.py::Other": "ok"}, r"ended by itself"),
    "raises_init.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        raise KeyError('layers')\n"
        "    def forward(self, x): return x\n",
        {"raises_init.py::Net": "error"}, r"KeyError: 'layers' at raises_init\.py:5"),
    "cuda_init.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(4, 2).cuda()\n"
        "    def forward(self, x): return self.fc(x)\n",
        {"cuda_init.py::Net": "error"}, r"(?i)cuda.*cpu"),
    "cuda_top.py": (GOOD + "    model = Net().to('cuda')\n", {"cuda_top.py::model": "ok"},
                    r"line 10: .*(?i:cuda)"),
    "with space.py": (FAULTY, {"with space.py::Net": "ok"}, ""),
    "my-net.py": (FAULTY, {"my-net.py::Net": "ok"}, ""),
    "网络.py": (FAULTY, {"网络.py::Net": "ok"}, ""),
    "random.py": (FAULTY, {"random.py::Net": "ok"}, ""),
    "queue.py": (FAULTY, {"queue.py::Net": "ok"}, ""),
    "click.py": (FAULTY, {"click.py::Net": "ok"}, ""),
    "latin1.py": ("# caf\xe9\nimport torch\n".encode("latin-1"), {"latin1.py": "error"}, "UTF-8"),
    "latin1_declared.py": (
        "# coding: latin-1\n# caf\xe9\n".encode("latin-1") + b"from torch import nn\n"
        b"model = nn.Linear(2, 2)\n", {"latin1_declared.py::model": "ok"}, ""),
    "bom.py": (b"\xef\xbb\xbffrom torch import nn\nmodel = nn.Linear(2, 2)\n",
               {"bom.py::model": "ok"}, ""),
    "twice.py": (GOOD + GOOD, {"twice.py::Net": "ok"}, "Net is defined twice"),
    "input_call.py": (first("name = input('name? ')"), {"input_call.py::Net": "ok"},
                      r"line 1: .*standard input"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {name: source for name, (source, _, _) in FILES.items()}
    return write_files(tmp_path_factory.mktemp("bad"), files)


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    return run_command(
        "check", *FILES, "--format", "json", "--timeout", "6", "--memory-limit", "6000", "--jobs", "3",
        cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_file_gets_its_status_and_reason(result: Result, name: str) -> None:
    _, expected, says = FILES[name]
    got = {
        target: entry
        for target, entry in result.targets.items()
        if target.partition("::")[0] == name
    }
    assert {target: entry["status"] for target, entry in got.items()} == expected
    said = "\n".join(" ".join([entry["reason"] or "", *entry["notes"]]) for entry in got.values())
    assert re.search(says, said), said


def test_one_bad_file_spoils_nothing_but_the_exit_status(result: Result) -> None:
    assert result.status == 2
    files = {finding["filename"] for finding in result.found("NRM001")}
    assert files == {name for name, (source, _, _) in FILES.items() if source == FAULTY}


def test_stderr_has_one_line_for_each_failure_and_no_traceback(result: Result) -> None:
    failed = [name for name, status in result.statuses().items() if status == "error"]
    lines = result.complaints()
    assert sorted(
        line.removeprefix("trainlint: error: ").split(": ")[0] for line in lines
    ) == sorted(failed)
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr + result.stdout


def test_output_of_the_target_is_shown_only_on_failure(result: Result) -> None:
    assert result.targets["os_exit.py"]["output"] == "farewell\n"
    assert "    | farewell" in result.stderr
    assert "output" not in result.targets["chatter.py::Net"]
    assert len(result.stderr) < 20_000


def test_nothing_is_written_beside_the_files(folder: Path, result: Result) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.py"], "nowhere.py: no such file or directory"),
        (["nowhere"], "nowhere: no such file or directory"),
        (["torch.nn.modules"], "a model of that module is torch.nn.modules:NAME"),
        (["torch.nn.Linear"], "a model of that module is torch.nn:Linear"),
        (["good.py::"], "nothing follows"),
        ([".::Net"], "directory"),
        (["good.py", "--select", "XYZ999"], "unknown rule 'XYZ999'"),
        (["good.py", "--ignore", "norm-feature-mismatch"], "did you mean norm-features-mismatch"),
        (["good.py", "--inputs", "2xfoo"], "2xfoo"),
        (["good.py", "--config", "nowhere.toml"], "nowhere.toml"),
        (["a b:c"], "a b:c"),
        ([], "nothing to check"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line_and_status_2(
    folder: Path, arguments: list[str], says: str
) -> None:
    result = run_command("check", *arguments, cwd=folder)
    assert result.status == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_names_that_the_file_does_not_have(folder: Path) -> None:
    result = run_command(
        "check", "good.py::Nett", "no_such.mod:attr", "good:Net", "missing:Net", "nomodel.py::x",
        "--format", "json", cwd=folder,
    )  # fmt: skip
    assert result.status == 2
    targets = result.targets
    assert targets["good:Net"]["status"] == "ok"
    assert targets["missing:Net"]["status"] == "ok"
    assert re.search("no Nett.*it has: Net", targets["good.py::Nett"]["reason"])
    assert "no module no_such" in targets["no_such.mod:attr"]["reason"]
    assert "not a torch.nn.Module" in targets["nomodel.py::x"]["reason"]
    assert len(result.complaints()) == 3


def test_internal_errors_show_their_traceback_only_with_debug(
    trainlint: Run, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nmodel = nn.Linear(2, 2)\n")
    broken = {"PYTHONPATH": str(tmp_path / "broken")}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import trainlint.files\ndef fail(*a, **k): raise RuntimeError('boom')\n"
        "trainlint.files.FileCheck.report = fail\n"
    )
    plain = trainlint("check", "net.py", env=broken)
    assert plain.status == 2
    assert plain.stderr.splitlines() == [
        "trainlint: internal error: RuntimeError: boom (--debug shows the traceback)"
    ]
    debug = trainlint("check", "net.py", "--debug", env=broken)
    assert "Traceback" in debug.stderr
    assert debug.status == 2


def test_no_process_of_the_run_survives(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "spawns.py": first(
                "import os, subprocess, pathlib, sys\n"
                "child = subprocess.Popen(['sleep', '600'])\n"
                "pathlib.Path('pids').write_text(f'{os.getpid()} {child.pid}')\n"
                "os._exit(0)"
            )
        },
    )
    result = run_command("check", "spawns.py", "--timeout", "20", cwd=tmp_path)
    assert result.status == 2
    assert "ended by itself" in result.stderr
    assert result.seconds < 15
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_alive(int(pid))
