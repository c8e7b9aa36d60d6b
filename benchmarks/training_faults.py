"""Faults of training loops, for every rule that reads a trace: what breaks a sound `Recipe`.

`FAULTS` holds them. A fault changes the recipe in place and tells whether it could: a loop without clipping
has none to move behind the step. Faults `by_effect` are only faults where they do harm, which the run
without them decides (`calibration.py`); the others are faults whatever comes of them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import lr_scheduler

from benchmarks.training_models import supervised_loss
from benchmarks.training_runs import Recipe

Break = Callable[[Recipe, random.Random], bool | None]


@dataclass(frozen=True)
class Fault:
    """`also` are rules that name the same fault, where another one's name fits as well."""

    rule: str
    name: str
    apply: Break
    by_effect: bool
    also: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.rule} {self.name}"


FAULTS: list[Fault] = []
# Rules on traces that came later, or need more than a trace: their faults are to be written.
NOT_YET = frozenset({"DAT004", "DAT005", "DAT007", "DAT008", "GRD001", "GRD002"})
# Those on what holds for other data, and advice on how that is known: see `generalization.py`.
ELSEWHERE = frozenset({"GEN001", "GEN002", "GEN003", "GEN004", "GEN006", "GEN007", "REG006"})
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
RECTIFIERS = (nn.ReLU, nn.ReLU6)


def fault(rule: str, name: str, *also: str, by_effect: bool = False) -> Callable[[Break], Break]:
    def add(apply: Break) -> Break:
        FAULTS.append(Fault(rule, name, apply, by_effect, also))
        return apply

    return add


def layers(r: Recipe) -> list[tuple[str, nn.Module]]:
    """Layers with weights that are trained, in order of construction."""
    return [
        (path, module)
        for path, module in r.model.named_modules()
        if isinstance(module, LAYERS)
        and any(p.requires_grad for p in module.parameters(recurse=False))
    ]


def _has(r: Recipe, kinds: Any) -> bool:
    return any(isinstance(module, kinds) for module in r.model.modules())


def _is_noisy(r: Recipe) -> bool:
    """Whether the model's modes differ."""
    return any(
        isinstance(module, BATCH_NORMS) or (isinstance(module, nn.Dropout) and module.p > 0)
        for module in r.model.modules()
    )


def _is_plain_sgd(r: Recipe) -> bool:
    return r.optimizer.startswith("SGD")


def _in_epochs(r: Recipe) -> bool:
    return r.method not in ("adversarial", "actor_critic", "q_learning") and r.optimizer != "LBFGS"


def _is_table(r: Recipe) -> bool:
    """Whether the outputs are a table of classes, for a loop of one's own loss."""
    return r.is_supervised and r.data.task == "classes" and r.data.kind not in ("text", "mask")


def _of_output(r: Recipe, change: Callable[[Tensor], Tensor]) -> bool:
    """Within the model, behind its last layer."""
    last = [module for module in r.model.modules() if isinstance(module, nn.Linear)]
    if not last or last[-1].out_features != r.data.outputs or not r.is_supervised:
        return False
    last[-1].register_forward_hook(lambda _, __, output: change(output))
    return True


# ---------------------------------------------------------------------- the rate


def _faster(times: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        if r.optimizer == "LBFGS":
            return False
        r.rate *= times
        return True

    return apply


for _times in (30, 100, 1000):
    fault("OPT002", f"rate ×{_times}", "GRD003", by_effect=True)(_faster(_times))
for _times in (1e-2, 1e-3, 1e-4):
    fault("OPT003", f"rate ×{_times:g}", by_effect=True)(_faster(_times))


@fault("OPT002", "momentum 0.999 beside a rate ×5", "GRD003", by_effect=True)
def momentum(r: Recipe, _: random.Random) -> bool:
    if not _is_plain_sgd(r):
        return False
    r.options["momentum"] = 0.999
    r.rate *= 5
    return True


@fault("OPT002", "rate of SGD kept for Adam", "GRD003", by_effect=True)
def rate_of_sgd(r: Recipe, rng: random.Random) -> bool:
    if r.optimizer not in ("Adam", "AdamW", "NAdam"):
        return False
    r.rate = rng.choice([0.1, 0.3, 1.0])
    return True


@fault("OPT003", "rate of Adam kept for SGD", by_effect=True)
def rate_of_adam(r: Recipe, rng: random.Random) -> bool:
    if r.optimizer == "LBFGS" or not r.architecture.stable:
        return False
    r.optimizer, r.options = "SGD", {}
    r.rate = rng.choice([1e-4, 1e-5])
    return True


# ---------------------------------------------------------------------- what the optimizer holds


@fault("OPT001", "the head alone")
def head_alone(r: Recipe, _: random.Random) -> bool:
    some = layers(r)
    if len(some) < 2 or not _in_epochs(r):
        return False
    head = some[-1][1]
    r.changes.parameters = lambda _: head.parameters()
    return True


@fault("OPT001", "one layer left out")
def one_left_out(r: Recipe, rng: random.Random) -> bool:
    some = layers(r)
    if len(some) < 3 or not _in_epochs(r):
        return False
    left = {id(p) for p in rng.choice(some[:-1])[1].parameters()}
    r.changes.parameters = lambda model: [p for p in model.parameters() if id(p) not in left]
    return True


@fault("OPT001", "head replaced after the optimizer was made")
def head_replaced(r: Recipe, _: random.Random) -> bool:
    if (
        not isinstance(r.model, nn.Sequential)
        or not isinstance(r.model[-1], nn.Linear)
        or not _in_epochs(r)
    ):
        return False

    def made(r: Recipe, _: Any) -> None:
        model: Any = r.model
        model[-1] = nn.Linear(model[-1].in_features, model[-1].out_features)

    r.changes.made = made
    return len(layers(r)) > 1


@fault("OPT001", "another model's parameters")
def another_model(r: Recipe, _: random.Random) -> bool:
    if not _in_epochs(r):
        return False
    other = r.architecture.build(r.data)
    r.changes.parameters = lambda _: list(other.parameters())
    return True


@fault("OPT001", "cleared between backward and step")
def cleared_between(r: Recipe, _: random.Random) -> bool:
    r.changes.zeroing = "between"
    return _in_epochs(r)


@fault("OPT007", "the last layers frozen")
def last_frozen(r: Recipe, _: random.Random) -> bool:
    some = layers(r)
    if len(some) < 3 or r.architecture.name in ("linear_probe", "low_rank_adaptation"):
        return False
    total = sum(p.numel() for p in r.model.parameters())
    frozen = 0
    for _, layer in reversed(some[1:]):
        layer.requires_grad_(False)
        frozen += sum(p.numel() for p in layer.parameters())
        if frozen > 0.6 * total:
            break
    return frozen > 0.5 * total


@fault("OPT007", "all frozen but the first layer")
def but_the_first(r: Recipe, _: random.Random) -> bool:
    some = layers(r)
    total = sum(p.numel() for p in r.model.parameters())
    first = sum(p.numel() for p in some[0][1].parameters()) if some else 0
    if len(some) < 2 or not 0.05 < first / total < 0.5 or r.architecture.name == "linear_probe":
        return False
    if r.architecture.name == "low_rank_adaptation":
        return False
    r.model.requires_grad_(False)
    some[0][1].requires_grad_(True)
    return True


# ---------------------------------------------------------------------- decay


def _decay(strength: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        if r.optimizer == "LBFGS" or r.method == "adversarial":
            return False
        scale = r.rate if _is_plain_sgd(r) or r.optimizer == "AdamW" else 1.0
        r.options["weight_decay"] = strength / scale
        return True

    return apply


# Share of the weights that a step takes; for Adam and its kind λ itself.
for _strength in (0.02, 0.1, 1.0):
    fault("OPT004", f"a decay of {_strength:g} a step", by_effect=True)(_decay(_strength))


@fault("OPT005", "decay of norms and biases")
def decayed_biases(r: Recipe, rng: random.Random) -> bool:
    if r.optimizer == "LBFGS" or r.method == "adversarial":
        return False
    r.habits = r.habits - {"groups"}
    r.options["weight_decay"] = rng.choice([0.01, 0.05, 0.1])
    return any(p.dim() <= 1 and p.requires_grad for p in r.model.parameters())


@fault("OPT008", "L2 in Adam")
def l2_in_adam(r: Recipe, rng: random.Random) -> bool:
    if r.optimizer not in ("Adam", "NAdam", "RMSprop", "Adagrad") or r.method == "adversarial":
        return False
    r.options["weight_decay"] = rng.choice([1e-5, 1e-4, 1e-3])
    return True


@fault("OPT009", "micro-batches summed up")
def summed_up(r: Recipe, rng: random.Random) -> bool:
    r.accumulation, r.changes.unscaled = rng.choice([2, 4, 8]), True
    return r.is_supervised and _in_epochs(r) and _is_plain_sgd(r)


def _option(kinds: tuple[str, ...], **options: Any) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        r.options.update(options)
        # OneCycleLR sets momentum and betas itself.
        return r.optimizer in kinds and r.method != "adversarial" and r.schedule != "one-cycle"

    return apply


ADAMS = ("Adam", "AdamW", "NAdam")
MOVING = ("SGD with momentum", "SGD with Nesterov")
fault("OPT010", "betas the wrong way round")(_option(ADAMS, betas=(0.999, 0.9)))
fault("OPT010", "an ε of 0")(_option((*ADAMS, "RMSprop"), eps=0.0))
fault("OPT010", "an ε of 100")(_option((*ADAMS, "RMSprop"), eps=100.0))
fault("OPT010", "a momentum of 1")(_option(("SGD", *MOVING), momentum=1.0))
fault("OPT010", "a dampening of 1")(_option(("SGD with momentum",), dampening=1.0))
fault("OPT010", "an α of 0.01, as 1 − α elsewhere")(_option(("RMSprop",), alpha=0.01))


@fault("OPT010", "clipped to 0")
def clipped_to_zero(r: Recipe, _: random.Random) -> bool:
    r.clip = 0.0
    return r.method != "adversarial" and r.optimizer != "LBFGS"


# ---------------------------------------------------------------------- schedules


@fault("OPT006", "scheduler before the optimizer")
def scheduler_first(r: Recipe, rng: random.Random) -> bool:
    if not _in_epochs(r):
        return False
    gamma = rng.choice([0.9, 0.5])

    def schedule(optimizer: Any, _: int, __: int) -> tuple[Any, bool]:
        made = lr_scheduler.ExponentialLR(optimizer, gamma)
        made.step()
        return made, False

    r.changes.schedule = schedule
    return True


@fault("OPT006", "decay per epoch made per batch", by_effect=True)
def decay_per_batch(r: Recipe, rng: random.Random) -> bool:
    gamma = rng.choice([0.7, 0.8])
    r.changes.schedule = lambda optimizer, _, __: (
        lr_scheduler.ExponentialLR(optimizer, gamma),
        True,
    )
    return _in_epochs(r)


@fault("OPT006", "a linear decay that is over too soon")
def short_decay(r: Recipe, rng: random.Random) -> bool:
    share = rng.choice([0.3, 0.5])

    def schedule(optimizer: Any, steps: int, _: int) -> tuple[Any, bool]:
        length = int(share * steps)
        return lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / length)), True

    r.changes.schedule = schedule
    return _in_epochs(r)


@fault("OPT006", "OneCycle once an epoch", by_effect=True)
def slow_cycle(r: Recipe, _: random.Random) -> bool:
    def schedule(optimizer: Any, steps: int, _: int) -> tuple[Any, bool]:
        return lr_scheduler.OneCycleLR(optimizer, r.rate, total_steps=steps), False

    r.changes.schedule = schedule
    return _in_epochs(r) and r.optimizer != "Adagrad"


@fault("OPT006", "cosine of epochs stepped per batch")
def quick_cosine(r: Recipe, rng: random.Random) -> bool:
    length = rng.choice([5, 10])
    r.changes.schedule = lambda optimizer, _, __: (
        lr_scheduler.CosineAnnealingLR(optimizer, length),
        True,
    )
    return _in_epochs(r)


@fault("OPT006", "warm-up from 0 that steps once an epoch")
def slow_warm_up(r: Recipe, _: random.Random) -> bool:
    r.changes.schedule = lambda optimizer, _, __: (
        lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 3)),
        False,
    )
    # As people have it: an epoch is a good part of the run.
    return _in_epochs(r) and len(r.data.training[0]) // r.batch // r.accumulation >= 20


# ---------------------------------------------------------------------- gradients


@fault("GRD007", "never cleared")
def never_cleared(r: Recipe, _: random.Random) -> bool:
    r.changes.zeroing = "never"
    return r.optimizer != "LBFGS"


@fault("GRD007", "cleared once an epoch")
def cleared_by_epoch(r: Recipe, _: random.Random) -> bool:
    r.changes.zeroing = "epoch"
    return _in_epochs(r)


@fault("GRD009", "clipped after the step")
def clipped_late(r: Recipe, rng: random.Random) -> bool:
    if r.method == "adversarial" or r.optimizer == "LBFGS":
        return False
    r.clip = r.clip or rng.choice([0.5, 1.0])
    r.changes.clips_after = True
    return True


def _clip(limit: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        r.clip = limit
        return r.method != "adversarial" and r.optimizer != "LBFGS" and _is_plain_sgd(r)

    return apply


for _limit in (1e-2, 1e-3, 1e-4):
    fault("GRD006", f"clipped to {_limit:g}", by_effect=True)(_clip(_limit))


def _kept(how: str) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        r.changes.keeping = how
        return _in_epochs(r)

    return apply


fault("GRD008", "losses in a list")(_kept("list"))
fault("GRD008", "losses in a sum")(_kept("sum"))


@fault("GRD005", "recurrent weights ×3, not clipped", "OPT002", "GRD003", by_effect=True)
def exploding_recurrence(r: Recipe, rng: random.Random) -> bool:
    return _recurrent(r, rng.choice([3.0, 5.0]), 1)


@fault("GRD005", "a high rate, not clipped", "OPT002", "GRD003", by_effect=True)
def fast_recurrence(r: Recipe, rng: random.Random) -> bool:
    return _recurrent(r, 1.0, rng.choice([10, 30]))


def _recurrent(r: Recipe, factor: float, rate: float) -> bool:
    rnn = [module for module in r.model.modules() if isinstance(module, nn.RNNBase)]
    if not rnn or r.optimizer == "LBFGS":
        return False
    r.clip, r.habits = None, r.habits - {"value clipping"}
    r.rate *= rate
    with torch.no_grad():
        for name, weight in rnn[0].named_parameters():
            if "weight_hh" in name:
                weight.mul_(factor)
    return True


def _inner(r: Recipe, rng: random.Random) -> nn.Module | None:
    """A layer that is neither the first nor the last."""
    some = layers(r)
    return rng.choice(some[1:-1])[1] if len(some) > 2 else None


@fault("GRD004", "a hidden result detached", "OPT001")
def detached(r: Recipe, rng: random.Random) -> bool:
    layer = _inner(r, rng)
    if layer is None or not _reaches_alone(r, layer):
        return False
    layer.register_forward_hook(lambda _, __, output: output.detach())
    return True


@fault("GRD004", "a hidden result through numpy")
def through_numpy(r: Recipe, rng: random.Random) -> bool:
    layer = _inner(r, rng)
    if layer is None or "half" in r.habits or not _reaches_alone(r, layer):
        return False
    layer.register_forward_hook(lambda _, __, output: torch.from_numpy(output.detach().numpy()))
    return True


@fault("GRD004", "a layer that is never called")
def never_called(r: Recipe, rng: random.Random) -> bool:
    total = sum(p.numel() for p in r.model.parameters())
    width = max(8, int((rng.choice([0.1, 0.3]) * total) ** 0.5))
    r.model.add_module("auxiliary", nn.Linear(width, width))
    return not isinstance(r.model, nn.Sequential)


@fault("GRD004", "first layer under no_grad")
def under_no_grad(r: Recipe, _: random.Random) -> bool:
    some = layers(r)
    if len(some) < 2 or some[0][0] == "" or not _reaches_alone(r, some[0][1]):
        return False
    layer: Any = some[0][1]
    forward = layer.forward

    def without(*args: Any) -> Tensor:
        with torch.no_grad():
            return forward(*args)

    layer.forward = without
    return True


def _reaches_alone(r: Recipe, layer: nn.Module) -> bool:
    """Whether the model's loss hangs on parameters that only lead through this layer, and on others."""
    if not r.is_supervised:
        return False
    handle = layer.register_forward_hook(lambda _, __, output: output.detach())
    try:
        x, y = r.data.held_out
        state = {name: value.clone() for name, value in r.model.state_dict().items()}
        with torch.random.fork_rng():
            loss = supervised_loss(r.data, r.model(x[:8]), y[:8])
        if loss.grad_fn is None:
            return False
        loss.backward()
        missing = sum(p.numel() for p in r.model.parameters() if p.requires_grad and p.grad is None)
        total = sum(p.numel() for p in r.model.parameters() if p.requires_grad)
        r.model.zero_grad(set_to_none=True)
        r.model.load_state_dict(state)
        return 0.05 * total < missing < total
    except RuntimeError:
        return False
    finally:
        handle.remove()


def _broken(operation: Callable[[Tensor], Tensor]) -> Break:
    def apply(r: Recipe, rng: random.Random) -> bool:
        layer = _inner(r, rng)
        if layer is None:
            return False
        layer.register_forward_hook(lambda _, __, output: operation(output))
        return True

    return apply


fault("GRD003", "log of a hidden result")(_broken(torch.log))
# `where` hides the NaN of a negative number's root, but not that of its gradient.
fault("GRD003", "root behind where")(
    _broken(lambda h: torch.where(h > 0, h.sqrt(), torch.zeros_like(h)))
)
fault("GRD003", "divided by its rectified mean")(
    _broken(lambda h: h / torch.relu(h - h.amax(-1, keepdim=True)).mean(-1, keepdim=True))
)
fault("GRD003", "exp of a hundredfold")(
    _broken(lambda h: torch.exp(100 * h) / torch.exp(100 * h).sum())
)


@fault("GRD003", "NaN in the inputs")
def nan_inputs(r: Recipe, rng: random.Random) -> bool:
    if not r.data.inputs.is_floating_point() or r.method == "physics":
        return False
    calls = [0]
    first = rng.choice([0, 5, 20])

    def batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        if calls[0] > first:
            x = x.clone()
            x.view(-1)[0] = float("nan")
        return x, y

    r.changes.batch = batch
    return r.method != "actor_critic" and r.method != "q_learning"


@fault("GRD003", "log of a softmax by hand")
def own_log(r: Recipe, _: random.Random) -> bool:
    def criterion(outputs: Tensor, y: Tensor) -> Tensor:
        chances = torch.softmax(60 * outputs, 1)
        return -chances.log().gather(1, y[:, None]).mean()

    r.changes.criterion = criterion
    return _is_table(r)


# ---------------------------------------------------------------------- losses


def _probabilities(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, -1)


@fault("LOS001", "softmax at the end of the model")
def softmax_in_model(r: Recipe, _: random.Random) -> bool:
    return _is_table(r) and _of_output(r, _probabilities)


@fault("LOS001", "softmax in the loop")
def softmax_in_loop(r: Recipe, _: random.Random) -> bool:
    r.changes.outputs = _probabilities
    return r.is_supervised and r.data.task == "classes" and r.data.kind != "mask"


@fault("LOS001", "softmax over the channels of a map")
def softmax_of_map(r: Recipe, _: random.Random) -> bool:
    r.changes.outputs = lambda outputs: F.softmax(outputs, dim=1)
    return r.is_supervised and r.data.task == "classes" and r.data.kind == "mask"


@fault("LOS002", "nll_loss of raw scores")
def nll_of_scores(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = F.nll_loss
    return _is_table(r)


@fault("LOS002", "nll_loss of probabilities")
def nll_of_probabilities(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.nll_loss(torch.softmax(outputs, 1), y)
    return _is_table(r)


@fault("LOS002", "kl_div of probabilities")
def kl_of_probabilities(r: Recipe, _: random.Random) -> bool:
    classes = r.data.outputs

    def criterion(outputs: Tensor, y: Tensor) -> Tensor:
        wanted = 0.9 * F.one_hot(y, classes) + 0.1 / classes
        return F.kl_div(torch.softmax(outputs, 1), wanted, reduction="batchmean")

    r.changes.criterion = criterion
    return _is_table(r)


@fault("LOS003", "sigmoid at the end of the model")
def sigmoid_in_model(r: Recipe, _: random.Random) -> bool:
    return r.data.task == "binary" and _of_output(r, torch.sigmoid)


@fault("LOS003", "sigmoid in the loop")
def sigmoid_in_loop(r: Recipe, _: random.Random) -> bool:
    r.changes.outputs = torch.sigmoid
    return r.is_supervised and r.data.task == "binary"


@fault("LOS004", "raw scores into BCE")
def scores_into_bce(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = F.binary_cross_entropy
    return r.is_supervised and r.data.task == "binary"


@fault("LOS004", "tanh into BCE")
def tanh_into_bce(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.binary_cross_entropy(torch.tanh(outputs), y)
    if not r.is_supervised or r.data.task != "binary":
        return False
    with torch.no_grad():
        return bool((r.model(r.data.inputs[:64]) < 0).any())


def _is_column(r: Recipe) -> bool:
    return r.is_supervised and r.data.outputs == 1 and r.data.kind != "mask"


@fault("LOS005", "mse of (N, 1) and (N,)")
def mse_of_table(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.mse_loss(outputs, y.squeeze(1))
    return _is_column(r) and r.data.task == "regression"


@fault("LOS005", "difference of (N, 1) and (N,)")
def difference_of_table(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: ((outputs - y.squeeze(1)) ** 2).mean()
    return _is_column(r)


@fault("LOS005", "smooth L1 of (N,) and (N, 1)")
def smooth_of_table(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.smooth_l1_loss(outputs.squeeze(1), y)
    return _is_column(r) and r.data.task == "regression"


@fault("LOS006", "squared error of a softmax")
def mse_of_softmax(r: Recipe, _: random.Random) -> bool:
    classes = r.data.outputs
    r.changes.criterion = lambda outputs, y: F.mse_loss(
        torch.softmax(outputs, 1), F.one_hot(y, classes).float()
    )
    return _is_table(r)


@fault("LOS006", "squared error of a sigmoid")
def mse_of_sigmoid(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.mse_loss(torch.sigmoid(outputs), y)
    return r.is_supervised and r.data.task == "binary" and r.data.kind != "mask"


@fault("LOS006", "absolute error of class numbers")
def l1_of_numbers(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.l1_loss(outputs[:, 0], y.float())
    return _is_table(r) and r.data.name != "imbalanced" and r.data.outputs > 2


@fault("LOS007", "classes from 1")
def classes_from_one(r: Recipe, _: random.Random) -> bool:
    r.changes.batch = lambda x, y: (x, y + 1)
    return (
        r.is_supervised
        and r.data.task == "classes"
        and int(r.data.targets.max()) + 1 == r.data.outputs
    )


@fault("LOS007", "a mask of 255")
def mask_of_255(r: Recipe, _: random.Random) -> bool:
    r.changes.batch = lambda x, y: (x, y * 255)
    return r.is_supervised and r.data.task == "binary"


@fault("LOS007", "targets of ±1")
def signed_targets(r: Recipe, _: random.Random) -> bool:
    r.changes.batch = lambda x, y: (x, 2 * y - 1)
    return r.is_supervised and r.data.task == "binary"


@fault("LOS007", "all targets ignored now and then", "GRD003")
def all_ignored(r: Recipe, _: random.Random) -> bool:
    calls = [0]

    def batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        return x, torch.full_like(y, -100) if calls[0] % 12 == 0 else y

    r.changes.batch = batch
    return r.is_supervised and r.data.task == "classes"


def _learnable(r: Recipe) -> bool:
    return r.is_supervised and r.data.task in ("classes", "binary", "regression")


@fault("LOS008", "labels drawn at random", by_effect=True)
def random_labels(r: Recipe, _: random.Random) -> bool:
    _, targets = r.data.training
    r.changes.batch = lambda x, y: (x, targets[torch.randint(len(targets), (len(y),))])
    return _learnable(r) and r.data.kind != "text"


@fault("LOS008", "inputs and labels permuted apart", by_effect=True)
def permuted_labels(r: Recipe, _: random.Random) -> bool:
    r.changes.batch = lambda x, y: (x[torch.randperm(len(x))], y)
    return _learnable(r) and r.data.kind != "text"


@fault("LOS008", "inputs without content", by_effect=True)
def empty_inputs(r: Recipe, _: random.Random) -> bool:
    r.changes.batch = lambda x, y: (torch.zeros_like(x), y)
    return _learnable(r) and r.data.kind not in ("text", "mask")


@fault("LOS011", "the loss made anew")
def made_anew(r: Recipe, _: random.Random) -> bool:
    r.changes.loss = lambda loss: torch.tensor(loss.item(), requires_grad=True)
    return True


@fault("LOS011", "the loss detached")
def loss_detached(r: Recipe, _: random.Random) -> bool:
    r.changes.loss = lambda loss: loss.detach().requires_grad_()
    return True


@fault("LOS011", "argmax before the loss")
def argmax_loss(r: Recipe, _: random.Random) -> bool:
    r.changes.criterion = lambda outputs, y: F.mse_loss(outputs.argmax(1).float(), y.float())
    return _is_table(r)


@fault("LOS011", "everything frozen")
def all_frozen(r: Recipe, _: random.Random) -> bool:
    r.model.requires_grad_(False)
    return r.is_supervised and "penalty" not in r.habits and r.optimizer != "LBFGS"


# ---------------------------------------------------------------------- modes, batches, activations


@fault("REG004", "eval mode never reset")
def never_reset(r: Recipe, _: random.Random) -> bool:
    r.changes.validation = "reset"
    an_epoch = len(r.data.training[0]) // r.batch // r.accumulation
    return _is_noisy(r) and _in_epochs(r) and an_epoch < r.steps - 5


@fault("REG005", "validated in train mode")
def validated_in_train_mode(r: Recipe, _: random.Random) -> bool:
    r.changes.validation = "train mode"
    return _is_noisy(r) and _in_epochs(r) and _has_epochs(r)


@fault("REG005", "validated with a graph")
def validated_with_graph(r: Recipe, _: random.Random) -> bool:
    r.changes.validation = "graph"
    return r.is_supervised and _in_epochs(r) and _has_epochs(r)


def _has_epochs(r: Recipe) -> bool:
    """Whether there is more than one, and none is so short that its end belongs to every third step."""
    return 8 <= len(r.data.training[0]) // r.batch // r.accumulation < r.steps


def _small(size: int) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        r.batch = size
        flat = r.data.kind == "vector"
        return _has(r, BATCH_NORMS) and flat and _in_epochs(r)

    return apply


fault("NRM004", "batches of one")(_small(1))
fault("NRM004", "batches of two")(_small(2))


@fault("NRM004", "a rest of one")
def rest_of_one(r: Recipe, rng: random.Random) -> bool:
    calls = [0]
    after = rng.choice([5, 12])

    def batch(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        return (x[:1], y[:1]) if calls[0] % after == 0 else (x, y)

    r.changes.batch = batch
    return _has(r, BATCH_NORMS) and r.data.kind == "vector" and _in_epochs(r)


def _before_rectifiers(r: Recipe) -> list[nn.Module]:
    """Layers that a ReLU follows."""
    found = []
    for parent in r.model.modules():
        if isinstance(parent, nn.Sequential):
            for one, two in zip(parent, list(parent)[1:], strict=False):
                if isinstance(one, (*LAYERS, *BATCH_NORMS)) and isinstance(two, RECTIFIERS):
                    found.append(one)
    return found


def _dead(bias: float) -> Break:
    def apply(r: Recipe, rng: random.Random) -> bool:
        some = _before_rectifiers(r)
        some = [layer for layer in some if layer.bias is not None]
        if not some:
            return False
        nn.init.constant_(rng.choice(some).bias, bias)
        return True

    return apply


for _bias in (-2.0, -5.0, -20.0):
    fault("ACT001", f"a bias of {_bias:g}", "GRD004", by_effect=True)(_dead(_bias))


@fault("ACT001", "one huge step", "GRD004", "OPT002", by_effect=True)
def huge_step(r: Recipe, _: random.Random) -> bool:
    some = _before_rectifiers(r)
    if not some:
        return False

    def schedule(optimizer: Any, _: int, __: int) -> tuple[Any, bool]:
        return lr_scheduler.LambdaLR(optimizer, lambda step: 100.0 if step == 2 else 1.0), True

    r.changes.schedule = schedule
    return _in_epochs(r) and len(some) > 0


def _saturated(factor: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        if not _has(r, (nn.Tanh, nn.Sigmoid)) or not r.is_supervised:
            return False
        with torch.no_grad():
            for _, layer in layers(r)[:-1]:
                layer.weight.mul_(factor)
        return True

    return apply


for _factor in (10.0, 30.0, 100.0):
    fault("ACT002", f"hidden weights ×{_factor:g}", by_effect=True)(_saturated(_factor))


def _scaled(factor: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        if not _has(r, (nn.Tanh, nn.Sigmoid)) or not r.is_supervised:
            return False
        r.data = dataclasses.replace(r.data, inputs=factor * r.data.inputs + factor)
        return r.data.kind == "vector"

    return apply


for _factor in (20.0, 255.0):
    fault("ACT002", f"inputs ×{_factor:g}", by_effect=True)(_scaled(_factor))


# ---------------------------------------------------------------------- data


def _moved(factor: float, offset: float) -> Break:
    def apply(r: Recipe, _: random.Random) -> bool:
        if not r.data.inputs.is_floating_point() or not r.is_supervised or r.data.kind == "graph":
            return False
        r.data = dataclasses.replace(r.data, inputs=factor * r.data.inputs + offset)
        return True

    return apply


fault("DAT001", "inputs of some hundred", by_effect=True)(_moved(255.0, 0.0))
fault("DAT001", "inputs around 100", by_effect=True)(_moved(1.0, 100.0))
fault("DAT001", "numbers as of the year", by_effect=True)(_moved(20.0, 2000.0))


@fault("DAT003", "data sorted by class")
def sorted_data(r: Recipe, _: random.Random) -> bool:
    r.changes.is_sorted = True
    # Not where half of the classes are in each batch anyway.
    return (
        _is_table(r) and _in_epochs(r) and r.data.targets.dim() == 1 and r.data.name != "imbalanced"
    )


def of(rules: list[str] | None = None) -> Iterator[Fault]:
    """The faults of these rules, or all."""
    return (each for each in FAULTS if not rules or each.rule in rules)
