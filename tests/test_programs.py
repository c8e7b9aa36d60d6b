"""Scripts as programs: where they train is named, also by a library's loop, and a check runs none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_files

import trainlint
from trainlint.fixes.source import SourceText
from trainlint.records import Report, TargetResult
from trainlint.report import concise, html
from trainlint.targets.discovery import discover
from trainlint.targets.loops import Script, command

LOOP = """
def {name}:
    optimizer = make()
    for batch in data:
        loss(batch).backward()
        optimizer.step()
"""
GUARD = "if __name__ == '__main__':\n"
NET = "class Net(nn.Module):\n    def forward(self, x): ...\n"
# source, the function that the probe runs, what is said
LOOPS = {
    "in main": (LOOP.format(name="main()") + f"{GUARD}    main()\n", "", "in main(), line 4"),
    "that main calls": (
        LOOP.format(name="fit(net)") + f"def main():\n    fit(Net())\n{GUARD}    run(main)\n", "",
        "in fit(), line 4"),
    "below the guard": (
        f"{GUARD}    while True:\n        loss.backward()\n        opt.step()\n", "",
        "the training loop, line 2"),
    "of an unguarded main": (
        LOOP.format(name="main()") + "main()\n", "", "the training loop in main(), line 4"),
    "a trainer's method": (
        ("class Trainer:\n    def once(self):\n        scaler.scale(loss).backward()\n"
        f"        scaler.step(self.opt)\n{GUARD}    Trainer().once()\n"), "",
        "the training in Trainer.once(), line 2"),
    "a method of a base of the file": (
        ("class Base:\n    def fit(self):\n        loss.backward()\n        opt.step()\n"
        f"class Own(Base): ...\n{GUARD}    Own().fit()\n"), "", "the training in Base.fit(), line 2"),
    "in two functions": (
        f"def one():\n    loss.backward()\n    opt.step()\n{GUARD}    for b in data:\n        one()\n",
        "", "the training in one(), line 1"),
    "of an optimizer of any name": (
        ("from torch.optim import SGD\ndef main():\n    rule = SGD(p)\n    loss.backward()\n"
        f"    rule.step()\n{GUARD}    main()\n"), "", "the training in main(), line 2"),
    "of the model itself": (
        (NET + "    def fit(self):\n        loss.backward()\n        self.opt.step()\n"
        f"{GUARD}    Net().fit()\n"), "", "the training in Net.fit(), line 3"),
    "run by the probe": (LOOP.format(name="train(m)") + f"{GUARD}    train(m)\n", "train", ""),
    "run by the probe through another": (
        LOOP.format(name="epoch(m)") + f"def train(m):\n    epoch(m)\n{GUARD}    train(m)\n",
        "train", ""),
    "that a run does not reach": (LOOP.format(name="fit(net)"), "", ""),
    "no optimizer": (f"def show():\n    score.backward()\n{GUARD}    show()\n", "", ""),
    "no backward": (f"def play():\n    env.step(a)\n    opt.step()\n{GUARD}    play()\n", "", ""),
    "a method that nobody calls": (
        ("class Trainer:\n    def fit(self):\n        loss.backward()\n        self.opt.step()\n"
        f"    def evaluate(self): ...\n{GUARD}    Trainer().evaluate()\n"), "", ""),
    "only models": (NET + "    def training_step(self, batch):\n        self.manual_backward(batch)\n"
        "        self.opt.step()\nmodel = Net()\n", "", ""),
}  # fmt: skip
LIGHTNING = "import lightning as L\n"
# the body of main(), imports, what is said to train
LIBRARIES = {
    "Lightning": ("t = L.Trainer(max_epochs=2)\n    t.fit(Net())", LIGHTNING, "t.fit()"),
    "Lightning at once": ("L.Trainer(1, x=[2]).fit(Net())", LIGHTNING, "L.Trainer().fit()"),
    "Lightning by a long name": (
        "trainer = lightning.pytorch.Trainer()\n    trainer.fit(Net())", "import lightning.pytorch\n",
        "trainer.fit()"),
    "the older Lightning": ("a = b = pl.Trainer()\n    b.fit(Net())",
        "import pytorch_lightning as pl\n", "b.fit()"),
    "one of two": ("t = L.Trainer()\n    t.fit(Net())",
        "try:\n    import lightning as L\nexcept ImportError:\n    import own as L\n", "t.fit()"),
    "from a function": ("t = make()\n    t.fit(Net())",
        f"{LIGHTNING}def make():\n    t = L.Trainer()\n    return t\n", "t.fit()"),
    "given to a function": ("go(trainer=L.Trainer())",
        f"{LIGHTNING}def go(trainer):\n    trainer.fit(Net())\n", "trainer.fit()"),
    "annotated": ("go(*make())",
        f"{LIGHTNING}def go(net, t: 'L.Trainer | None' = None):\n    t.fit(net)\n", "t.fit()"),
    "an attribute": ("Experiment(L.Trainer()).go()",
        (f"{LIGHTNING}class Experiment:\n    def __init__(self, trainer):\n        self.t = trainer\n"
        "    def go(self):\n        self.t.fit(Net())\n"), "self.t.fit()"),
    "a class of one's own": ("Mine(Net()).train()",
        ("import transformers as tf\nclass Base(tf.Seq2SeqTrainer): ...\nclass Mine(Base): ...\n"),
        "Mine().train()"),
    "Hugging Face": ("trainer = Trainer(Net())\n    trainer.train()",
        "from transformers import Trainer\n", "trainer.train()"),
    "under another name": ("T(Net()).train()", "from transformers import Trainer\nT = Trainer\n",
        "T().train()"),
    "from everywhere": ("Trainer(Net()).train()", "from os import *\nfrom transformers import *\n",
        "Trainer().train()"),
    "skorch": ("net = NeuralNetClassifier(Net).initialize()\n    net.fit(x, y)",
        "from skorch import NeuralNetClassifier\n", "net.fit()"),
    "skorch in a pipeline": ("Pipeline([('net', NeuralNet(Net))]).fit(x, y)",
        "from skorch import NeuralNet\nfrom sklearn.pipeline import Pipeline\n", "Pipeline().fit()"),
    "skorch, validated": ("cross_val_score(NeuralNet(Net), x, y)",
        ("from skorch import NeuralNet\nfrom sklearn.model_selection import cross_val_score\n"),
        "cross_val_score()"),
    "ignite": ("trainer = create_supervised_trainer(Net(), o, l)\n    trainer.run(x)",
        "from ignite.engine import create_supervised_trainer\n", "trainer.run()"),
    "monai": ("trainer = SupervisedTrainer(d, 2)\n    trainer.run()",
        "from monai.engines import SupervisedTrainer\n", "trainer.run()"),
    "accelerate": ("a = Accelerator()\n    net, o = a.prepare(Net(), o)\n    a.backward(l)\n    o.go()",
        "from accelerate import Accelerator\n", ""),
    "Fabric": ("f = Fabric()\n    for b in x:\n        f.backward(b)\n        take(o)",
        "from lightning.fabric import Fabric\n", ""),
}  # fmt: skip
NOT = {
    "scikit-learn alone": ("scaler.fit(x)\n    LogisticRegression().fit(x, y)",
        "from sklearn.linear_model import LogisticRegression\n"),
    "a model's mode": ("net = Net()\n    net.train()", "from transformers import Trainer\n"),
    "of the same name in another function": ("trainer = Scaler()\n    trainer.fit(x)",
        f"{LIGHTNING}def other():\n    trainer = L.Trainer()\n    trainer.fit(Net())\n"),
    "a trainer that only tests": ("t = L.Trainer()\n    t.test(Net())\n    vector.fit(x)", LIGHTNING),
    "a trainer that is not imported": ("trainer.fit(Net())\n    Trainer().train()", ""),
    "evaluation": ("create_supervised_evaluator(Net()).run(x)",
        "from ignite.engine import create_supervised_evaluator\n"),
    "functions in a circle": ("trainer = one()\n    trainer.fit(x)",
        "def one():\n    return two()\ndef two():\n    return one()\n"),
}  # fmt: skip
OWN = "class Own:\n    def fit(self):\n        loss.backward()\n        opt.step()\n"
STATEMENTS = {
    "main()\n": "main() trains",
    "sys.exit(main())\n": "main() trains",
    "raise SystemExit(main())\n": "main() trains",
    "try:\n    main()\nexcept KeyboardInterrupt:\n    pass\n": "main() trains",
    "seed(0)\nfire.Fire(main)\n": "main() trains",
    "with open('log.csv', 'w') as f:\n    main()\n": "it trains there",
    "for fold in range(5):\n    main()\n": "the loop there trains",
    "for fold in range(5):\n    net = Net()\n    o = SGD(net.parameters())\n    main()\n": "",
    "model = main()\n": "",
    "if TRAIN:\n    main()\n": "",
    "seed(0)\n": "",
    "parser.set_defaults(run=main)\n": "",
    "for name, each in {'train': main}.items():\n    register(name, each)\n": "",
    "model = Own()\nmodel.fit()\n": "model.fit() trains",
    "model = Own()\nmodel.forward(main)\n": "",
    "L.Trainer().fit(Net(), seed(0))\n": "L.Trainer().fit() trains",
}


def script(source: str) -> Script:
    text = SourceText("train.py", source)
    assert text.tree is not None
    return Script(text.tree, discover(text))


@pytest.mark.parametrize("case", LOOPS)
def test_training_loops_that_only_a_run_of_the_script_reaches(case: str) -> None:
    source, run, expected = LOOPS[case]
    loop = script(source).loop([run])
    said = "" if loop is None else loop.described()
    assert bool(said) == bool(expected)
    assert said.endswith(expected)


@pytest.mark.parametrize("case", LIBRARIES)
def test_a_library_trains(case: str) -> None:
    body, head, by = LIBRARIES[case]
    program = script(f"{head}{NET}def main():\n    {body}\n{GUARD}    main()\n")
    loop = program.loop()
    assert loop is not None
    assert loop.by == by
    assert loop.described().startswith(f"the training by {by} in " if by else "the training")
    assert (program.loop(libraries=False) is None) == bool(by)


@pytest.mark.parametrize("case", NOT)
def test_what_trains_nothing_is_no_training(case: str) -> None:
    body, head = NOT[case]
    assert script(f"{head}{NET}def main():\n    {body}\n{GUARD}    main()\n").loop() is None


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements_that_are_the_program(statement: str) -> None:
    source = f"{LIGHTNING}{NET}{OWN}def seed(n): ...\n{LOOP.format(name='main()')}{statement}"
    program = script(source)
    tree = SourceText("train.py", source).tree
    assert tree is not None
    assert [*filter(None, map(program.says, tree.body))] == [
        s for s in [STATEMENTS[statement]] if s
    ]


def test_a_main_whose_training_stands_in_another_file_is_the_program() -> None:
    source = "from engine import fit\ndef main():\n    fit()\nmain()\n"
    tree = SourceText("train.py", source).tree
    assert tree is not None
    assert script(source).says(tree.body[-1]) == "main() is the program"
    assert script(source).loop() is None


def test_the_command_is_one_that_a_shell_takes() -> None:
    assert command("my model.py") == "trainlint run 'my model.py'"
    assert command("pkg.train:net", "pkg.train") == "trainlint run -m pkg.train"


# ---------------------------------------------------------------------- checks of files

HEAD = "import sys\nimport torch\nfrom torch import nn\n"
MODEL = """
class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(x)
"""
TRAINS = """
def main():
    open("written.txt", "w").write("here")
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
"""
ONE, TWO = MODEL.format(name="One"), MODEL.format(name="Two")
FILES = {
    "two.py": HEAD + ONE + TWO + TRAINS + GUARD + "    main()\n",
    "bare.py": HEAD + ONE + TWO + TRAINS + "main()\nlate = nn.Linear(4, 2)\n",
    "parses.py": (
        HEAD + ONE + "def main():\n    import argparse\n    p = argparse.ArgumentParser()\n"
        "    p.add_argument('data')\n    p.parse_args()\nsys.exit(main())\n"),
    "none.py": HEAD + TRAINS + "main()\n",
    "argv.py": HEAD + ONE + TWO + "path = sys.argv[1]\n",
    "exits.py": HEAD + ONE + "if len(sys.argv) < 2:\n    sys.exit(1)\n",
    "given.py": HEAD + ONE + "class Kept:\n    def __init__(self, net): ...\nkept = Kept(One())\n",
    "probed.py": (
        HEAD + ONE + "model = One()\ndef train(model):\n"
        "    optimizer = torch.optim.SGD(model.parameters(), 0.1)\n    for _ in range(30):\n"
        "        x = torch.randn(16, 4)\n        optimizer.zero_grad()\n"
        "        nn.functional.mse_loss(model(x), x[:, :2]).backward()\n        optimizer.step()\n"
        "train(model)\n"),
    "models.py": HEAD + ONE + TWO,
}  # fmt: skip
SAID = {
    "two.py": "the training loop in main(), line 23, was not looked at: trainlint run two.py",
    "bare.py": (
        "the run of the file stopped at line 26: main() trains, which `trainlint run bare.py` watches"
    ),
    "parses.py": (
        "the run of the file stopped at line 16: main() is the program, which "
        "`trainlint run parses.py` watches"
    ),
    "none.py": (
        "no model found at module level; main() (line 5) trains one: trainlint run none.py"
    ),
    "argv.py": (
        "the run of the file stopped at line 18: IndexError: list index out of range in sys.argv; "
        'put that below `if __name__ == "__main__"`'
    ),
    "exits.py": (
        "the run of the file stopped at line 12: it exits there (status 1); "
        'put that below `if __name__ == "__main__"`'
    ),
    "given.py": "",
    "probed.py": "the run of the file stopped at line 19: train() trains",
    "models.py": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("programs"), FILES)


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return trainlint.check(list(FILES))


def of(report: Report, name: str) -> list[TargetResult]:
    return [target for target in report.targets if target.target.partition("::")[0] == name]


@pytest.mark.parametrize("name", FILES)
def test_what_a_check_says_of_a_script(report: Report, name: str) -> None:
    targets = of(report, name)
    said = [
        text for each in targets for text in ([each.reason] if each.reason else []) + each.notes
    ]
    assert said == ([SAID[name]] if SAID[name] else [])
    assert {each.status for each in targets} == {"error" if name == "none.py" else "ok"}
    models = {"two.py": 2, "bare.py": 2, "argv.py": 2, "models.py": 2}
    assert len(targets) == models.get(name, 1)


def test_nothing_that_a_script_writes_is_written(report: Report, folder: Path) -> None:
    assert report.targets
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_a_note_on_a_file_is_said_once_in_each_format(report: Report) -> None:
    alone = Report(targets=[*of(report, "two.py"), *of(report, "argv.py")])
    for note in (SAID["two.py"], "list index out of range in sys.argv"):
        for form in (
            " ".join(str(alone).split()),
            alone.to_json(),
            html.render(alone),
            "\n".join(concise.remarks(alone)),
        ):
            assert form.count(note) == 1


def test_a_note_on_a_file_is_said_once_for_models_that_are_named(folder: Path) -> None:
    places = [f"{folder / 'two.py'}::{name}" for name in ("One", "Two")]
    first, second = trainlint.check(places, stages=("static", "probe")).targets
    assert [len(first.notes), len(second.notes)] == [1, 0]
    assert all(not each.notes for each in trainlint.check(places, stages=("static",)).targets)


def test_a_model_that_only_the_script_can_make_names_the_run(tmp_path: Path) -> None:
    source = f"""
import argparse
from torch import nn
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Linear(4, width)
    def forward(self, x):
        return self.body(x)
def main(args):
    net, data, loss = Net(args.width), [], None
    {LOOP.format(name="fit()").strip().replace(chr(10), chr(10) + "    ")}
    fit()
{GUARD}    main(argparse.ArgumentParser().parse_args())
"""
    path = tmp_path / "net.py"
    path.write_text(source, encoding="utf-8")
    (target,) = trainlint.check(path).targets
    assert target.status == "error"
    assert "add a function build_model() that returns one, or: trainlint run " in (
        target.reason or ""
    )
