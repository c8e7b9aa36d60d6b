"""What is shipped: everything of the package and of the rules, nothing else, and it runs when installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ("trainlint", "rules")
ENVIRONMENT = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
        **{"env": ENVIRONMENT, **options},  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist.

    Built from a copy: a `build/` that was left in the checkout would put stale files into the wheel.
    """
    source = tmp_path_factory.mktemp("source") / "trainlint"
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "benchmarks", "node_modules"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", output, source)
    return output


def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def python_files() -> set[str]:
    """The files that the wheel must hold, under the names that they have there."""
    names = {
        path.relative_to(ROOT).as_posix()
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*.py")
    }
    renamed = {
        f"trainlint_rules/{name.removeprefix('rules/')}" if name.startswith("rules/") else name
        for name in names
    }
    return renamed | {"trainlint/py.typed"}


def test_the_wheel_holds_the_package_the_rules_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == python_files()
    assert any(name.endswith("/LICENSE") for name in metadata)


def test_the_wheel_declares_its_entry_points(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "trainlint = trainlint.__main__:main" in text
    assert "[trainlint.rules]\nbuiltin = trainlint_rules" in text


def test_the_wheel_is_pure_and_small(built: Path) -> None:
    assert wheel(built).name.endswith("-py3-none-any.whl")
    assert wheel(built).stat().st_size < 1_500_000


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in (*SHIPPED, "tests", "fixtures", "docs")
        for path in (ROOT / folder).rglob("*.py")
    }
    wanted |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt"}
    assert wanted <= names


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed alone, beside the dependencies that are here anyway."""
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel(built))
    return target


def test_the_installed_wheel_lists_its_own_rules(installed: Path, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(installed)}
    output = run(
        sys.executable, installed / "bin" / "trainlint", "rules", env=environment, cwd=tmp_path
    )
    rules = [path for path in (ROOT / "rules").rglob("*.py") if path.name != "__init__.py"]
    assert len(output.splitlines()) == len(rules)
    where = run(
        sys.executable, "-c",
        "import trainlint, trainlint_rules; print(trainlint.__file__, trainlint_rules.__file__)",
        env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert all(name.startswith(str(installed)) for name in where.split())


MIXING = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.fc(x))
        return self.head(h.t().reshape(h.shape))


example_inputs = torch.randn(8, 6)
"""


def test_the_installed_wheel_checks_a_model_without_numpy(installed: Path, tmp_path: Path) -> None:
    """torch does not install numpy, so that trainlint must not need it."""
    absent = tmp_path / "absent"
    (absent / "numpy").mkdir(parents=True)
    (absent / "numpy" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n"
    )
    (tmp_path / "net.py").write_text(
        "from torch import nn\nmodel = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 2))\n"
    )
    (tmp_path / "mixing.py").write_text(MIXING)
    done = subprocess.run(
        [
            sys.executable,
            str(installed / "bin" / "trainlint"),
            "check",
            "net.py",
            "mixing.py",
            "--format",
            "concise",
        ],
        env={**ENVIRONMENT, "PYTHONPATH": f"{absent}{os.pathsep}{installed}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "net.py:2:40: error ARC002 layer-input-mismatch" in done.stdout
    assert ": error ARC006 batch-mixing" in done.stdout  # found by real passes
    assert "not measured" not in done.stderr


def test_the_version_is_one() -> None:
    import tomllib

    import trainlint

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == trainlint.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{trainlint.__version__}]" in changelog


def test_a_script_beside_the_clone_finds_an_editable_install(tmp_path: Path) -> None:
    """Whose directory has the package's name, as a clone of the repository has."""
    clone = tmp_path / "trainlint"
    for folder in SHIPPED:
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    (tmp_path / "script.py").write_text("import trainlint; print(trainlint.__file__)\n")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", clone)
    assert Path(run(python, tmp_path / "script.py").strip()) == clone / "trainlint" / "__init__.py"
