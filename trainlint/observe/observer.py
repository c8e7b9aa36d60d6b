"""What the events of a training loop add up to: which model is trained by what, and how it goes.

Comes in: events (`hooks.py`). Goes out: a `Trace`. Each event is handed to the parts that follow the
loop's models, forwards, optimizers, losses and data; this decides what is told to which, and when. They
hold no reference to a tensor of the loop beyond the step that is recorded, and read no number from the
device before `trace()`, but for losses on the CPU.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainlint.data.facts import Data
from trainlint.generalization.curves import Generalization
from trainlint.observe.autograd import sequence
from trainlint.observe.checkpoints import Checkpoints
from trainlint.observe.clipping import Clipping
from trainlint.observe.datasets import Datasets
from trainlint.observe.evaluations import Evaluations
from trainlint.observe.failures import failure_in
from trainlint.observe.first_steps import FirstSteps
from trainlint.observe.forwards import Forwards
from trainlint.observe.incidents import Incidents
from trainlint.observe.judging import Judging
from trainlint.observe.keepers import Graphs
from trainlint.observe.loaders import Loaders
from trainlint.observe.models import model_trace
from trainlint.observe.objectives import Objectives
from trainlint.observe.optimizers import Optimizers
from trainlint.observe.pace import Pace
from trainlint.observe.parameters import ParameterRecorder
from trainlint.observe.recorder import Recorder
from trainlint.observe.roots import Forward, Roots, unwrapped
from trainlint.observe.scaling import MOST_SKIPPED, Scaling, left_out
from trainlint.observe.schedules import Schedules
from trainlint.observe.sharding import is_spread
from trainlint.observe.soundness import Soundness
from trainlint.observe.trace import LossTrace, Trace
from trainlint.sites import Site, calling_site, place_key
from trainlint.tree import tensors

if TYPE_CHECKING:
    from trainlint.observe.first_steps import BeforeTraining

MOST_LOSSES: Final = 4096
# Recorded steps in which dead units are looked for together, and after which figures are fetched.
WINDOW: Final = 5
_BETWEEN_DRAINS: Final = 32


class TrainingObserver:
    """Follows a training loop. Give it to `hooks.observed`; `trace()` says what it saw.

    `models` restricts it to these roots. `period` records each so many steps after the first five; 0
    adapts it, so that recording costs about 5% on average, and so many `free` seconds besides: short runs
    of small models would show too little else. `after_step` is called with the number of steps after each;
    what it raises goes into the loop. `before_training` is called once for each model, before the first
    step that trains it, with the arguments of its latest forward and the losses that judge it. Up to
    `measuring` seconds, and 1% of the run's time, go to losses of single samples at validation passes; by
    default half of `free`.
    """

    def __init__(
        self,
        models: Iterable[nn.Module] | None = None,
        *,
        period: int = 0,
        free: float = 0.0,
        after_step: Callable[[int], None] | None = None,
        before_training: BeforeTraining | None = None,
        measuring: float | None = None,
    ) -> None:
        self.after_step = after_step
        self._pace = Pace(period, free)
        self._incidents = Incidents(self._pace)
        self._roots = Roots(models)
        self._optimizers = Optimizers(self._roots, self._pace, self._incidents)
        self._forwards = Forwards(self._roots, self._optimizers, self._pace, self._incidents)
        self._scaling = Scaling()
        self._clipping = Clipping(self._optimizers, self._scaling, self._incidents)
        self._schedules = Schedules(self._optimizers, self._scaling, self._pace, self._incidents)
        self._soundness = Soundness(self._roots, self._pace, self._incidents)
        self._graphs = Graphs(self._incidents)
        self._judging = Judging()
        self._first_steps = FirstSteps(
            before_training, self._roots, self._optimizers, self._pace, self._judging
        )
        self._loaders = Loaders()
        self._datasets = Datasets()
        self.recorder = Recorder(self._loss_called, self._soundness.outside)
        self._parameters = ParameterRecorder()
        self._objectives = Objectives(
            self._incidents.note,
            self.recorder.maker_of,
            self._roots.latest_inputs,
            lambda: self._loaders.latest,
        )
        self._evaluations = Evaluations(self.recorder)
        self._checkpoints = Checkpoints(free / 2 if measuring is None else measuring)
        self._losses: list[tuple[int, Any]] = []
        self._is_compiled = False
        # Whether other processes hold parts of parameters.
        self._is_spread = False

    @property
    def step(self) -> int:
        """How many steps there were."""
        return self._pace.step

    def pauses(self) -> None:
        """The loop is no longer watched."""
        self._checkpoints.pauses()

    def resumes(self) -> None:
        """It is watched again."""
        self._checkpoints.resumes()

    # ------------------------------------------------------------------ forwards

    @property
    def wants_modules(self) -> bool:
        return self.recorder.is_inside

    def forward_begins(self, module: nn.Module, site: Site | None) -> None:
        self._evaluations.leave()
        root = self._roots.of(module, site)
        if root is None or not torch.is_grad_enabled():
            if root is not None and root.trained_in:
                self._checkpoints.evaluation_begins(root)
                self._datasets.evaluated()
            return
        self._checkpoints.training_begins(root, self.step)
        self._pace.forward_begins()
        if self._pace.is_looking_in and self.recorder.enter():
            root.random_state = torch.get_rng_state() if self._soundness.is_sound else None
            self.recorder.begin_forward(root.number, root.paths, root.names, root.made)
            self.recorder.enter_module(unwrapped(module))

    def module_begins(self, module: nn.Module) -> None:
        self.recorder.enter_module(module)

    def module_ends(self) -> None:
        self.recorder.leave_module()

    def enters_compiled(self) -> None:
        self._is_compiled = True
        self._first_steps.gives_up()
        self.recorder.leave()

    def leaves_mode(self) -> None:
        self.recorder.leave()

    def forward_ends(self, module: nn.Module, inputs: Any, output: Any, site: Site | None) -> None:
        self.recorder.end_forward()
        if self._pace.is_looking_in and torch.is_grad_enabled():
            self.recorder.enter()  # compiled code may have ended it: the losses come next
        root = self._roots.of(module, site)
        if root is None:
            return
        training = unwrapped(module).training
        root.inputs = inputs if self._soundness.is_sound else None
        root.autocast = _autocast()
        ends = frozenset(sequence(t.grad_fn) for _, t in tensors(output) if t.grad_fn is not None)
        given = next((weakref.ref(t) for _, t in tensors(inputs)), None)
        if not ends:
            self._forwards.evaluated(root, site, training, given)
            if root.trained_in and not self._is_compiled and not torch.is_grad_enabled():
                self._checkpoints.evaluated(root, module, inputs, output)
                loss = self._evaluations.forward(root.number, output, self.step, site)
                if loss is not None:
                    with self._aside():
                        self._checkpoints.validated_itself(loss, self.step)
            return
        self._evaluations.trained_forward(root.number, output)
        self._judging.forward_ends(root, output)
        self._soundness.forward_ends(ends)
        known = None if given is None else given()
        samples = 0 if known is None or not known.dim() else len(known)
        forward = Forward(root, ends, site, training, self.step, given, root.is_asked, samples)
        self._forwards.wait(forward)
        if self._pace.is_recording and not self._is_compiled:
            self._checkpoints.trains_on(root, inputs, output, forward)

    def switches(self, module: nn.Module, training: bool, site: Site | None) -> None:
        root = self._roots.known(module)
        if root is not None:
            root.switched[training] = site
            root.is_asked = training
            root.idle = None
        self._evaluations.leave()
        self._checkpoints.switches()

    # ------------------------------------------------------------------ losses and backward passes

    def _loss_called(
        self, name: str, args: Any, kwargs: Any, result: Any, root: int | None
    ) -> None:
        if self._evaluations.is_listening:
            self._evaluations.look_at(self.step, name, args, kwargs, result)
            with self._aside():
                self._checkpoints.validated(name, args, kwargs, self.step)
        else:
            if root is None and self._pace.is_recording:
                self._checkpoints.loss_called(name, args, kwargs, result)
            if root is None:
                scores = args[0] if args else kwargs.get("input")
                self._judging.loss_called(name, scores)
            self._objectives.look_at(self.step, name, args, kwargs, result, root)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """What is measured within is no part of a step's time, and of what is free."""
        started, spent = time.thread_time(), self._checkpoints.spent
        yield
        if self._checkpoints.spent > spent:
            seconds = time.thread_time() - started
            self._pace.leave_out(seconds, free=self._checkpoints.spent - spent)

    def backward_begins(self, losses: list[Tensor], site: Site | None) -> None:
        self._soundness.backward_begins(site)
        self._evaluations.trains()
        self._checkpoints.backward_begins()
        self._datasets.trained()
        trained, optimizers = self._forwards.reached(losses, site)
        for forward in trained:
            self._checkpoints.trained(forward)
        self._checkpoints.backward_ends()
        for loss in losses:
            if loss.grad_fn is None:
                self._forwards.detached(loss, site)
            else:
                self._graphs.add(loss.grad_fn, self.step, site)
        self._optimizers.backward_begins(optimizers, site)
        if len(losses) == 1 and losses[0].numel() == 1:
            self._keep(losses[0], site)

    def _keep(self, loss: Tensor, site: Site | None) -> None:
        number = self._scaling.unscaled(loss).detach()
        value: Any
        if number.device.type == "cpu":
            value = float(number)
            self._soundness.look_at_loss(value, loss, site, self._forwards.latest())
        else:
            value = number.clone()
        self._losses.append((self.step, value))
        if len(self._losses) > MOST_LOSSES:
            del self._losses[1::2]

    def backward_ends(self, losses: list[Tensor], error: BaseException | None) -> None:
        self._optimizers.backward_ends()
        if error is not None and "a second time" in str(error):
            self._incidents.note("graph-used-twice", calling_site())
        self._first_steps.backward_ends()

    # ------------------------------------------------------------------ steps

    def optimizer_made(self, optimizer: Any, site: Site | None) -> None:
        self._optimizers.made(optimizer, site)

    def step_begins(self, optimizer: Any, closure: bool, site: Site | None) -> None:
        known = self._optimizers.of(optimizer)
        known.closure = known.closure or closure
        known.stepped_at[place_key(site)] = site
        if closure:
            self._first_steps.closure_begins(known)
            self._forwards.look_at_modes(known, site)
            return
        self._optimizers.step_begins(known, site)
        parameters = list(known.parameters())
        if not self._scaling.is_enabled():  # it looks for itself
            self._soundness.look_at_gradients(known, parameters)
        self._optimizers.look_at(known, parameters, site)
        self._first_steps.step_begins(known)
        self._forwards.look_at_modes(known, site)
        if self._pace.is_recording:
            whole = [p for p in parameters if not is_spread(p)]
            self._is_spread = self._is_spread or len(whole) < len(parameters)
            scale = getattr(known.held(), "grad_scale", None)  # of a `GradScaler`, in fused code
            self._parameters.begin(whole, self._roots.owners(), scale)

    def step_ends(self, optimizer: Any) -> None:
        known = self._optimizers.of(optimizer)
        if self._pace.is_recording:
            self._parameters.end(self.step)
        self._optimizers.step_ends(optimizer, known)
        if known.steps > self.step:
            self._iteration_ends()

    def _iteration_ends(self) -> None:
        self._pace.step_ends()
        if self._pace.is_recording:
            self.recorder.leave()
            self.recorder.close(self.step)
            self._soundness.close(self.step)
            recorded = len(self._pace.recorded)
            if recorded % WINDOW == 0:
                self.recorder.close_window()
            if recorded % _BETWEEN_DRAINS == 0:
                self._drain()
        else:
            self.recorder.discard()
        self._graphs.count(self.step)
        self._pace.next_begins()

    def _drain(self) -> None:
        self.recorder.drain()
        self._soundness.drain()
        self._parameters.drain()
        self._objectives.drain()
        if self._pace.keep_every_other():
            self.recorder.keep_every_other()
            self._parameters.keep_every_other()

    def clips(self, parameters: list[Tensor], limit: float, norm: Any, site: Site | None) -> None:
        self._clipping.clips(parameters, limit, norm, site)

    def scales(self, scaler: Any, outputs: Any, scaled: Any) -> None:
        if scaler.is_enabled():
            self._scaling.scales(scaler, outputs, scaled)

    def scaler_steps(self, scaler: Any, optimizer: Any, site: Site | None) -> None:
        if not scaler.is_enabled():
            return
        known = self._optimizers.of(optimizer)
        if not self._scaling.steps(scaler, known, site):
            return
        if scaler.get_scale() < 1 and self._soundness.is_sound:
            if self._pace.is_recording and known.skipped_in_row >= MOST_SKIPPED:
                self._soundness.find_gradient_origin(list(known.parameters()))
            self._pace.record_at_once()
        self._soundness.close(self.step)

    def schedules(self, scheduler: Any, site: Site | None) -> None:
        self._schedules.steps(scheduler, site)

    # ------------------------------------------------------------------ data

    def loader_made(self, loader: Any, site: Site | None) -> None:
        self._loaders.made(loader, site)

    def passes(self, loader: Any, site: Site | None) -> None:
        self._evaluations.passes(loader)
        self._checkpoints.passes(loader)
        known = self._loaders.passes(loader, self.step, site)
        if known is not None:
            self._datasets.passes(loader, known.site)

    # ------------------------------------------------------------------ the end

    def fails(self, error: BaseException) -> None:
        """The loop ended with this exception."""
        failure = failure_in(error)
        if failure is None:
            return
        facts = dict(failure.facts)
        module = facts.pop("module", None)
        paths = [root.paths[id(module)] for root in self._roots if id(module) in root.paths]
        self._incidents.note(
            failure.kind, failure.site, **facts, module=paths[0] if paths else None
        )

    def data(self, seconds: float) -> Data | None:
        """Read what the loop has read, for so many `seconds` of a run, when it is over. Raises nothing."""
        held = {
            (root.number, name): root.shapes[name] for root in self._roots for name in root.held
        }
        trainable = sum(elements for elements, _, asks in held.values() if asks)
        return self._datasets.read(
            seconds, trainable=trainable, has_loss=bool(self._objectives.trace())
        )

    def trace(self) -> Trace:
        """What was seen. May be asked at any time; moves what is on the device to the host."""
        self._drain()
        objectives = self._objectives.trace()
        return Trace(
            steps=self.step,
            recorded=list(self._pace.recorded),
            models=[
                model_trace(root, self._forwards.counts(root), self.recorder, self._parameters,
                            self._optimizers)
                for root in self._roots
            ],
            optimizers=self._optimizers.trace(),
            losses=[(step, float(value)) for step, value in self._losses],
            clips=self._clipping.trace(),
            schedules=self._schedules.trace(),
            objectives=objectives,
            evaluations=self._evaluations.trace(),
            incidents=[*self._incidents.trace(), *self._forwards.unused_graphs(),
                       *left_out(self._optimizers)],
            notes=list(self._notes()),
            loaders=self._loaders.trace(),
            generalization=self._generalization(objectives),
            unmeasured=self._checkpoints.reason,
        )  # fmt: skip

    def _generalization(self, objectives: Sequence[LossTrace]) -> Generalization | None:
        """Training against validation error, in units of a constant answer's loss where that is known."""

        def guess(kind: str) -> float | None:
            known = [o for o in objectives if o.kind == kind and o.guess is not None]
            return known[0].guess if len(known) == 1 else None

        return self._checkpoints.generalization(guess)

    def _notes(self) -> Iterator[str]:
        if self._datasets.problem:
            yield f"the data were not looked at: {self._datasets.problem}"
        if self._is_compiled:
            yield "compiled code is not looked into: only losses, steps and gradients of parameters"
            if not self.step:
                yield "no optimizer step was seen: those within compiled code cannot be"
        if self._is_spread:
            yield "other processes hold parts of the parameters: there are no figures of those"
        if self.recorder.refused:
            yield "results were not recorded where another torch function mode was active"
        if self.recorder.transformed:
            yield "results within transforms of torch.func (grad, vmap) were not recorded"
        if self.recorder.problem is not None:
            yield f"recording stopped: {type(self.recorder.problem).__name__}: {self.recorder.problem}"


def _autocast() -> tuple[str, Any] | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None
