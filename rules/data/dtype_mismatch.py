"""DAT010 dtype-mismatch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Data,
    FieldData,
    Finding,
    Fix,
    Graph,
    LossCall,
    Losses,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    explained,
    loading_fixes,
    rule,
)

_WHOLE = ("uint8", "int8", "int16", "int32", "int64", "bool")
_INDICES = ("cross_entropy", "nll_loss")
# Each raises for these targets, in forward or backward, with scores of float32: tried with torch 2.
_REFUSED = {
    "binary_cross_entropy_with_logits": _WHOLE,
    "binary_cross_entropy": (*_WHOLE, "float16", "float64"),
    "huber_loss": (*_WHOLE, "float16", "float64"),
}
_CASTS = ("long", "float", "double", "half", "bfloat16", "int", "type", "type_as", "to", "tensor",
          "as_tensor", "astype", "LongTensor", "FloatTensor", "one_hot")  # fmt: skip


@rule("DAT010", severity=Severity.ERROR, since="0.1")
def dtype_mismatch(
    graph: Graph, edits: SourceEdits, data: Data | None, losses: Losses | None
) -> Iterator[Finding]:
    """Inputs or targets come in a type of numbers that the weights or the loss refuse.

    PyTorch multiplies float32 by float32 only. numpy and pandas make float64, images are uint8, tables with
    whole numbers int64; `torch.from_numpy` keeps all these, and the first layer then raises "mat1 and mat2
    must have the same dtype". An Embedding wants whole numbers. So does a cross entropy for class numbers,
    int64 (or uint8), where binary cross entropy wants floats.

    Reported where an input that is the user's reaches a layer with weights in such a type, and where
    targets of the loader do so with the loss that the file names, unless code in a loop or a function of
    the file might cast them on the way.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    x, y = torch.randn(96, 13, dtype=torch.float64), torch.randint(3, (96,))
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    x, y = torch.randn(96, 13, dtype=torch.float64), torch.randint(3, (96,))
    dataset = torch.utils.data.TensorDataset(x.float(), y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    ```

    ## When to ignore it
    When the loop casts them in a way that the file does not show.

    ## Fix safety
    Only shown: best cast once where the data set is made. `model.double()` works too, at half the speed or
    less. Do not cast ids, and divide pixels by 255 as well.

    ## References
    PyTorch documentation, "Tensor Attributes": type promotion is not done by layers.
    """
    if graph.inputs_given:
        yield from _inputs(graph, edits, data)
    if data is not None and data.train.target is not None and losses is not None:
        yield from _targets(graph, edits, data, data.train.target, losses)


def _inputs(graph: Graph, edits: SourceEdits, data: Data | None) -> Iterator[Finding]:
    for node in graph.calls_in_order:
        given = graph.argument(node, "input")
        source, _ = graph.producer(node)
        if source is None or source.op != "placeholder" or not hasattr(given, "all_input_nodes"):
            continue
        got, weight = _dtype(graph, given), _dtype(graph, graph.argument(node, "weight"))
        if graph.name(node) == "embedding" and got.startswith("float"):
            needs, cast = "whole numbers", ".long()"
        elif graph.is_weighted(node) and weight == "float32" and got in ("float64", *_WHOLE):
            needs, cast = (
                f"{weight} as its weights are",
                ".float()" + (" / 255" if got == "uint8" else ""),
            )
        else:
            continue
        if _casts(edits, data, graph.place(node)):
            return
        yield Finding(
            f"{graph.label(node)} gets input of {got}, and needs {needs}: it raises at the "
            "first batch",
            where=node if data is None or data.train.site is None else data.train.site,
            module=graph.operation(node).module,
            evidence={"input": got, "weights": weight},
            fixes=[
                _cast(
                    edits,
                    data,
                    0,
                    cast,
                    f"cast the inputs where the data set is made: x{cast}",
                    f"{graph.name(node)} multiplies {got} by {weight}: layers promote no operand",
                )
            ],
            starved=1.0,
            affects=[node],
        )
        return


def _targets(
    graph: Graph, edits: SourceEdits, data: Data, target: FieldData, losses: Losses
) -> Iterator[Finding]:
    call = losses.sole
    if call is None or call.node is not None or call.steps or not call.kind:
        return
    wanted = _wanted(graph, call, target)
    if wanted is None or _casts(edits, data, call.where):
        return
    cast = ".long()" if wanted.startswith("int64") else ".float()"
    why = f"documentation of {call.kind}: targets are {wanted}"
    yield Finding(
        f"{losses.place(call)} gets targets of {target.dtype}, and needs {wanted}: it raises",
        where=data.train.site or call.where,
        evidence={"target": target.dtype, "loss": call.kind},
        fixes=[
            _cast(
                edits, data, -1, cast, f"cast the targets where the data set is made: y{cast}", why
            )
        ],
        starved=1.0,
    )


def _cast(
    edits: SourceEdits, data: Data | None, place: int, cast: str, title: str, reason: str
) -> Fix:
    """The cast at the tensors of both data sets."""
    sites = [] if data is None else [data.train.site]
    if data is not None and data.validation is not None and data.validation.site is not None:
        sites.append(data.validation.site)
    made = (
        loading_fixes.with_tensor(edits, sites, place, f"{{}}{cast}", title=title)
        if sites
        else Fix(title)
    )
    dtype = "int64" if cast.startswith(".long") else "float32"
    patch = Patch.training("cast", **{"targets" if place else "inputs": dtype})
    return explained(
        made,
        reason=reason,
        obstacle="the data are no loader's",
        patches=[patch],
        safety=Safety.SAFE,
    )


def _wanted(graph: Graph, call: LossCall, target: FieldData) -> str | None:
    """What the loss needs instead; None where these targets will do, or that is not certain."""
    scores = graph.shape(call.scores)
    if _dtype(graph, call.scores) != "float32" or scores is None or len(scores) < 2:
        return None
    if call.kind in _INDICES:
        # A target of the shape of the scores holds probabilities, one without the classes their numbers.
        numbers = len(target.shape) == len(scores) - 2
        if numbers and target.dtype not in ("int64", "uint8"):
            return "int64, the numbers of the classes"
        if not numbers and call.kind == "cross_entropy" and target.dtype in _WHOLE:
            return (
                "floats, a probability for each class"
                if len(target.shape) == len(scores) - 1
                else None
            )
        return None
    return "float32" if target.dtype in _REFUSED.get(call.kind, ()) else None


def _dtype(graph: Graph, node: Any) -> str:
    shape = graph.operation(node).shape if hasattr(node, "all_input_nodes") else None
    return "" if shape is None else str(shape.dtype).removeprefix("torch.")


def _casts(edits: SourceEdits, data: Data | None, place: Any) -> bool:
    """Whether the loop of a file may cast a batch: something is cast in a loop or a function."""
    sites = [place, None if data is None else data.train.site]
    names = {site.project.filename for site in sites if hasattr(site, "project")}
    texts = [edits.text(name) for name in names]
    return any(_casts_in(text.tree) for text in texts if text is not None and text.tree is not None)


def _casts_in(tree: ast.Module) -> bool:
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.For, ast.While, ast.FunctionDef, ast.With)):
            continue
        for call in ast.walk(scope):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                name = call.func.attr
                if name in _CASTS and not (name == "to" and _is_device(call)):
                    return True
    return False


def _is_device(call: ast.Call) -> bool:
    text = ast.unparse(call)
    return "float" not in text and "long" not in text and "dtype" not in text and "int" not in text
