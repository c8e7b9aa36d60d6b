"""Rules on the facts of data, with facts made by hand: what decides, from which figure on, what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainlint.data.facts import ColumnData, Data, FieldData, SplitData
from trainlint.fixes.source import SourceEdits
from trainlint.generalization.curves import Checkpoint, Generalization, HeldOut, Scores
from trainlint.observe.trace import (
    InputTrace,
    LoaderTrace,
    LossTrace,
    ModelTrace,
    OptimizerTrace,
    TargetTrace,
    Trace,
)
from trainlint.registry import find_rule
from trainlint.rule import Confidence, Finding, NotMeasurable, Severity
from trainlint.sites import Site, calling_site


def found(code: str, **facts: Any) -> list[Finding]:
    """What a rule says of these facts; what it cannot measure is left out."""
    return [f for f in asked(code, **facts) if isinstance(f, Finding)]


def asked(code: str, **facts: Any) -> list[Finding | NotMeasurable]:
    rule = find_rule(code)
    given = {parameter: facts.pop(parameter, None) for parameter in rule.facts}
    assert all(given[p] is not None for p in rule.facts if p not in rule.optional)
    return list(rule.function(**given, **facts))


def one(code: str, **facts: Any) -> Finding:
    findings = found(code, **facts)
    assert len(findings) == 1
    return findings[0]


def titles(finding: Finding) -> str:
    return "\n".join(fix.title for fix in finding.fixes)


# ---------------------------------------------------------------------- facts


def field(
    kind: str = "table",
    mean: float = 0.0,
    std: float = 1.0,
    columns: Sequence[tuple[float, float]] = (),
    least: float | None = None,
    largest: float | None = None,
    **others: Any,
) -> FieldData:
    low = mean - 3 * std if least is None else least
    high = mean + 3 * std if largest is None else largest
    named = {"name": "input", "dtype": "float32", "shape": (len(columns) or 8,)}
    return FieldData(
        kind=kind,
        mean=mean,
        std=std,
        least=low,
        largest=high,
        columns=tuple(ColumnData(m, s, m - 3 * s, m + 3 * s) for m, s in columns),
        **{**named, **others},
    )


def classes(counts: Mapping[int, int]) -> FieldData:
    return field(
        "classes", name="target", dtype="int64", shape=(), least=0, largest=1, counts=dict(counts)
    )


def split(
    *inputs: FieldData, target: FieldData | None = None, size: int | None = 400, **others: Any
) -> SplitData:
    plain = {"batch_size": 20, "shuffles": True, "repeatable": True, "read": size or 400}
    named = {"name": "train_loader", "site": None}
    return SplitData(
        size=size, inputs=inputs or (field(),), target=target, **{**named, **plain, **others}
    )


def loss(kind: str = "cross_entropy", values: Sequence[float] = (), **others: Any) -> LossTrace:
    values = values or [1.0] * 50
    return LossTrace(kind, None, range(len(values)), values, **{"is_plain": True, **others})


def trace(*objectives: LossTrace, **others: Any) -> Trace:
    steps = len(objectives[0].steps) if objectives else 50
    losses = [pair for each in objectives[:1] for pair in zip(each.steps, each.values, strict=True)]
    plain = {"models": (), "optimizers": (), "objectives": objectives, "losses": losses}
    return Trace(steps=steps, recorded=range(steps), **{**plain, **others})


def measured(
    train: float,
    validation: float,
    *,
    guess: float = 1.0,
    epochs: float = 5.0,
    n: int = 200,
    **others: Any,
) -> Generalization:
    """Losses that scatter by 0.1 around their means, after 25 and 50 steps."""

    def scores(mean: float) -> Scores:
        return Scores([mean + 0.1 * (-1) ** i for i in range(n)], **others)

    points = (
        Checkpoint(25, scores(train), scores(validation - 0.05)),
        Checkpoint(50, scores(train), scores(validation)),
    )
    return Generalization(points, guess=guess, epochs=epochs, samples=100)


def layer_gets(**figures: Any) -> ModelTrace:
    plain = {"layer": "fc", "operation": "linear", "shape": (20, 8), "dtype": "float32", "mean": 0.0,
             "std": 1.0, "least": -3.0, "largest": 3.0, "whole": 0.0, "zero": 0.0}  # fmt: skip
    given = InputTrace(**{**plain, **figures})
    return ModelTrace("Net", None, True, {}, (), (), {}, inputs=(given,))


# ---------------------------------------------------------------------- DAT001


TABLE = [(12.0, 3.0), (700.0, 300.0), (2.0, 0.5), (90.0, 14.0)]


def test_the_figures_of_a_table_are_in_the_fix() -> None:
    watched = trace(models=(layer_gets(mean=200.0, std=330.0, columns=TABLE),))
    data = Data(split(field(mean=201.0, std=330.0, columns=TABLE)))
    finding = one("DAT001", trace=watched, data=data)
    assert finding.severity is Severity.WARNING
    assert "[12, 700, 2, 90]" in titles(finding)
    assert "[3, 300, 0.5, 14]" in titles(finding)


def test_pixels_get_a_normalize_with_measured_figures() -> None:
    watched = trace(
        models=(
            layer_gets(mean=33.0, std=78.0, least=0, largest=255, whole=1.0, shape=(20, 3, 8, 8)),
        )
    )
    image = field(
        "image", 33.3, 78.6, [(25.5, 51.0), (51.0, 76.5), (0.0, 102.0)], least=0, largest=255
    )
    said = titles(one("DAT001", trace=watched, data=Data(split(image))))
    assert "Normalize(mean=[0.100, 0.200, 0.000], std=[0.200, 0.300, 0.400])" in said
    assert "x / 255" in said


def test_what_the_model_changed_before_its_layer_keeps_the_figures_that_were_seen() -> None:
    watched = trace(models=(layer_gets(mean=100.0, std=50.0),))
    data = Data(split(field(mean=1.0, std=0.5, columns=[(1.0, 0.5)])))
    assert "(x - 100) / 50" in titles(one("DAT001", trace=watched, data=data))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([(0.0, 10.0), (0.0, 0.002)], [Severity.INFO]),
        ([(0.0, 10.0), (0.0, 0.02)], []),
        # A rare flag: its deviation is only how often it is set.
        ([(0.0, 10.0), (0.00001, (0.00001 * 0.99999) ** 0.5)], []),
    ],
)
def test_columns_of_other_orders_are_advice(
    columns: list[tuple[float, float]], expected: list[Severity]
) -> None:
    watched = trace(models=(layer_gets(std=7.0, columns=columns),))
    assert [f.severity for f in found("DAT001", trace=watched)] == expected


def test_validation_that_was_not_scaled_is_named() -> None:
    scaled = field(columns=[(0.0, 1.0)] * 4)
    raw = field(mean=200.0, std=330.0, columns=TABLE)
    data = Data(split(scaled), split(raw, name="val_loader"))
    finding = one("DAT001", data=data)
    assert "val_loader and train_loader are scaled differently" in finding.message
    assert "mean 200 and deviation 330" in finding.message


def test_one_scaling_for_both_is_sound_and_so_is_a_shift() -> None:
    train = field(columns=[(0.0, 1.0)] * 4)
    shifted = field(mean=2.0, columns=[(2.0, 1.4)] * 4)
    assert not found("DAT001", data=Data(split(train), split(shifted)))


def test_two_sets_each_scaled_by_itself() -> None:
    train = field(columns=[(1e-8, 1.0)] * 4)
    own = replace(train, columns=[ColumnData(-1e-8, 1.0, -2.5, 2.8)] * 4)
    shared = replace(train, columns=[ColumnData(0.06, 0.96, -2.5, 2.8)] * 4)
    assert "figures of their own" in one("DAT001", data=Data(split(train), split(own))).message
    assert not found("DAT001", data=Data(split(train), split(shared)))
    # Of a part of the samples nobody can tell, and the same data twice are no second scaling.
    assert not found("DAT001", data=Data(split(train), split(own, size=9000, read=400)))
    assert not found("DAT001", data=Data(split(train), split(train)))


def test_images_of_which_one_set_kept_its_pixels() -> None:
    centred = field("image", -0.7, 0.6, [(-0.7, 0.6)], least=-1.0, largest=1.0)
    raw = field("image", 0.13, 0.31, [(0.13, 0.31)], least=0.0, largest=1.0)
    darker = field("image", 0.09, 0.25, [(0.09, 0.25)], least=0.0, largest=1.0)
    assert found("DAT001", data=Data(split(centred), split(raw)))
    assert found("DAT001", data=Data(split(raw), split(centred)))
    assert not found("DAT001", data=Data(split(raw), split(darker)))


def test_ids_have_no_scale() -> None:
    low, high = field("ids", 5.0, 2.0), field("ids", 500.0, 200.0)
    assert not found("DAT001", data=Data(split(low), split(high)))


# ---------------------------------------------------------------------- DAT003


def in_order(runs: float | None = 2 / 201, **others: Any) -> Data:
    target = classes({0: 200, 1: 200})
    return Data(split(target=target, **{"shuffles": False, "runs": runs, **others}))


def labels(*batches: Mapping[int, int]) -> Trace:
    seen = TargetTrace(0, 1, integral=True, batches=list(enumerate(batches)), loader=0)
    loaders = (LoaderTrace(None, "SequentialSampler", (0,)),)
    return trace(loss(targets=seen, classes=2), loaders=loaders)


def test_sorted_data_are_found_before_the_second_class_comes() -> None:
    only_the_first = labels(*[{0: 20}] * 10)
    assert [type(f) for f in asked("DAT003", trace=only_the_first)] == [NotMeasurable]
    finding = asked("DAT003", trace=only_the_first, data=in_order())
    assert [type(f) for f in finding] == [Finding]
    assert "about 200 samples of one class in a row" in one("DAT003", data=in_order()).message


def test_sorted_data_in_sorted_batches_are_one_finding() -> None:
    watched = labels(*[{0: 20}] * 5, *[{1: 20}] * 5)
    assert "10 of 10 recorded batches" in one("DAT003", trace=watched, data=in_order()).message


def test_batches_that_are_mixed_after_all_refute_it() -> None:
    assert not found("DAT003", trace=labels(*[{0: 11, 1: 9}] * 10), data=in_order())


@pytest.mark.parametrize(
    "data",
    [
        in_order(runs=1.0),
        in_order(runs=None),
        in_order(shuffles=True),
        in_order(shuffles=None),
        in_order(runs=0.2),  # runs of ten samples, batches of twenty
        Data(split(target=classes({0: 396, 1: 4}), shuffles=False, runs=0.9)),
    ],
)
def test_other_orders_are_left_alone(data: Data) -> None:
    assert not found("DAT003", data=data)


# ---------------------------------------------------------------------- DAT005


RARE = {0: 300, 1: 290, 2: 10}


def imbalanced(counts: Mapping[int, int] = RARE) -> Data:
    halves = dict(counts)
    return Data(
        split(target=classes(counts), size=sum(counts.values())),
        split(target=classes(halves), size=sum(counts.values()), name="val_loader"),
    )


def blind(drawn: Mapping[int, int] = {0: 10, 1: 10}, **others: Any) -> Trace:
    """Trained with a plain loss on such batches; class 2 is never predicted."""
    seen = TargetTrace(0, 2, integral=True, batches=[(s, drawn) for s in range(50)])
    options = {"train": 0.2, "validation": 0.3, "predicted": {0: 300, 1: 300}, **others}
    figures = {key: options.pop(key) for key in ("train", "validation")}
    return trace(loss(targets=seen), generalization=measured(**figures, **options))


def test_imbalance_is_advice_with_counts_and_weights() -> None:
    finding = one("DAT005", data=imbalanced())
    assert finding.severity is Severity.INFO
    assert "class 2 has 10 of 600 samples" in finding.message
    assert finding.evidence["effective"]["2"] == pytest.approx(9.96, abs=0.1)
    assert finding.evidence["effective"]["0"] == pytest.approx(259.3, abs=0.1)
    weights = [float(w) for w in titles(finding).split("[")[1].split("]")[0].split(",")]
    assert sum(weights) / 3 == pytest.approx(1, abs=0.01)
    assert weights[2] / weights[0] == pytest.approx(259.3 / 9.96, rel=0.01)


def test_a_rare_class_that_is_never_predicted_is_a_warning_until_more_steps_tell() -> None:
    finding = one("DAT005", data=imbalanced(), trace=blind())
    assert finding.severity is Severity.WARNING
    assert finding.confidence is Confidence.POSSIBLE
    assert finding.evidence["never_predicted"] == [2]


@pytest.mark.parametrize(
    "watched",
    [
        blind(predicted={0: 300, 1: 295, 2: 5}),
        blind(train=0.95),  # has learnt nothing yet
        blind(epochs=0.5),
        blind(drawn={0: 7, 1: 7, 2: 6}),  # a weighted sampler
        blind(predicted={0: 90, 1: 80}),  # three rare samples were judged
        replace(blind(), objectives=[loss(is_plain=False, targets=blind().objectives[0].targets)]),
        replace(blind(), objectives=[loss("mse_loss", targets=blind().objectives[0].targets)]),
        replace(blind(), generalization=None),
    ],
)
def test_it_stays_advice_where_harm_is_not_measured(watched: Trace) -> None:
    assert one("DAT005", data=imbalanced(), trace=watched).severity is Severity.INFO


def test_two_classes_get_a_weight_for_the_positive_one() -> None:
    assert "pos_weight=torch.tensor(19)" in titles(one("DAT005", data=imbalanced({0: 570, 1: 30})))


@pytest.mark.parametrize(
    "target",
    [
        classes({0: 300, 1: 200}),
        replace(
            classes(RARE), shape=(32, 32)
        ),  # a map of classes: the background is no class to weigh
        replace(classes(RARE), kind="ids"),
        replace(classes(RARE), counts={}),
        None,
    ],
)
def test_no_word_on_balance_where_there_are_no_rare_classes(target: FieldData | None) -> None:
    assert not found("DAT005", data=Data(split(target=target)))


# ---------------------------------------------------------------------- DAT007


def targets(mean: float, std: float) -> Data:
    return Data(split(target=field("values", mean, std, name="target", shape=(1,))))


def squared(first: float, last: float, guess: float, **others: Any) -> Trace:
    values = [first + (last - first) * i / 59 for i in range(60)]
    return trace(loss("mse_loss", values, guess=guess, **others))


def test_large_targets_that_are_not_reached_are_a_warning() -> None:
    finding = one("DAT007", data=targets(150.0, 80.0), trace=squared(28900, 28700, 6400))
    assert finding.severity is Severity.WARNING
    assert finding.confidence is Confidence.POSSIBLE
    assert "starts near 2.89e+04" in finding.message
    assert "60 steps later it still is 4.4" in finding.message
    assert "(y - 150) / 80" in titles(finding)


def test_a_loss_that_is_not_finite_is_a_warning() -> None:
    diverged = squared(28900, float("nan"), 6400)
    finding = one("DAT007", data=targets(150.0, 80.0), trace=diverged)
    assert finding.severity is Severity.WARNING
    assert "not finite" in finding.message


@pytest.mark.parametrize(
    "watched",
    [squared(28900, 900, 6400), squared(28900, 28700, 6400, is_plain=False)],
)
def test_large_targets_that_are_learnt_all_the_same_are_advice(watched: Trace) -> None:
    assert one("DAT007", data=targets(150.0, 80.0), trace=watched).severity is Severity.INFO


def test_tiny_targets_start_below_the_noise_of_the_answers() -> None:
    finding = one("DAT007", data=targets(0.0, 0.001), trace=squared(0.1, 1e-7, 1e-6))
    assert "noise" in finding.message


@pytest.mark.parametrize(
    ("data", "watched"),
    [
        (targets(0.0, 1.0), squared(1.2, 0.3, 1.0)),
        (targets(2.0, 4.0), squared(20, 3, 16.0)),
        (targets(150.0, 80.0), trace(loss("l1_loss", guess=6400))),
        # The loop scales them itself: the loss gets others.
        (targets(150.0, 80.0), squared(1.2, 0.3, 1.0)),
        (Data(split(target=classes(RARE))), squared(28900, 28700, 6400)),
        (Data(split()), squared(28900, 28700, 6400)),
    ],
)
def test_targets_that_are_scaled_or_not_squared_are_left_alone(data: Data, watched: Trace) -> None:
    assert not found("DAT007", data=data, trace=watched)


# ---------------------------------------------------------------------- DAT008, GEN006, REG006


IMAGE = field("image", 0.5, 0.2, [(0.5, 0.2)], shape=(1, 8, 8))
OVERFIT = trace(
    generalization=measured(0.1, 0.9),
    optimizers=(OptimizerTrace("Adam", None, 50, {1: 50}, [{"weight_decay": 0}], []),),
)
SOUND = replace(OVERFIT, generalization=measured(0.30, 0.31))


def test_images_learnt_by_heart_could_be_augmented() -> None:
    finding = one("DAT008", data=Data(split(IMAGE)), trace=OVERFIT)
    assert "400 training images" in finding.message
    assert "RandomCrop(8, padding=1)" in titles(finding)


@pytest.mark.parametrize(
    ("train", "watched"),
    [
        (split(IMAGE), SOUND),
        (split(IMAGE), replace(OVERFIT, generalization=None)),
        (split(IMAGE, repeatable=False), OVERFIT),
        (split(IMAGE, repeatable=None), OVERFIT),
        (split(IMAGE, size=60_000, read=4096), OVERFIT),
        (split(IMAGE, size=None), OVERFIT),
        (split(), OVERFIT),
    ],
)
def test_no_augmentation_is_asked_for_otherwise(train: SplitData, watched: Trace) -> None:
    assert not found("DAT008", data=Data(train), trace=watched)


def test_parameters_a_sample_are_stated_with_the_gap() -> None:
    data = Data(split(), trainable=10_000)
    assert "10000 trainable parameters and 400 training samples, 25 a sample" in (
        one("GEN006", data=data).message
    )
    assert "was not measured" in one("GEN006", data=data).message
    assert "80% of a constant answer" in one("GEN006", data=data, trace=OVERFIT).message
    assert not found("GEN006", data=Data(split(), trainable=4000))
    assert not found("GEN006", data=Data(split(size=None), trainable=10**7))
    maps = split(target=replace(classes(RARE), shape=(8, 8)))
    assert not found("GEN006", data=Data(maps, trainable=10**7))


def test_a_gap_by_a_shift_between_the_data_is_no_overfitting() -> None:
    def scores(mean: float) -> Scores:
        return Scores([mean + 0.1 * (-1) ** i for i in range(200)])

    held_out = HeldOut(scores(0.1), scores(0.12), scores(0.9))
    shifted = replace(OVERFIT, generalization=replace(OVERFIT.generalization, held_out=held_out))
    assert not found("DAT008", data=Data(split(IMAGE)), trace=shifted)
    assert not found("REG006", data=Data(split()), trace=shifted, edits=SourceEdits())


def test_an_overfit_model_without_any_regularisation_is_told_which() -> None:
    finding = one("REG006", trace=OVERFIT, data=Data(split()), edits=SourceEdits())
    assert "AdamW" in titles(finding)
    assert "at step 25" in titles(finding)
    sgd = replace(OVERFIT, optimizers=(replace(OVERFIT.optimizers[0], kind="SGD"),))
    assert "5e-4" in titles(one("REG006", trace=sgd, data=Data(split()), edits=SourceEdits()))


def test_what_is_there_of_it_is_seen(tmp_path: Path) -> None:
    decays = (replace(OVERFIT.optimizers[0], groups=[{"weight_decay": 0}, {"weight_decay": 0.01}]),)
    for watched, train in (
        (SOUND, split()),
        (replace(OVERFIT, optimizers=decays), split()),
        (OVERFIT, split(repeatable=False)),
        (OVERFIT, split(repeatable=None)),
        (OVERFIT, split(site=written(tmp_path, "stopper = EarlyStopping(patience=5)"))),
    ):
        assert not found("REG006", trace=watched, data=Data(train), edits=SourceEdits())


# ---------------------------------------------------------------------- GEN004


def written(folder: Path, text: str) -> Site:
    """A place in a file with this text."""
    path = folder / "train.py"
    path.write_text(text, encoding="utf-8")
    namespace: dict[str, Any] = {"where": calling_site}
    exec(compile("site = where()", str(path), "exec"), namespace)
    site: Site = namespace["site"]
    assert site.filename == str(path)
    return site


def judged(folder: Path, text: str, **others: Any) -> list[Finding]:
    train = split(target=classes({0: 9, 1: 9}), site=written(folder, text))
    return found("GEN004", data=Data(train, **others), edits=SourceEdits())


def test_no_validation_data_is_advice(tmp_path: Path) -> None:
    assert (
        "train_loader is all the data there is" in judged(tmp_path, "train_loader = 1")[0].message
    )
    for text in ("x_val = 1", "val_loader = 1", "def evaluate(): ...", "a, b = random_split(d)",
                 "for f in KFold(5): ...", "model.eval()", "X_test = 1"):  # fmt: skip
        assert not judged(tmp_path, text), text
    assert judged(tmp_path, "loss = cross_entropy(x.split(3))")
    assert not judged(tmp_path, "train_loader = 1", validation=split(name="val_loader"))


CHOOSES = {
    "acc": "acc = evaluate(model, test_loader)\nif acc > best_acc:\n    torch.save(model, 'a.pt')",
    "test_loss": "if test_loss < best:\n    state = copy.deepcopy(model.state_dict())",
    "total": (
        "for x, y in testloader:\n    total += f(x)\nif best_loss > total:\n    model.state_dict()"
    ),
    "test_acc": "scheduler.step(test_acc)",
    "figure": "def f():\n    figure = g(x_test)\n    if figure >= self.best:\n        torch.save(m)",
}
JUDGES = (
    "test_acc = evaluate(model, test_loader)\nprint(test_acc)",
    "if acc > best_acc:\n    torch.save(model, 'a.pt')",
    "if val_acc > best_acc:\n    torch.save(model, 'a.pt')\ntest_acc = f(test_loader)",
    "if test_acc > best_acc:\n    best_acc = test_acc",
    "if test_acc > 0.9:\n    print('good')\ntorch.save(model, 'a.pt')",
    "if epoch % test_every == 0:\n    torch.save(model, 'a.pt')",
    "scheduler.step()\nfit.step(test_acc)",
    "latest = 1\nif latest > best:\n    torch.save(m)",
)


@pytest.mark.parametrize("name", CHOOSES)
def test_test_data_that_choose_are_named(name: str, tmp_path: Path) -> None:
    (finding,) = judged(tmp_path, CHOOSES[name])
    assert finding.evidence == {"chosen_by": name}


@pytest.mark.parametrize("text", JUDGES)
def test_test_data_that_judge_are_left_alone(text: str, tmp_path: Path) -> None:
    findings = judged(tmp_path, text, validation=split(name="test_loader"))
    assert not findings
