"""The models of a training loop, and the books on them, on their forwards and on optimizers."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from trainlint.sites import Site, construction_site, place_key

_WRAPPERS: Final = frozenset(
    {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "_FabricModule"}
)
# A loop that makes modules anew at each step would fill the memory.
MOST_ROOTS: Final = 256
# Their results differ between train and eval mode.
_SENSITIVE: Final = ("Dropout", "BatchNorm", "SyncBatch", "AlphaDropout", "FeatureAlpha")


@dataclass
class Root:
    """A module that is called from outside of all others."""

    number: int
    module: weakref.ref[nn.Module]
    name: str
    site: Site | None
    paths: dict[int, str]
    names: dict[int, str]
    sensitive: bool
    layers: dict[str, Site | None]
    shapes: dict[str, tuple[int, int, bool]]
    # Those of the layers whose classes are torch's own.
    made: dict[str, Site | None]
    # The largest probability with which a layer drops values.
    dropout: float
    # Names of parameters that an optimizer holds; others that had a gradient at a step, with some of
    # their elements then.
    held: set[str] = field(default_factory=set)
    neglected: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, tuple[KnownOptimizer, int]] = field(default_factory=dict)
    inputs: Any = None
    # What was around the last forward: autocast, and, in recorded steps, the state of the generator.
    autocast: tuple[str, Any] | None = None
    random_state: Tensor | None = None
    forwards: Counter[tuple[str, bool]] = field(default_factory=Counter)
    trained_in: Counter[bool] = field(default_factory=Counter)
    # Sites of the forwards that a backward pass reached, by their keys.
    trained_at: dict[Any, Site | None] = field(default_factory=dict)
    # The modes of the forwards behind the next step, and how many steps had one in train mode.
    modes: Counter[bool] = field(default_factory=Counter)
    steps_in_train_mode: int = 0
    switched: dict[bool, Site | None] = field(default_factory=dict)
    # Whether it was handed over before the first step that trains it.
    was_shown: bool = False
    # Whether `train()` was called since the last forward that was trained: what runs in it, shall.
    is_asked: bool = False
    idle: Idle | None = None
    # Forwards with a graph that no backward pass reached, by site and mode.
    unused: dict[Any, Idle] = field(default_factory=dict)


@dataclass
class Idle:
    """Forwards in a row, at one site, that nothing is trained by; `passes` are rows of two or more."""

    key: Any
    site: Site | None
    step: int
    inputs: weakref.ref[Tensor] | None = None
    row: int = 1
    passes: int = 0
    first: int = 0

    def goes_on(self, step: int, inputs: weakref.ref[Tensor] | None) -> None:
        """One more forward. The same input again is a sample of what is random, not a pass over data."""
        before, now = (None if ref is None else ref() for ref in (self.inputs, inputs))
        is_same = now is not None and now is before
        self.row = self.row + 1 if step == self.step and not is_same else 1
        self.step, self.inputs = step, inputs
        if self.row == 2:
            self.first = self.first if self.passes else step
            self.passes += 1


@dataclass
class Forward:
    """A forward that no backward pass has reached yet; `ends` number its outputs' autograd nodes."""

    root: Root
    ends: frozenset[int]
    site: Site | None
    training: bool
    step: int
    inputs: weakref.ref[Tensor] | None = None
    asked: bool = False
    samples: int = 0


@dataclass
class KnownOptimizer:
    """An optimizer, and what it did."""

    held: weakref.ref[Any]
    kind: str
    site: Site | None
    groups: list[dict[str, Any]]
    steps: int = 0
    pending: int = 0
    backwards: Counter[int] = field(default_factory=Counter)
    # By their keys.
    stepped_at: dict[Any, Site | None] = field(default_factory=dict)
    backward_at: dict[Any, Site | None] = field(default_factory=dict)
    rates: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)
    was_reset: bool = True
    closure: bool = False
    # Steps of a `GradScaler`: how many, how many of the last left this one's out, and its scale.
    scaler_steps: int = 0
    skipped_in_row: Any = 0
    steps_before: int = 0
    scaler_site: Site | None = None
    scale: Tensor | None = None
    # Parameters that had no gradient at any step, by `id`.
    unreached: dict[int, weakref.ref[Tensor]] | None = None
    # Whether the last backward pass was seen to leave it a gradient that is not zero.
    arrived: bool = False
    probes: tuple[weakref.ref[Tensor], ...] = ()
    # A small one of the first: what is not finite in a gradient comes down to it.
    guard: weakref.ref[Tensor] | None = None
    # The roots whose parameters it holds, and among how many they were looked for.
    roots: set[int] = field(default_factory=set)
    among: int = 0

    def parameters(self) -> Iterator[Tensor]:
        """All parameters that it holds now."""
        optimizer = self.held()
        if optimizer is not None:
            for group in optimizer.param_groups:
                yield from group["params"]


class Roots:
    """The models of a loop, in the order in which they came; `only` these, if given, and no others."""

    def __init__(self, only: Iterable[nn.Module] | None = None) -> None:
        self._only = None if only is None else [weakref.ref(unwrapped(model)) for model in only]
        self._all: list[Root] = []
        # Where a model was dropped, another one may have its `id` by now.
        self._by_id: dict[int, Root] = {}
        self._owners: dict[int, tuple[int, str]] | None = None

    def __iter__(self) -> Iterator[Root]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of(self, module: nn.Module, site: Site | None) -> Root | None:
        """The root that a module is, which is called at `site`; None where it does not matter."""
        module = unwrapped(module)
        known = self._by_id.get(id(module))
        if known is not None and known.module() is module:
            return known
        is_other = self._only is not None and all(ref() is not module for ref in self._only)
        if is_other or len(self) >= MOST_ROOTS:
            return None
        root = self._by_id[id(module)] = _root(module, len(self), site)
        self._all.append(root)
        self._owners = None
        return root

    def known(self, module: nn.Module) -> Root | None:
        """The same, if it was called before."""
        return self._by_id.get(id(unwrapped(module)))

    def latest(self) -> Root | None:
        """The last of those whose inputs are held."""
        return next((r for r in reversed(self._all) if r.inputs is not None), None)

    def latest_inputs(self) -> Any:
        """Its arguments, positional and by name."""
        root = self.latest()
        return None if root is None else root.inputs

    def owners(self) -> dict[int, tuple[int, str]]:
        """The root and the name of each parameter, by `id`."""
        if self._owners is None:
            self._owners = {
                id_: (root.number, name) for root in self for id_, name in root.names.items()
            }
        return self._owners


def _root(module: nn.Module, number: int, site: Site | None) -> Root:
    made = {path: construction_site(m) for path, m in module.named_modules()}
    return Root(
        number,
        weakref.ref(module),
        type(module).__name__,
        site,
        {id(m): path for path, m in module.named_modules()},
        {id(p): name for name, p in module.named_parameters()},
        any(is_sensitive(m) for m in module.modules()),
        made,
        {n: (p.numel(), p.dim(), p.requires_grad) for n, p in module.named_parameters()},
        {
            path: made[path]
            for path, m in module.named_modules()
            if type(m).__module__.startswith("torch.nn.")
        },
        dropout_in(module),
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module in those that distribute or compile it."""
    while True:
        # A module looks long for an attribute that it has not.
        own = module._modules
        inner = own.get("_orig_mod") if type(own) is dict else getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in _WRAPPERS:
            names = ("module", "_original_module", "_fsdp_wrapped_module")
            inner = next((m for name in names if (m := module._modules.get(name))), None)
        if inner is None:
            return module
        module = inner


def is_sensitive(module: nn.Module) -> bool:
    """Whether its results differ between train and eval mode."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    return type(module).__name__.startswith(_SENSITIVE) and getattr(module, "p", 1) != 0


def dropout_in(module: nn.Module) -> float:
    """The largest probability with which one of its layers drops values in training, 0 for none."""
    rates = [
        getattr(
            part, "dropout" if isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) else "p", 0
        )
        for part in module.modules()
        if isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) or "Dropout" in type(part).__name__
    ]
    return max((float(rate) for rate in rates if isinstance(rate, (int, float))), default=0.0)


def note_unused(unused: dict[Any, Idle], forward: Forward) -> None:
    """Count a forward with a graph that no backward pass came to."""
    key = place_key(forward.site)
    known = unused.get((key, forward.training))
    if known is None:
        unused[key, forward.training] = Idle(key, forward.site, forward.step, forward.inputs)
    else:
        known.goes_on(forward.step, forward.inputs)
