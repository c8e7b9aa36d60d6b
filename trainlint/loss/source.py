"""Which loss a file applies to which model's output, read from its syntax tree.

A script keeps its loss in `main()`, in a training loop, in a `Trainer` or in `training_step`, none of
which is run. So the first argument of each call of a loss is traced back, through names, parameters
(to the calls of their function), attributes of `self` and file-local functions, to a call of a model.
What cannot be traced for certain is left open. Imports no torch and runs nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import add, mul, sub, truediv
from typing import Final

from trainlint import ops
from trainlint.fixes.source import SourceText
from trainlint.loss.next_token import asks_for_next, asks_for_next_inside
from trainlint.loss.training import Training, training_in
from trainlint.sites import Site

# The loss layers of torch.nn by the function of torch.nn.functional that they call.
LOSS_CLASSES: Final = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "NLLLoss2d": "nll_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "KLDivLoss": "kl_div",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "SoftMarginLoss": "soft_margin_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "CTCLoss": "ctc_loss",
}
LOSSES: Final = frozenset(LOSS_CLASSES.values())
_OF_SEQUENCES: Final = (
    "cross_entropy",
    "nll_loss",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)
# Layers that may stand between a model's output and its loss, by their operations.
_LAYERS: Final = {
    "Softmax": "softmax",
    "Softmax2d": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
    "Tanh": "tanh",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "Softplus": "softplus",
    "ELU": "elu",
    "GELU": "gelu",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "Hardsigmoid": "hardsigmoid",
    "Softsign": "softsign",
    "Flatten": "flatten",
    "Identity": "identity",
}
PLAIN_STEPS: Final = ops.REARRANGEMENTS | {"getitem", "cuda", "cpu", "type", "requires_grad"}
_STEPS: Final = (
    PLAIN_STEPS
    | frozenset(_LAYERS.values())
    | frozenset("log exp abs square clamp clamp_min clamp_max".split())
)
_COMBINED: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
}
# Arithmetic of an output and a number, as steps.
_ARITHMETIC: Final[dict[type[ast.operator], str]] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
}
_WRAPPERS: Final = frozenset(
    "DataParallel DistributedDataParallel FullyShardedDataParallel compile prepare initialize "
    "convert_sync_batchnorm script".split()
)
_SAME_MODEL: Final = frozenset(
    "to cuda cpu double float half bfloat16 train eval requires_grad_ apply module share_memory "
    "xpu type".split()
)
_TENSOR_ATTRIBUTES: Final = frozenset({"T", "mT", "H", "data"})
_DEEPEST: Final = 12
# Names that tell what a value is where nothing else does.
_OUTPUT: Final = re.compile(
    r"^(y_?)?(out|output|pred|logit|score|hat|prediction)s?\b|^y_?(hat|pred)"
)
_MODEL: Final = re.compile(r"model|net|classifier|discriminator|module", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class WrittenSite(Site):
    """A call as it stands in the text, for code that was read and not run."""

    __slots__ = ("_span",)

    def __init__(self, text: SourceText, node: ast.expr) -> None:
        self.code = None
        self.instruction = node.col_offset
        self.filename = text.filename
        self.row = node.lineno
        self.project = self
        self._span = (
            node.lineno,
            node.end_lineno or node.lineno,
            node.col_offset,
            node.end_col_offset or node.col_offset,
        )

    @property
    def key(self) -> tuple[str, int, int]:
        """Its place in the text."""
        return (self.filename, self.row, self.instruction)

    def span(self) -> tuple[int, int, int, int] | None:
        """(row, end row, column, end column) in UTF-8 bytes from 0."""
        return self._span


@dataclass(frozen=True)
class Step:
    """An operation on the model's output that the file makes before the loss.

    `values` are its other arguments that are numbers: of `2 * output` the factor, of a clamp the bounds
    (None where there is none). An operation with other arguments has none.
    """

    name: str
    site: Site | None
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Where a value comes from: an element of what a model returned, and the steps since.

    `models` are the names that the called model may go by; it is empty where they are not known.
    `steps` begin with the one next to the loss.
    """

    models: frozenset[str]
    element: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def same_as(self, other: Trace) -> bool:
        """Whether both say the same of the value."""
        return (self.models, self.element, [(step.name, step.values) for step in self.steps]) == (
            other.models,
            other.element,
            [(step.name, step.values) for step in other.steps],
        )


@dataclass(frozen=True)
class LossUse:
    """A call of a loss in the file. `made` is the constructor call of its layer, where there is one.

    `scores` is None where the first argument could not be traced. `within` is the class in whose
    `forward` it stands, `trains` whether the function around it goes on to a `backward`, `next_of` the
    argument of the model whose next tokens are its target.
    """

    kind: str
    call: Site
    made: Site | None
    scores: Trace | None
    within: str | None
    trains: bool
    next_of: int | str | None = None

    @property
    def site(self) -> Site:
        """The place that chose the loss."""
        return self.made or self.call


def loss_uses(text: SourceText, live: Mapping[str, str] | None = None) -> tuple[LossUse, ...]:
    """The uses of PyTorch's losses in a file that parses. Those that a `forward` makes count too.

    `live` are kinds of the losses that module-level names hold, where the file was run.
    """
    if not live and not any(name in text.text for name in (*LOSSES, *LOSS_CLASSES)):
        return ()
    try:
        return tuple(_Reader(text, live or {}).uses())
    except RecursionError:  # a text nested deeper than anyone writes by hand
        return ()


def training_of(text: SourceText) -> Training:
    """What a file that parses shows of training."""
    try:
        return training_in(text.tree, _Reader(text, {})) if text.tree is not None else Training()
    except RecursionError:
        return Training()


@dataclass(frozen=True)
class _Definition:
    """One binding of a name: its expression, and the place in it where several names are bound."""

    value: ast.expr | None
    element: tuple[str, ...]
    statement: ast.AST


@dataclass(frozen=True)
class _Loss:
    kind: str
    made: ast.Call | None


class _Reader:
    def __init__(self, text: SourceText, live: Mapping[str, str]) -> None:
        assert text.tree is not None
        self._text = text
        self._tree = text.tree
        self._live = live
        self._parents = {
            child: node for node in ast.walk(text.tree) for child in ast.iter_child_nodes(node)
        }
        self._imports = dict(_imports(text.tree))
        self._functions = {n.name: n for n in text.tree.body if isinstance(n, ast.FunctionDef)}
        self._classes = {n.name: n for n in ast.walk(text.tree) if isinstance(n, ast.ClassDef)}
        self._bindings: dict[ast.AST, dict[str, list[_Definition]]] = {}
        self._around = dict(_functions_around(text.tree))
        self._losses: dict[ast.expr, _Loss | None] = {}

    @cached_property
    def _calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self._tree) if isinstance(node, ast.Call)]

    def uses(self) -> Iterator[LossUse]:
        for call in self._calls:
            loss = self._called_loss(call)
            scores = _first_argument(call)
            if loss is None or scores is None:
                continue
            function = self._function(call)
            yield LossUse(
                loss.kind,
                WrittenSite(self._text, call),
                None if loss.made is None else WrittenSite(self._text, loss.made),
                self._trace(scores, _DEEPEST),
                self._forward_of(function),
                _has_backward(function or self._tree),
                self._next_of(call, function) if loss.kind in _OF_SEQUENCES else None,
            )

    def _next_of(self, call: ast.Call, function: Function | None) -> int | str | None:
        within = self._forward_of(function)
        if function is None or within is None:
            return asks_for_next(call, self._tree, self)
        calls = (each for each in self._calls if within in (self.models_of(each.func) or ()))
        return asks_for_next_inside(call, function, calls, self._tree, self)

    def definitions(self, expression: ast.expr) -> list[_Definition]:
        """The bindings that may hold where the expression stands; none if it is unknown."""
        return self._definitions(expression)

    def made_by(self, callee: ast.expr) -> ast.expr | None:
        """What the file's own function of that name returns."""
        function = self._own_function(callee)
        return None if function is None else self._returned(function)

    def models_of(self, expression: ast.expr) -> frozenset[str] | None:
        """Names by which a model may be known; empty if they are not known, None if it is no model."""
        return self._models(expression, _DEEPEST)

    # ------------------------------------------------------------------ losses

    def _called_loss(self, call: ast.Call) -> _Loss | None:
        dotted = self._dotted(call.func)
        if dotted is not None:
            name = dotted.rpartition(".")[2]
            if dotted.startswith("torch.") and name in LOSSES:
                return _Loss(name, None)
        return self._loss(call.func, _DEEPEST)

    def _loss(self, expression: ast.expr, depth: int) -> _Loss | None:
        """The loss layer that an expression makes or names, if it can be only one."""
        if expression not in self._losses:
            self._losses[expression] = None  # where it leads back to itself
            self._losses[expression] = self._found_loss(expression, depth) if depth else None
        return self._losses[expression]

    def _found_loss(self, expression: ast.expr, depth: int) -> _Loss | None:
        if isinstance(expression, ast.Call):
            dotted = self._dotted(expression.func) or ""
            kind = LOSS_CLASSES.get(dotted.rpartition(".")[2])
            if kind is not None and dotted.startswith("torch."):
                return _Loss(kind, expression)
            if isinstance(expression.func, ast.Attribute) and expression.func.attr in _SAME_MODEL:
                return self._loss(expression.func.value, depth - 1)
            return None
        dotted = self._dotted(expression) or ""  # `criterion = F.cross_entropy`
        if dotted.startswith("torch.") and dotted.rpartition(".")[2] in LOSSES:
            return _Loss(dotted.rpartition(".")[2], None)
        definitions = self._definitions(expression)
        found = [
            None
            if definition.value is None or definition.element
            else self._loss(definition.value, depth - 1)
            for definition in definitions
        ]
        known = [loss for loss in found if loss is not None]
        if len(known) == len(found) and len({loss.kind for loss in known}) == 1:
            return known[0]
        if isinstance(expression, ast.Name) and expression.id in self._live:
            return _Loss(self._live[expression.id], None)
        return None

    # ------------------------------------------------------------------ where a value comes from

    def _trace(self, expression: ast.expr, depth: int) -> Trace | None:
        if depth == 0:
            return None
        if isinstance(expression, ast.Name):
            return self._trace_name(expression, depth)
        if isinstance(expression, ast.Subscript):
            return self._trace_item(expression, depth)
        if isinstance(expression, ast.Attribute):
            return self._trace_attribute(expression, depth)
        if isinstance(expression, ast.Call):
            return self._trace_call(expression, depth)
        if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
            return self._then(self._trace(expression.operand, depth - 1), "neg", expression)
        if isinstance(expression, ast.BinOp):
            return self._trace_arithmetic(expression, depth)
        return None

    def _trace_arithmetic(self, expression: ast.BinOp, depth: int) -> Trace | None:
        """`2 * output`, `(output + 1) / 2`, `1 - output`: an output and a number."""
        name = _ARITHMETIC.get(type(expression.op))
        left, right = self._number(expression.left), self._number(expression.right)
        if name is None or (left is None) == (right is None):
            return None
        if right is not None:
            trace = self._trace(expression.left, depth - 1)
            return self._then(trace, name, expression, right)
        trace = self._trace(expression.right, depth - 1)
        if name == "sub":
            trace, name = self._then(trace, "neg", expression.right), "add"
        return None if name == "div" else self._then(trace, name, expression, left)

    def _then(
        self, trace: Trace | None, name: str, node: ast.expr, *values: float | None
    ) -> Trace | None:
        """The trace with one more step."""
        if trace is None:
            return None
        step = Step(name, WrittenSite(self._text, node), values)
        return replace(trace, steps=(step, *trace.steps))

    def _number(self, expression: ast.expr) -> float | None:
        """The number that is written there, or that a name holds all along."""
        if isinstance(expression, ast.Constant):
            value = expression.value
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return float(value) if is_number else None  # type: ignore[arg-type]
        if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
            positive = self._number(expression.operand)
            return None if positive is None else -positive
        if isinstance(expression, ast.BinOp):
            left, right = self._number(expression.left), self._number(expression.right)
            combine = _COMBINED.get(type(expression.op))
            if combine is None or left is None or right is None:
                return None
            return combine(left, right) if right or combine is not truediv else None
        if isinstance(expression, ast.Name):
            bound = self._definitions(expression)
            given = bound[0].value if len(bound) == 1 and not bound[0].element else None
            is_plain = isinstance(given, (ast.Constant, ast.UnaryOp))
            return self._number(given) if given is not None and is_plain else None
        return None

    def _trace_name(self, name: ast.Name | ast.Attribute, depth: int) -> Trace | None:
        found: list[Trace | None] = []
        definitions = self._definitions(name)
        if not definitions and isinstance(name, ast.Name) and _OUTPUT.search(name.id):
            return Trace(frozenset())
        for definition in definitions:
            if definition.value is None:
                return None
            if isinstance(definition.value, (ast.Constant, ast.List)):
                continue  # `output = None` before a loop
            trace = self._trace(definition.value, depth - 1)
            if trace is not None and definition.element:
                trace = _item(trace, definition.element)
            found.append(trace)
        known = [trace for trace in found if trace is not None]
        if not known or len(known) < len(found):
            return None
        return known[0] if all(known[0].same_as(other) for other in known[1:]) else None

    def _trace_item(self, expression: ast.Subscript, depth: int) -> Trace | None:
        trace = self._trace(expression.value, depth - 1)
        if trace is None:
            return None
        index = expression.slice
        if isinstance(index, ast.Constant) and isinstance(index.value, (int, str)):
            return _item(trace, (str(index.value),))
        return self._then(trace, "getitem", expression)

    def _trace_attribute(self, expression: ast.Attribute, depth: int) -> Trace | None:
        if isinstance(expression.value, ast.Name) and expression.value.id == "self":
            return self._trace_name(expression, depth)
        trace = self._trace(expression.value, depth - 1)
        if trace is None or expression.attr in _TENSOR_ATTRIBUTES:
            return trace
        return None if trace.steps else _item(trace, (expression.attr,))

    def _trace_call(self, call: ast.Call, depth: int) -> Trace | None:
        name, operand = self._operation(call, depth)
        if operand is not None:
            trace = self._trace(operand, depth - 1)
            if not name.startswith("clamp"):
                return self._then(trace, name, call)
            limits = self._limits(name, call, is_method=operand not in call.args)
            return self._then(trace, "clamp", call, *limits)
        function = self._own_function(call.func)
        if function is not None:
            returned = self._returned(function)
            return None if returned is None else self._trace(returned, depth - 1)
        models = self._models(call.func, depth - 1)
        if models is not None:
            return Trace(models)
        return None

    def _operation(self, call: ast.Call, depth: int) -> tuple[str, ast.expr | None]:
        """The canonical name of a known operation and what it is applied to: (name, None) for others."""
        dotted = self._dotted(call.func)
        if dotted is not None and dotted.startswith("torch."):
            name = _canonical(dotted.rpartition(".")[2])
            return (name, _first_argument(call)) if name in _STEPS else (name, None)
        layer = self._layer(call.func, depth)
        if layer is not None:
            return layer, _first_argument(call)
        if isinstance(call.func, ast.Attribute):
            name = _canonical(call.func.attr)
            if name in _STEPS and not self._is_self(call.func.value):
                return name, call.func.value
        return "", None

    def _limits(self, name: str, call: ast.Call, *, is_method: bool) -> tuple[float | None, ...]:
        """The bounds of a clamp, (None, 6.0) where there is only one; none where they are no numbers."""
        given: dict[str, ast.expr] = {word.arg: word.value for word in call.keywords if word.arg}
        names = {"clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ("min", "max"))
        given |= dict(zip(names, call.args[0 if is_method else 1 :], strict=False))
        sides = [given.get(side) for side in ("min", "max")]
        stated = [side for side in sides if side is not None and not _is_none(side)]
        if any(self._number(side) is None for side in stated):
            return ()
        return tuple(self._number(side) if side in stated else None for side in sides)

    def _layer(self, expression: ast.expr, depth: int) -> str | None:
        """`nn.Softmax(dim=1)`, or a name for one: the operation that it computes."""
        if depth <= 0:
            return None
        if isinstance(expression, ast.Call):
            dotted = self._dotted(expression.func) or ""
            return _LAYERS.get(dotted.rpartition(".")[2]) if dotted.startswith("torch.") else None
        found = {
            self._layer(definition.value, depth - 1) if definition.value is not None else None
            for definition in self._definitions(expression)
        }
        return found.pop() if len(found) == 1 else None

    def _own_function(self, callee: ast.expr) -> Function | None:
        """The file's function, or the method of the class around, that is called by this name."""
        if isinstance(callee, ast.Name):
            return self._functions.get(callee.id)
        own = self._class_of(callee)
        if isinstance(callee, ast.Attribute) and self._is_self(callee.value) and own is not None:
            for part in own.body:
                if isinstance(part, ast.FunctionDef) and part.name == callee.attr != "forward":
                    return part
        return None

    def _returned(self, function: Function) -> ast.expr | None:
        values = [
            part.value
            for part in ast.walk(function)
            if isinstance(part, ast.Return) and self._function(part) is function
        ]
        return values[0] if len(values) == 1 else None

    # ------------------------------------------------------------------ models

    def _models(self, expression: ast.expr, depth: int) -> frozenset[str] | None:
        """Names by which the called thing may be known; empty if unknown, None if it is no model."""
        if depth <= 0:
            return None
        if isinstance(expression, ast.Name):
            return self._named_models(expression, expression.id, depth)
        if isinstance(expression, ast.Attribute):
            if expression.attr in _SAME_MODEL | {
                "forward"
            }:  # `model.module(x)`, `model.forward(x)`
                return self._models(expression.value, depth - 1)
            if self._is_self(expression.value):
                return self._named_models(expression, None, depth)
            return None
        if isinstance(expression, ast.Call):
            return self._made_models(expression, depth)
        return None

    def _named_models(
        self, expression: ast.Name | ast.Attribute, name: str | None, depth: int
    ) -> frozenset[str] | None:
        if name == "self":
            own = self._class_of(expression)
            return frozenset() if own is None else frozenset({own.name})
        if name is not None and (name in self._imports or name in self._functions):
            return None
        definitions = self._definitions(expression)
        names = {name} if name is not None and self._is_global(expression) else set()
        if definitions and all(definition.value is None for definition in definitions):
            return frozenset()  # one of those that a loop goes through
        for definition in definitions:
            if definition.value is None:
                continue
            made = self._models(definition.value, depth - 1)
            if made is None:
                return None
            names |= made
        spelt = expression.id if isinstance(expression, ast.Name) else expression.attr
        if not definitions and not _MODEL.search(spelt):
            return None
        return frozenset(names)

    def _made_models(self, call: ast.Call, depth: int) -> frozenset[str] | None:
        """`Net().to(device)`, `nn.DataParallel(net)`, `build_model(args)`."""
        callee = call.func
        if isinstance(callee, ast.Attribute) and callee.attr in _SAME_MODEL:
            return self._models(callee.value, depth - 1)
        last = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
        if last in _WRAPPERS and call.args:
            return self._models(call.args[0], depth - 1)
        if last in self._functions:
            returned = self._returned(self._functions[last])
            made = None if returned is None else self._models(returned, depth - 1)
            return frozenset({last}) | (made or frozenset())
        return frozenset({last}) if last else None

    # ------------------------------------------------------------------ names

    def _definitions(self, expression: ast.expr) -> list[_Definition]:
        """The bindings that may hold where the expression stands; none if it is unknown."""
        if isinstance(expression, ast.Attribute) and self._is_self(expression.value):
            return self._own_attributes(expression)
        if not isinstance(expression, ast.Name):
            return []
        scope: ast.AST = self._function(expression) or self._tree
        here = True
        while True:
            bound = self._bound_in(scope).get(expression.id, [])
            if bound:
                return self._reaching(bound, expression) if here else bound
            if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
                position = _position(scope, expression.id)
                if position is not None:
                    return self._passed(scope, expression.id, position)
            if scope is self._tree:
                return []
            scope, here = self._function(scope) or self._tree, False

    def _is_global(self, expression: ast.Name | ast.Attribute) -> bool:
        """Whether the name is bound at module level, and not in the function around."""
        if not isinstance(expression, ast.Name):
            return False
        function = self._function(expression)
        while function is not None:
            if expression.id in self._bound_in(function):
                return False
            if _position(function, expression.id) is not None:
                return False
            function = self._function(function)
        return expression.id in self._bound_in(self._tree)

    def _reaching(self, bound: list[_Definition], use: ast.Name) -> list[_Definition]:
        """The last binding before the use, and those before it as long as they lie in a branch apart."""
        statement = self._statement(use)
        before = [
            definition
            for definition in bound
            if definition.statement is not statement
            and getattr(definition.statement, "lineno", 0) <= use.lineno
        ]
        around = set(self._ancestors(use))
        found: list[_Definition] = []
        for definition in reversed(before):
            if self._excludes(definition, use):
                continue
            found.append(definition)
            branches = set(self._ancestors(definition.statement)) - around
            if not any(isinstance(branch, _BRANCHES) for branch in branches):
                break
        return found or (bound if not before else [])

    def _excludes(self, definition: _Definition, use: ast.AST) -> bool:
        """Whether binding and use stand in different arms of one `if`."""
        below_use, node = {}, use
        for parent in self._ancestors(use):
            below_use[parent] = node
            node = parent
        node = definition.statement
        for parent in self._ancestors(definition.statement):
            if parent in below_use and isinstance(parent, ast.If):
                arms = [part in parent.body for part in (node, below_use[parent])]
                return arms[0] != arms[1]
            node = parent
        return False

    def _bound_in(self, scope: ast.AST) -> dict[str, list[_Definition]]:
        """The bindings of a function or module, without those of functions inside."""
        if scope not in self._bindings:
            found: dict[str, list[_Definition]] = {}
            own = None if scope is self._tree else scope
            for node in ast.walk(scope):
                if self._function(node) is own and node is not scope:
                    for name, definition in _bound_by(node):
                        found.setdefault(name, []).append(definition)
            for definitions in found.values():
                definitions.sort(key=lambda d: getattr(d.statement, "lineno", 0))
            self._bindings[scope] = found
        return self._bindings[scope]

    def _own_attributes(self, expression: ast.Attribute) -> list[_Definition]:
        """What the class assigns to `self.name`, or those of its bases in this file."""
        own = self._class_of(expression)
        seen: set[str] = set()
        while own is not None and own.name not in seen:
            seen.add(own.name)
            found = [
                _Definition(node.value, (), node)
                for node in ast.walk(own)
                if isinstance(node, (ast.Assign, ast.AnnAssign))
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Attribute)
                and target.attr == expression.attr
                and self._is_self(target.value)
            ]
            if found:
                return found
            bases = [getattr(base, "id", "") for base in own.bases]
            own = next((self._classes[base] for base in bases if base in self._classes), None)
        return []

    def _passed(self, function: Function, name: str, position: int) -> list[_Definition]:
        """What the calls of the function in this file pass for a parameter."""
        found: list[_Definition] = []
        for call in self._calls:
            if not self._calls_function(call, function):
                continue
            value = next((k.value for k in call.keywords if k.arg == name), None)
            if value is None and position < len(call.args):
                value = call.args[position]
            if value is None or isinstance(value, ast.Starred):
                value = _default(function, name)
            if value is not None:
                found.append(_Definition(value, (), call))
        return found

    def _calls_function(self, call: ast.Call, function: Function) -> bool:
        owner = self._parents.get(function)
        callee = call.func
        if not isinstance(owner, ast.ClassDef):
            return isinstance(callee, ast.Name) and callee.id == function.name
        if function.name == "__init__":
            return isinstance(callee, ast.Name) and callee.id == owner.name
        if function.name == "forward":
            return owner.name in (self._models(callee, 4) or ())
        return isinstance(callee, ast.Attribute) and callee.attr == function.name

    # ------------------------------------------------------------------ the tree

    def _ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        current = self._parents.get(node)
        while current is not None:
            yield current
            current = self._parents.get(current)

    def _function(self, node: ast.AST) -> Function | None:
        return self._around.get(node)

    def _class_of(self, node: ast.AST) -> ast.ClassDef | None:
        return next((p for p in self._ancestors(node) if isinstance(p, ast.ClassDef)), None)

    def _statement(self, node: ast.AST) -> ast.stmt | None:
        if isinstance(node, ast.stmt):
            return node
        return next((p for p in self._ancestors(node) if isinstance(p, ast.stmt)), None)

    def _forward_of(self, function: Function | None) -> str | None:
        owner = None if function is None else self._parents.get(function)
        if function is not None and function.name == "forward" and isinstance(owner, ast.ClassDef):
            return owner.name
        return None

    @staticmethod
    def _is_self(expression: ast.expr) -> bool:
        return isinstance(expression, ast.Name) and expression.id == "self"

    def _dotted(self, expression: ast.expr) -> str | None:
        """`torch.nn.functional.softmax` for `F.softmax`, by the file's imports."""
        if isinstance(expression, ast.Name):
            if expression.id in self._classes or expression.id in self._functions:
                return None
            return self._imports.get(expression.id)
        if isinstance(expression, ast.Attribute):
            base = self._dotted(expression.value)
            return None if base is None else f"{base}.{expression.attr}"
        return None


_BRANCHES: Final = (ast.If, ast.Try, ast.ExceptHandler, ast.For, ast.While, ast.Match)


def _functions_around(tree: ast.Module) -> Iterator[tuple[ast.AST, Function]]:
    """Each node with the innermost function that it lies in."""
    stack: list[tuple[ast.AST, Function | None]] = [(tree, None)]
    while stack:
        node, function = stack.pop()
        if function is not None:
            yield node, function
        inner = node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        stack.extend((child, inner) for child in ast.iter_child_nodes(node))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or name, name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                if alias.name == "*" and node.module.startswith("torch.nn"):
                    yield from ((name, f"{node.module}.{name}") for name in LOSS_CLASSES)
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _bound_by(node: ast.AST) -> Iterator[tuple[str, _Definition]]:
    """The names that a statement binds."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _targets(target, node.value, (), node)
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        yield from _targets(node.target, node.value, (), node)
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.AugAssign)):
        yield from _targets(node.target, None, (), node)
    elif isinstance(node, ast.comprehension):
        yield from _targets(node.target, None, (), node.target)
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield from _targets(node.optional_vars, None, (), node.context_expr)


def _targets(
    target: ast.expr, value: ast.expr | None, element: tuple[str, ...], statement: ast.AST
) -> Iterator[tuple[str, _Definition]]:
    if isinstance(target, ast.Name):
        yield target.id, _Definition(value, element, statement)
    elif isinstance(target, (ast.Tuple, ast.List)):
        if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
            for part, own in zip(target.elts, value.elts, strict=True):
                yield from _targets(part, own, element, statement)
            return
        for index, part in enumerate(target.elts):
            if isinstance(part, ast.Starred):
                return
            yield from _targets(part, value, (*element, str(index)), statement)


def _first_argument(call: ast.Call) -> ast.expr | None:
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    return next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)


def _item(trace: Trace, element: tuple[str, ...]) -> Trace | None:
    """A part of what the model returned; of a tensor made from it, it cannot be told which."""
    return None if trace.steps else replace(trace, element=(*trace.element, *element))


def _is_none(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Constant) and expression.value is None


def _canonical(name: str) -> str:
    bare = name.removesuffix("_")
    return ops.ALIASES.get(bare, bare)


def _position(function: Function, name: str) -> int | None:
    """The place of a parameter among the positional ones, without `self`."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if names[:1] == ["self"]:
        names = names[1:]
    if name in names:
        return names.index(name)
    return len(names) if name in [argument.arg for argument in arguments.kwonlyargs] else None


def _default(function: Function, name: str) -> ast.expr | None:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    with_default = names[len(names) - len(arguments.defaults) :]
    return dict(zip(with_default, arguments.defaults, strict=True)).get(name)


def _has_backward(scope: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Attribute) and part.attr in ("backward", "manual_backward")
        for part in ast.walk(scope)
    ) or getattr(scope, "name", "") in ("training_step", "compute_loss", "loss", "criterion")
