"""Another loss in the place of the one that a training has, or the same with other options.

A loss layer or function of torch is exchanged for another. Within a loss of the user's own, a model that
computes its loss itself, or the user's own loop, the function is exchanged where it is called by its name
in `torch.nn.functional`, as all loss layers do.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainlint.sites import replaced
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch

LAYERS: Final[Mapping[str, type[nn.Module]]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "mse_loss": nn.MSELoss,
    "l1_loss": nn.L1Loss,
    "smooth_l1_loss": nn.SmoothL1Loss,
    "huber_loss": nn.HuberLoss,
}
# Options mean the same among these.
_KIN: Final = (
    frozenset({"cross_entropy", "nll_loss"}),
    frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"}),
    frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}),
)
_OF_CLASSES: Final = _KIN[0]


class _Use(NamedTuple):
    """A loss by the name of its function, with its options."""

    name: str
    options: dict[str, Any]


_Exchange = Callable[[_Use], _Use]


def other_loss(case: Case, patch: Patch) -> None:
    """The loss `to`, a function's name or a layer's class. Targets are put into the form it takes."""
    to = _name_of(patch.values.get("to"))

    def exchange(use: _Use) -> _Use:
        shared = any({use.name, to} <= kin for kin in _KIN)
        known = inspect.signature(getattr(functional, to)).parameters
        kept = {
            name: value
            for name, value in use.options.items()
            if name in known and (shared or name == "reduction")
        }
        return _Use(to, kept)

    _exchanged(case, exchange, [name for name in LAYERS if name != to])


def class_weights(case: Case, patch: Patch) -> None:
    """`weights`, one a class; of a binary loss on logits one number, that of the positive class."""
    weights = torch.as_tensor(patch.values.get("weights"), dtype=torch.get_default_dtype())
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise PatchProblem("weights of classes are finite, and not negative")
    if weights.dim() == 1 and len(weights) > 1:
        name, losses = "weight", sorted(_OF_CLASSES)
    else:
        name, losses = "pos_weight", ["binary_cross_entropy_with_logits"]
    _exchanged(case, lambda use: _Use(use.name, {**use.options, name: weights}), losses)


def _name_of(given: Any) -> str:
    for name, layer in LAYERS.items():
        if given in (name, layer.__name__):
            return name
    raise PatchProblem(f"no loss {given!r} is known: {', '.join(LAYERS)}")


def _exchanged(case: Case, exchange: _Exchange, sources: list[str]) -> None:
    """Exchange the setup's loss, or the functions that are called in a loss of another make."""
    loss = case.setup.loss
    if loss is None or case.setup.train is not None:
        case.conduct.seams.append(lambda: _replaced_functions(exchange, sources, []))
        if case.setup.train is None:
            return
    known = None if loss is None else _use_of(loss)
    if known is None and loss is not None:
        case.setup = replace(case.setup, loss=_Within(loss, exchange, tuple(sources)))
    elif known is not None:
        if known.name not in sources:
            raise PatchProblem(f"the loss is {known.name}, which is left as it is")
        device = next((p.device for p in case.model.parameters()), torch.device("cpu"))
        made = _made(known.name, exchange(known), layer=isinstance(loss, nn.Module))
        case.setup = replace(
            case.setup, loss=made.to(device) if isinstance(made, nn.Module) else made
        )


def _use_of(loss: Any) -> _Use | None:
    for name, layer in LAYERS.items():
        if type(loss) is layer:
            known = inspect.signature(layer).parameters
            options = {key: getattr(loss, key) for key in known if hasattr(loss, key)}
            return _Use(name, {k: v for k, v in options.items() if v is not None})
        if loss is getattr(functional, name):
            return _Use(name, {})
    return None


def _made(before: str, use: _Use, *, layer: bool) -> Any:
    """The layer or function. Where it is of another kind than the one before, it suits its targets."""
    is_kin = any({before, use.name} <= kin for kin in _KIN)
    if layer:
        kind = LAYERS[use.name] if is_kin else _SUITING[use.name]
        return kind(**use.options)
    function = getattr(functional, use.name)
    if is_kin and not use.options:
        return function
    return _Function(use.name, use.options)


@dataclass(frozen=True)
class _Function:
    """A loss function with options, which suits its targets."""

    name: str
    options: Mapping[str, Any]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        options = {
            key: value.to(output.device, output.dtype) if isinstance(value, Tensor) else value
            for key, value in self.options.items()
        }
        result: Tensor = getattr(functional, self.name)(
            output, suited(self.name, output, target), **options
        )
        return result


def _suiting(name: str, layer: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, output: Tensor, target: Tensor) -> Tensor:
        result: Tensor = layer.forward(self, output, suited(name, output, target))
        return result

    return type(layer.__name__, (layer,), {"forward": forward})


_SUITING: Final = {name: _suiting(name, layer) for name, layer in LAYERS.items()}


def suited(name: str, output: Tensor, target: Tensor) -> Tensor:
    """The target in the form that this loss takes: numbers of classes, or of the output's shape."""
    if name not in _OF_CLASSES:
        if target.numel() == output.numel():
            target = target.reshape(output.shape)
        elif not target.is_floating_point() and output.dim() == target.dim() + 1 == 2:
            target = functional.one_hot(target, output.shape[1])
        return target.to(output.dtype)
    if output.dim() < 2 or output.shape[1] < 2:
        raise PatchProblem(f"{name} wants a score for each class, and gets {tuple(output.shape)}")
    if target.shape == output.shape:  # one-hot, or probabilities
        return target.to(output.dtype) if name == "cross_entropy" else target.argmax(1)
    if target.numel() * output.shape[1] == output.numel():
        target = target.reshape(output.shape[0], *output.shape[2:])
    return target.long()


@dataclass
class _Within:
    """A loss of the user's own, within which functions are exchanged."""

    loss: Callable[..., Any]
    exchange: _Exchange
    sources: tuple[str, ...]

    def __call__(self, output: Any, target: Any) -> Any:
        made: list[str] = []
        with _replaced_functions(self.exchange, self.sources, made):
            value = self.loss(output, target)
        if not made:
            raise PatchProblem(f"the loss calls none of {', '.join(self.sources)}")
        return value


@contextlib.contextmanager
def _replaced_functions(
    exchange: _Exchange, sources: list[str] | tuple[str, ...], made: list[str]
) -> Iterator[None]:
    def other(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            options = dict(signature.bind(*args, **kwargs).arguments)
            output, target = options.pop("input"), options.pop("target")
            made.append(name)
            use = exchange(_Use(name, options))
            function = original if use.name == name else originals[use.name]
            values = {
                key: value.to(output.device, output.dtype) if isinstance(value, Tensor) else value
                for key, value in use.options.items()
            }
            return function(output, suited(use.name, output, target), **values)

        return call

    originals = {name: getattr(functional, name) for name in LAYERS}
    with contextlib.ExitStack() as stack:
        for name in sources:
            stack.enter_context(replaced(functional, name, other(name, originals[name])))
        yield
