"""Make the changes that a fix is made of: on a copy, which then trains as any other model does.

    subject = copied(model, setup, optimizer)
    change = patched(subject, fix.patches)
    trial(change.subject, pool, plan)

It trains by the probe's `train` as well, and its user's own loop by `run_loop(change.subject.setup.train)`.

Comes in: a `Copy` to be written to, and patches. Goes out: the same copy, changed. What a training has to
do besides, such as clipping, stands in its setup (`Setup.around`, loss, loaders, the user's own loop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch import nn

from trainlint.generalization.trials import Copy
from trainlint.measure.pulse import seed_generators
from trainlint.preserve import is_lazy, random_states
from trainlint.surgery import (
    additions,
    calls,
    gradients,
    layers,
    loading,
    losses,
    modes,
    optimising,
    recording,
    weights,
)
from trainlint.surgery.case import Case, PatchProblem
from trainlint.surgery.conduct import Conduct

if TYPE_CHECKING:
    from trainlint.capture.inputs import Inputs
    from trainlint.fixes.patch import Patch
    from trainlint.probe.setup import Setup


class Kind(NamedTuple):
    """A kind of patch: what makes it, what it does in a sentence, and where that is from."""

    make: Callable[[Case, Patch], None]
    does: str
    source: str = ""


OF_MODEL: Final = {
    "initialise": Kind(
        weights.initialise,
        "Draws parameters anew by a function of torch.nn.init, `default` as the layer's class does, or "
        "`scaled` by a factor; a gain is given, or by `nonlinearity`; of recurrent layers gate by gate; "
        "`bias` fills the biases beside them.",
        "Glorot & Bengio 2010; He et al. 2015; Saxe et al. 2014",
    ),
    "activation": Kind(
        layers.activation,
        "Puts another activation in the place of layers and of calls.",
        "Nair & Hinton 2010; Maas et al. 2013; Hendrycks & Gimpel 2016",
    ),
    "activation-behind": Kind(
        additions.activation_behind, "Puts an activation `to` more behind layers."
    ),
    "without": Kind(layers.without, "Lets layers and calls give back what goes into them."),
    "arguments": Kind(
        calls.arguments,
        "Gives calls other arguments, `dim=1`; `self.training` stands for the mode of the module.",
    ),
    "norm": Kind(
        additions.norm,
        "Puts a `batch`, `layer` or `group` normalisation behind layers, over their features or channels; "
        "its parameters join the optimizer beside the layer's.",
        "Ioffe & Szegedy 2015; Ba et al. 2016; Wu & He 2018",
    ),
    "residual": Kind(
        additions.residual,
        "Adds what goes into a module to what it gives, or to what the next of some modules and calls "
        "`until` which its block lasts gives, where the shapes agree.",
        "He et al. 2016",
    ),
    "separate": Kind(
        layers.separate,
        "Gives each of the `count` calls of a layer in a forward a copy of its own.",
    ),
    "with-gradients": Kind(
        recording.with_gradients,
        "Lets layers and calls that a forward runs under `no_grad` be recorded.",
    ),
    "rebuilt": Kind(
        layers.rebuilt,
        "Makes a layer anew with other arguments; what keeps its shape keeps its values.",
    ),
    "attribute": Kind(
        layers.attribute,
        "Sets plain attributes of layers: p, eps, momentum, dim, track_running_stats, training.",
    ),
    "unfreeze": Kind(
        weights.unfreeze,
        "Lets parameters be trained, by the optimizer that trains their neighbours.",
    ),
}
# These leave the model itself as it is.
OF_TRAINING: Final = {
    "clip": Kind(
        gradients.clip,
        "Clips the gradients' norm to `max_norm` before each step, in place of what the loop does itself, "
        "or each of them to `value`.",
        "Pascanu et al. 2013",
    ),
    "zero-grad": Kind(
        gradients.zero_grad,
        "Leaves no gradient behind after a step, and lets none be cleared before it.",
    ),
    "learning-rate": Kind(
        optimising.learning_rate,
        "Multiplies the rates by `factor`, sets the largest to `value` and the others in proportion, or "
        "finds that value by a range test on a copy (`range_test`): where the smoothed loss falls fastest "
        "over the logarithm of the rate, and at most a tenth of where it is least.",
        "Smith 2017",
    ),
    "weight-decay": Kind(
        optimising.weight_decay,
        "Sets the decay to `value`, `apart` from the gradient as AdamW does, of `matrices_only`.",
        "Loshchilov & Hutter 2019",
    ),
    "optimizer-options": Kind(
        optimising.options, "Sets options of the optimizer in all its groups."
    ),
    "optimizer-rebuilt": Kind(
        optimising.rebuilt,
        "Gives the optimizer all trainable parameters, with its options, and no state.",
    ),
    "schedule": Kind(
        modes.schedule,
        "Leads the rate along a `shape` (constant, linear, cosine) over `steps`, after `warmup` steps, in "
        "place of the training's own schedules.",
        "Loshchilov & Hutter 2017; Goyal et al. 2017",
    ),
    "train-mode": Kind(
        modes.train_mode,
        "Puts the model in train mode for each call for which gradients are asked.",
    ),
    "eval-mode-in-validation": Kind(
        modes.eval_mode_in_validation,
        "Puts the model in eval mode for each call without gradients.",
    ),
    "loss": Kind(
        losses.other_loss,
        "Trains by the loss `to`, with the reduction, weights and ignored class of the one before, and "
        "targets in the form that it takes.",
    ),
    "class-weights": Kind(
        losses.class_weights,
        "Weighs the classes in the loss by `weights`; the positive class of a binary loss by one number.",
    ),
    "loss-scaled": Kind(
        gradients.scaled_loss,
        "Multiplies each loss by `factor` before its backward pass.",
    ),
    "normalise-inputs": Kind(
        loading.normalise_inputs,
        "Gives inputs mean 0 and standard deviation 1 by feature or channel, with figures of the training "
        "samples for validation as well.",
        "LeCun et al. 1998",
    ),
    "normalise-targets": Kind(loading.normalise_targets, "The same for targets, column by column."),
    "target-shape": Kind(
        loading.target_shape,
        "Takes an axis of length 1 out of targets, `squeeze`, or puts one in, `unsqueeze`.",
    ),
    "channels-first": Kind(loading.channels_first, "Gives images as (N, C, H, W)."),
    "cast": Kind(
        loading.cast,
        "Gives inputs and targets the types `inputs` and `targets`; else inputs that of the weights.",
    ),
    "batch-size": Kind(loading.batch_size, "Trains on batches of `value` samples."),
    "drop-last": Kind(loading.drop_last, "Leaves out a last batch that is smaller."),
    "shuffle": Kind(loading.shuffle, "Trains on the samples in a new order in each pass."),
}
KINDS: Final[Mapping[str, Kind]] = {**OF_MODEL, **OF_TRAINING}


@dataclass(frozen=True)
class Patched:
    """What came of it: the copy, to be trained as any other, and by how many trainable parameters it grew.

    `details` are sentences on what was chosen on the way, such as a learning rate; `rate` is that of a
    range test.
    """

    subject: Copy
    parameters: int = 0
    details: Sequence[str] = ()
    rate: float | None = None


def patched(
    subject: Copy, patches: Sequence[Patch], *, inputs: Inputs | None = None, seed: int = 0
) -> Patched:
    """Change the copy: its model and optimizer in place, its setup in what goes out.

    `inputs` are for one forward where no loader is known, which shows that the changed model runs; `seed`
    decides new weights. Random states stay. Raises `PatchProblem` where a change cannot be made, also in
    the training, where only that shows it; the copy is then of no further use.

    For the user's own loop, which holds the model itself, `subject` may be that model: then only
    `preserve.preserved_training` around all of this puts it back.
    """
    conduct = Conduct(subject.model)
    case = Case(subject.model, subject.optimizer, subject.setup, conduct, inputs, seed)
    before = _trainable(subject.model)
    with random_states():
        seed_generators(seed)
        kinds = [_kind(patch) for patch in patches]
        of_model = any(patch.kind in OF_MODEL for patch in patches)
        if of_model:
            case.look_before()
        for kind, patch in zip(kinds, patches, strict=True):
            kind.make(case, patch)
        if of_model or case.has_other_data:
            case.check()
        for optimizer in case.optimizers():
            conduct.adjust(optimizer)
    grown = _trainable(subject.model) - before
    return Patched(
        Copy(case.model, case.optimizer, _setup(case)), grown, tuple(case.details), case.rate
    )


def _kind(patch: Patch) -> Kind:
    kind = KINDS.get(patch.kind)
    if kind is None:
        raise PatchProblem(f"no kind of patch is called {patch.kind}")
    return kind


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad and not is_lazy(p))


def _setup(case: Case) -> Setup:
    setup, conduct = case.setup, case.conduct
    if setup.optimizer is not None:  # as it is now, not made anew
        setup = replace(setup, optimizer=case.optimizer)
    step = setup.step
    owner = getattr(step, "__self__", None)
    if step is not None and isinstance(owner, nn.Module) and owner is not case.model:
        setup = replace(setup, step=getattr(case.model, step.__name__))
    if conduct.is_idle:
        return setup
    if setup.train is not None:
        return replace(setup, train=_Within(setup.train, conduct))
    return replace(setup, around=conduct.running)


@dataclass(frozen=True)
class _Within:
    """The user's own loop, and what is done besides while it runs."""

    loop: Callable[[], Any]
    conduct: Conduct

    def __call__(self) -> Any:
        with self.conduct.running():
            return self.loop()
