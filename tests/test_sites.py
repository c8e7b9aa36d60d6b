"""Where things were made and called, who initialised them, and no trace of it in the model."""

from __future__ import annotations

import copy
import importlib.util
import io
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from trainlint.sites import (
    INITIALIZATIONS,
    SITE_ATTRIBUTE,
    Initializations,
    calling_site,
    construction_site,
    owner_of,
    recording,
    replaced,
)

HEADER = "import torch\nfrom torch import nn\n"


def load(path: Path, source: str) -> ModuleType:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + textwrap.dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"_sites_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with recording():
        spec.loader.exec_module(module)
    return module


def text_at(module: nn.Module) -> str:
    """The source text of the call that constructed the module."""
    site = construction_site(module)
    assert site is not None
    span = site.span()
    assert span is not None
    row, end_row, start, stop = span
    lines = Path(site.filename).read_bytes().splitlines()
    found = lines[row - 1 : end_row]
    found[-1] = found[-1][:stop]
    found[0] = found[0][start:]
    return b"\n".join(found).decode()


def test_the_span_is_the_constructor_call_and_nothing_else(tmp_path: Path) -> None:
    net = load(
        tmp_path / "net.py",
        """
        class Net(nn.Module):
            def __init__(self, width=4):
                super().__init__()
                self.a, self.b = nn.Linear(4, width), nn.Linear(width, 2)
                self.c = nn.Sequential(nn.Linear(2, 2), *[nn.ReLU() for _ in range(2)], 层 := nn.Tanh())
                self.d = nn.Linear(
                    2,
                    3,
                )

        class Child(Net):
            def __init__(self):
                super().__init__(width=5)
                self.e = nn.Linear(3, 3)

        model = Child()
        """,
    )
    model = net.model
    assert text_at(model.a) == "nn.Linear(4, width)"
    assert text_at(model.b) == "nn.Linear(width, 2)"
    assert text_at(model.c[0]) == "nn.Linear(2, 2)"
    assert text_at(model.c[1]) == text_at(model.c[2]) == "nn.ReLU()"
    assert text_at(model.c[3]) == "nn.Tanh()"
    assert text_at(model.d).split() == ["nn.Linear(", "2,", "3,", ")"]
    assert text_at(model.e) == "nn.Linear(3, 3)"
    assert text_at(model) == "Child()"


def test_one_call_is_one_key(tmp_path: Path) -> None:
    net = load(
        tmp_path / "net.py",
        """
        def block(width):
            return nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))

        model = nn.Sequential(block(2), block(3), block(4))
        """,
    )
    sites = [construction_site(block[place]) for block in net.model for place in (0, 1)]
    keys = [site.key for site in sites if site is not None]
    assert len(set(keys)) == 2
    assert keys[0::2] == [keys[0]] * 3
    assert [construction_site(block).row for block in net.model] == [  # type: ignore[union-attr]
        construction_site(net.model[0]).row  # type: ignore[union-attr]
    ] * 3


def test_torch_itself_and_the_standard_library_are_passed_over(tmp_path: Path) -> None:
    net = load(
        tmp_path / "net.py",
        """
        import copy, functools
        make = functools.partial(nn.Linear, 2)
        one = make(3)
        encoder = nn.TransformerEncoderLayer(8, 2, 16)
        copied = copy.deepcopy(encoder)
        many = list(map(make, [1, 2]))
        """,
    )
    assert text_at(net.one) == "make(3)"
    assert text_at(net.encoder.linear1) == "nn.TransformerEncoderLayer(8, 2, 16)"
    assert text_at(net.copied.linear1) == "nn.TransformerEncoderLayer(8, 2, 16)"
    assert text_at(net.many[0]) == "map(make, [1, 2])" or "list(map" in text_at(net.many[0])


def test_a_model_library_is_named_and_so_is_the_users_own_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib" / "site-packages"
    monkeypatch.syspath_prepend(folder)
    (folder / "somelib").mkdir(parents=True)
    (folder / "somelib" / "__init__.py").write_text(
        HEADER + "def make(width):\n    return nn.Linear(width, 2)\n"
    )
    net = load(tmp_path / "net.py", "import somelib\nmodel = somelib.make(3)\n")
    site = construction_site(net.model)
    assert site is not None
    assert Path(site.filename).parent.name == "somelib"
    assert site.row == 4
    assert site.project is not site
    assert site.project.filename == str(tmp_path / "net.py")
    assert site.project.row == 4


@pytest.mark.parametrize(
    ("filename", "owner"),
    [
        (torch.__file__, "torch"),
        (copy.__file__, "torch"),
        ("<frozen importlib>", "torch"),
        ("<string>", "torch"),
        ("/x/lib/python3.11/site-packages/timm/a.py", "installed"),
        ("/usr/lib/python3/dist-packages/a.py", "installed"),
        ("/home/user/net.py", "project"),
        ("<ipython-input-1-abc>", "project"),
        (__file__, "project"),
    ],
)
def test_whose_a_file_is(filename: str | None, owner: str) -> None:
    assert owner_of(str(filename)) == owner


# ---------------------------------------------------------------------- initialisations


def test_the_last_fill_of_a_parameter_is_known(tmp_path: Path) -> None:
    net = load(
        tmp_path / "net.py",
        """
        a, b, c, d = (nn.Linear(2, 2) for _ in range(4))
        nn.init.zeros_(a.weight)
        nn.init.ones_(b.weight)
        torch.nn.init.constant_(b.weight, 0.5)
        with torch.no_grad():
            c.weight.data.zero_()
        """,
    )
    rows = {"a": ("zeros_", 5), "b": ("constant_", 7), "c": ("zero_", 9)}
    for name, (function, row) in rows.items():
        seen = INITIALIZATIONS.of(getattr(net, name).weight)
        assert seen is not None
        assert seen[0] == function
        assert (seen[1].filename, seen[1].row) == (str(tmp_path / "net.py"), row), name
    default = INITIALIZATIONS.of(net.d.weight)
    assert default is None or default[1].row == 4  # torch's own fill, at the user's constructor


def test_a_fill_is_known_after_a_model_has_moved(tmp_path: Path) -> None:
    net = load(
        tmp_path / "net.py",
        """
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        model.double()
        """,
    )
    seen = INITIALIZATIONS.of(net.model.weight)
    assert seen is not None
    assert (seen[0], seen[1].row) == ("zeros_", 5)


def test_no_note_on_a_fill_holds_a_tensor() -> None:
    notes = Initializations()
    site = calling_site()
    value = (torch.ones(2, requires_grad=True) * 2).sum()
    tensor, other = torch.empty(3), torch.empty(3)
    notes.note(tensor, "fill_", site, (value,))
    notes.note(other, "fill_", site, (2.0,))
    seen = notes.of(tensor)
    assert seen is not None
    assert seen[0] == "fill_"
    assert notes.declared(tensor) is None
    assert notes.declared(other) == ("fill_", (2.0,), {})
    alive = weakref.ref(value)
    del value
    assert alive() is None


def test_notes_on_tensors_that_are_gone_are_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainlint.sites._MOST_FILLS", 8)
    notes = Initializations()
    site = calling_site()
    kept = torch.empty(3)
    notes.note(kept, "zero_", site)
    for rounds in range(5):
        for tensor in [torch.empty(3 + rounds) for _ in range(6)]:
            notes.note(tensor, "zero_", site)
        del tensor
    assert len(notes._by_storage) <= 16
    assert notes.of(kept) is not None


# ---------------------------------------------------------------------- no trace


def test_recording_ends() -> None:
    before = nn.Module.__init__, nn.init.zeros_, torch.Tensor.zero_, torch.Tensor.fill_
    with recording():
        assert nn.Module.__init__ is not before[0]
        inside = nn.Linear(2, 2)
    assert (nn.Module.__init__, nn.init.zeros_, torch.Tensor.zero_, torch.Tensor.fill_) == before
    assert "zero_" not in vars(torch.Tensor)  # inherited again, not a copy
    assert construction_site(inside) is not None
    assert construction_site(nn.Linear(2, 2)) is None


def test_recording_ends_after_an_exception() -> None:
    before = nn.Module.__init__

    def fail() -> None:
        with recording():
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert nn.Module.__init__ is before


def test_a_recorded_model_copies_saves_and_loads() -> None:
    with recording():
        model = nn.Sequential(nn.Linear(2, 3))
    copied = copy.deepcopy(model)
    assert construction_site(copied[0]) is construction_site(model[0])
    assert SITE_ATTRIBUTE not in model.state_dict()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert construction_site(loaded) is None
    assert torch.equal(loaded[0].weight, model[0].weight)


def test_a_module_whose_init_fails_raises_its_own_error() -> None:
    with recording(), pytest.raises(TypeError, match="out_features"):
        nn.Linear(2)  # type: ignore[call-arg]


def test_replaced_restores_what_was_inherited() -> None:
    class Base:
        value = 1

    class Child(Base):
        pass

    with replaced(Child, "value", 2):
        assert Child.value == 2
    assert Child.value == 1
    assert "value" not in vars(Child)
    with replaced(Base, "value", 3):
        assert Child.value == 3
    assert Base.value == 1


def test_a_saved_model_is_read_without_us(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with recording():
        torch.save(nn.Sequential(nn.Linear(2, 3)), path)
    program = (
        f"import sys, torch; from torch import nn; sys.modules['trainlint'] = None\n"
        f"with torch.serialization.safe_globals([nn.Sequential, nn.Linear]):\n"
        f"    print(torch.load({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "Linear(in_features=2" in done.stdout, done.stderr
