"""With what a model is trained: loss, optimizer and loaders, or the user's own loop.

They are what the file names at module level, the methods of a LightningModule, or what was given to
`check`. Comes in: a namespace. Goes out: a `Setup`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from trainlint.sites import Site, construction_site, optimizer_site

if TYPE_CHECKING:
    from torch import nn

_OPTIMIZERS: Final = ("optimizer", "optim", "opt", "optimiser")
TRAIN_LOADERS: Final = (
    "train_loader", "trainloader", "train_dataloader", "train_dl", "train_data_loader", "loader",
    "dataloader", "data_loader", "train_iter", "train_batches",
)  # fmt: skip
VAL_LOADERS: Final = (
    "val_loader", "valid_loader", "valloader", "val_dataloader", "valid_dataloader", "val_dl",
    "valid_dl", "test_loader", "testloader", "test_dataloader", "test_dl",
)  # fmt: skip
_LOOPS: Final = ("train", "train_model", "fit", "train_loop", "train_one_epoch")
_MODELS: Final = ("model", "net", "network", "module")
_EPOCHS: Final = ("epoch", "epochs", "num_epochs", "n_epochs", "max_epochs")


@dataclass(frozen=True)
class Setup:
    """What a model is trained with; None for what is not known.

    `loss` is called as (output, target); without it the model's output or its `training_step` is asked.
    `optimizer` is one, or a function of the model that makes one. A batch of a loader is a tuple whose
    last element is the target and whose others are the model's inputs, or a dict. `train` runs the
    user's own loop, `step` is a `training_step(batch, index)`. `names` says what each was called.
    `judge` is the file's loss layer where `loss` stands for it, `place` where the file calls it. `why` says
    what speaks against a training with what there is. `around` is entered around each training, inside of
    what observes it. `model` is what the model itself is called. `read_by_loop` is the train loader that
    the user's own loop goes by, of which nothing is known but its batches.
    """

    loss: Callable[..., Any] | None = None
    optimizer: Any = None
    train_loader: Any = None
    val_loader: Any = None
    train: Callable[[], Any] | None = None
    step: Callable[[Any, int], Any] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    judge: Any = None
    place: Any = None
    why: str = ""
    around: Callable[[], AbstractContextManager[Any]] | None = None
    model: frozenset[str] = frozenset()
    read_by_loop: Any = None

    def entered(self) -> AbstractContextManager[Any]:
        """What a training with this is done within."""
        return nullcontext() if self.around is None else self.around()

    @property
    def own(self) -> frozenset[str]:
        """Which parts of a training with this are the user's, in the words of `Trace.own`."""
        if self.train is not None:
            return frozenset({"loop", "loss", "optimizer", "data"})
        parts = {
            "loss": self.loss is not None or self.step is not None or self.train_loader is not None,
            "optimizer": self.optimizer is not None,
            "data": self.train_loader is not None,
        }
        return frozenset(name for name, known in parts.items() if known)

    @property
    def suffices(self) -> bool:
        """Whether a training would show anything that the graph and one pass do not."""
        return any(
            part is not None for part in (self.train, self.train_loader, self.optimizer, self.step)
        )

    def loss_site(self) -> Site | None:
        """Where the loss was made, if it is a layer."""
        from torch import nn

        for loss in (self.loss, self.judge):
            site = construction_site(loss) if isinstance(loss, nn.Module) else None
            if site is not None:
                return site
        return None if hasattr(self.place, "op") else self.place

    def optimizer_site(self) -> Site | None:
        """Where the optimizer was made."""
        return None if callable(self.optimizer) else optimizer_site(self.optimizer)


def setup_of(
    namespace: Mapping[str, Any],
    model: nn.Module,
    loss: Callable[..., Any] | None,
    judged: Container[str] = (),
    *,
    loops: bool = True,
) -> Setup:
    """What the names of a module say of the training of `model`; `loss` is the one found there.

    An optimizer counts where it holds parameters of the model, or where no other model that lives there
    could be its own: none whose parameters it has, or none that a loss of the file judges, while one
    judges this. `judged` are the names of the models that are. Where several models live there, as a
    GAN's, loaders and losses count for those alone whose optimizer bears the plain name. Without `loops`
    a loop of the user's own does not count.
    """
    lightning = _of_lightning(model)
    if lightning is not None:
        return lightning
    names: dict[str, str] = {}

    def first(part: str, candidates: tuple[str, ...], fits: Callable[[Any], bool]) -> Any:
        for name in candidates:
            value = namespace.get(name)
            if value is not None and fits(value):
                names[part] = name
                return value
        return None

    optimizer = first(
        "optimizer", _OPTIMIZERS, lambda value: _optimizes(value, model, namespace, judged)
    )
    if optimizer is None and _has_siblings(model, namespace):
        return Setup(why=_whose(model, namespace))
    train_loader = first("train_loader", TRAIN_LOADERS, _is_loader)
    val_loader = first("val_loader", VAL_LOADERS, _is_loader)
    own = frozenset(name for name, value in namespace.items() if value is model)
    setup = Setup(loss, optimizer, train_loader, val_loader, names=names, model=own)
    for name in _LOOPS if loops else ():
        loop = _bound_loop(namespace.get(name), model, namespace)
        if loop is not None:
            names["train"] = name
            own_loader = train_loader if _mentions(loop, names.get("train_loader", "")) else None
            return Setup(loss, optimizer, train=loop, names=names, read_by_loop=own_loader)
    return setup


def _optimizes(
    value: Any, model: nn.Module, namespace: Mapping[str, Any], judged: Container[str]
) -> bool:
    from torch import nn
    from torch.optim import Optimizer

    if isinstance(value, Optimizer):
        held = {id(p) for group in value.param_groups for p in group["params"]}
        if any(id(p) in held for p in model.parameters()):
            return True
        own = {name for name, value in namespace.items() if value is model}
        owners = {
            name
            for name, other in namespace.items()
            if isinstance(other, nn.Module)
            and other is not model
            and any(id(p) in held for p in other.parameters())
        }
        if not owners:
            return bool(own)
        return any(n in judged for n in own) and not any(n in judged for n in owners)
    return inspect.isfunction(value) and _takes_one(value)


def _whose(model: nn.Module, namespace: Mapping[str, Any]) -> str:
    """Whose parameters the plain optimizer has, where this is the model of the plain name."""
    from torch import nn
    from torch.optim import Optimizer

    if not any(namespace.get(name) is model for name in _MODELS):
        return ""
    for name in _OPTIMIZERS:
        if isinstance(optimizer := namespace.get(name), Optimizer):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for owner, other in namespace.items():
                if isinstance(other, nn.Module) and any(id(p) in held for p in other.parameters()):
                    return f"{name} has the parameters of {owner}, and none of this model"
    return ""


def _has_siblings(model: nn.Module, namespace: Mapping[str, Any]) -> bool:
    """Whether another model lives there, neither inside of this one nor around it."""
    from torch import nn

    inside = set(map(id, model.modules()))
    return any(
        isinstance(value, nn.Module)
        and id(value) not in inside
        and all(part is not model for part in value.modules())
        and any(True for _ in value.parameters())
        for value in namespace.values()
    )


def _takes_one(function: Callable[..., Any]) -> bool:
    return len(list(_required(function))) == 1


def _required(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    for parameter in inspect.signature(function).parameters.values():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variadic:
            yield parameter


def _is_loader(value: Any) -> bool:
    """Something to iterate over again and again, or a function without arguments that gives one."""
    if inspect.isfunction(value):
        return not list(_required(value))
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes, dict, type))


def _bound_loop(loop: Any, model: nn.Module, namespace: Mapping[str, Any]) -> partial[Any] | None:
    """The user's `train(model)` with its arguments, if all that it asks for is known."""
    if not inspect.isfunction(loop) or inspect.isgeneratorfunction(loop):
        return None
    given: dict[str, Any] = {}
    for parameter in _required(loop):
        if parameter.name in _MODELS:
            given[parameter.name] = model
        elif parameter.name in _EPOCHS:
            given[parameter.name] = 1
        elif namespace.get(parameter.name) is not None:
            given[parameter.name] = namespace[parameter.name]
        elif parameter.name == "device":
            given[parameter.name] = next((p.device for p in model.parameters()), "cpu")
        else:
            return None
    if not any(name in _MODELS for name in given):
        return None
    return partial(loop, **given)


def _mentions(loop: partial[Any], name: str) -> bool:
    """Whether a loop reads a name of its module, or is given what that is."""
    return name in loop.keywords or name in loop.func.__code__.co_names


def _of_lightning(model: Any) -> Setup | None:
    """A LightningModule that brings its own optimizer and data."""
    if not any(kind.__name__ == "LightningModule" for kind in type(model).__mro__):
        return None
    if not all(
        _is_written(model, name)
        for name in ("training_step", "configure_optimizers", "train_dataloader")
    ):
        return None
    validates = _is_written(model, "val_dataloader") and getattr(
        model, "automatic_optimization", True
    )
    return Setup(
        optimizer=lambda own: _first_optimizer(own.configure_optimizers()),
        train_loader=model.train_dataloader,
        val_loader=model.val_dataloader if validates else None,
        step=model.training_step,
        names={
            "optimizer": "configure_optimizers",
            "train_loader": "train_dataloader",
            "val_loader": "val_dataloader",
            "step": "training_step",
        },
    )


def _is_written(model: Any, name: str) -> bool:
    """Whether the user's own class has this method."""
    owner = next((kind for kind in type(model).__mro__ if name in vars(kind)), None)
    return owner is not None and not owner.__module__.startswith(
        ("lightning.", "pytorch_lightning.")
    )


def _first_optimizer(configured: Any) -> Any:
    """Of what `configure_optimizers` may return: one, a dict, a list, or (optimizers, schedulers)."""
    while isinstance(configured, (list, tuple)):
        configured = configured[0]
    return configured["optimizer"] if isinstance(configured, dict) else configured
