"""GEN004 missing-validation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Data,
    Finding,
    Fix,
    Graph,
    Severity,
    SourceEdits,
    Trace,
    rule,
)

_HELD_OUT = re.compile(
    r"(?:^|_)(?:x|y)?_?(?:val|valid|validation|validate|test|testing|dev|eval|evaluate|evaluation|holdout|"
    r"held|fold|folds|kfold|cv)(?=_|$|\d)|random_split|KFold|ShuffleSplit",
    re.IGNORECASE,
)
_TEST = re.compile(r"(?:^|_)test(?:ing)?(?=_|$|\d)|^test(?:loader|set|data)", re.IGNORECASE)
_VALIDATION = re.compile(
    r"(?:^|_)(?:val|valid|validation|dev)(?=_|$|\d)|^val(?:id)?(?:loader|set)", re.IGNORECASE
)
_BEST = re.compile(r"(?:^|_)(?:best|lowest|highest|min|max)(?=_|$)", re.IGNORECASE)
_KEEPS = ("save", "save_model", "save_checkpoint", "deepcopy", "state_dict", "save_pretrained")


@rule("GEN004", severity=Severity.INFO, since="0.1", own=["data"])
def missing_validation(
    edits: SourceEdits, graph: Graph | None, data: Data | None, trace: Trace | None
) -> Iterator[Finding]:
    """Nothing tells how well what is learnt holds for other data, or the test data choose the model.

    The training loss says how well the training data are known. It falls on labels drawn by lot as well
    (Zhang et al. 2017). Only samples that the training never saw tell whether to train on, stop, or change
    something. And what chooses cannot judge: the best of 50 epochs on the test data is better than that
    model is on new data, by about as much as the 50 figures scatter (Cawley & Talbot 2010). Hence three
    sets: to learn, to choose, and to judge, once, at the end. Where samples are few, k folds do for the
    first two.

    Advice where a file names a loader of training data with targets, and neither a validation loader nor
    anything that sounds like one; and where a file keeps a checkpoint, stops or lowers the learning rate by
    a figure that is called test, or computed of something called so, and has no validation data.

    ## Bad
    ```python
    x, y = torch.randn(320, 8), torch.randint(2, (320,))
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    ```

    ```python
    x = torch.randn(320, 8)
    y = (x[:, 0] > 0).long()
    x_test, y_test = x[240:], y[240:]
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    best, best_state = 0.0, None
    for epoch in range(8):
        for batch in torch.randperm(240).split(32):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(x_test).argmax(1) == y_test).float().mean()
        if accuracy > best:
            best = accuracy
            best_state = {k: v.clone() for k, v in model.state_dict().items()}
    ```

    ## Good
    ```python
    x = torch.randn(320, 8)
    y = (x[:, 0] > 0).long()
    dataset = torch.utils.data.TensorDataset(x, y)
    train_set, val_set = torch.utils.data.random_split(dataset, [240, 80])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=32, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=80)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    ```

    ## When to ignore it
    When what is called test is there to choose by, and other data judge in the end; or when all that is
    wanted is to fit these data.

    ## Fix safety
    Only shown: how to split (by person, by time, by class) depends on what the samples are.

    ## References
    Cawley & Talbot 2010, JMLR 11:2079. Zhang, Bengio, Hardt, Recht & Vinyals 2017, arXiv:1611.03530.
    Hastie, Tibshirani & Friedman 2009, sections 7.2 and 7.10.
    """
    trees = [(name, tree) for name in _files(graph, data, trace) if (tree := _tree(edits, name))]
    chosen = [finding for name, tree in trees for finding in _choices(name, tree)]
    if chosen:
        yield chosen[0]
    elif data is not None and data.validation is None and data.train.target is not None:
        site = data.train.site
        if (
            site is None
            or not trees
            or any(_HELD_OUT.search(word) for _, tree in trees for word in _words(tree))
        ):
            return
        yield Finding(
            f"{data.train.name} is all the data there is: nothing tells what was learnt from what is known "
            "by heart",
            where=site,
            evidence={"samples": data.train.size},
            fixes=[
                Fix(
                    "split: train_set, val_set = torch.utils.data.random_split(dataset, [0.8, 0.2])",
                    reason="Hastie et al. 2009, section 7.2: training error tells nothing of new samples",
                    obstacle="how to split (by person, by time, by class) depends on what the samples are",
                ),
                Fix(
                    "or, for few samples, take k folds: trainlint check --kfold 5",
                    reason="Hastie et al. 2009, section 7.10: each sample judges once, trains k − 1 times",
                    obstacle="it is a command",
                ),
            ],
        )


def _files(graph: Graph | None, data: Data | None, trace: Trace | None) -> list[str]:
    """The user's files that take part in the training."""
    sites: list[Any] = []
    if data is not None:
        sites.append(data.train.site)
    if trace is not None:
        sites += [optimizer.site for optimizer in trace.optimizers]
        sites += [model.site for model in trace.models]
    if graph is not None:
        sites += [graph.place(node) for node in graph.calls_in_order]
    return list(dict.fromkeys(site.project.filename for site in sites if site is not None))


def _tree(edits: SourceEdits, filename: str) -> ast.Module | None:
    text = edits.text(filename)
    return None if text is None else text.tree


def _words(tree: ast.AST) -> Iterator[str]:
    """The names that a piece of code uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


def _choices(filename: str, tree: ast.Module) -> Iterator[Finding]:
    """Where the file chooses by its test data; nothing where it has validation data as well."""
    if any(_VALIDATION.search(word) for word in _words(tree)):
        return
    for scope in _scopes(tree):
        tests = _of_tests(scope)
        for node in _own_nodes(scope):
            if isinstance(node, ast.If) and _is_choice(node, tests):
                yield _finding(filename, node.test, tests, "keeps the state that is best by")
            elif isinstance(node, ast.Call) and _is_plateau(node, tests):
                yield _finding(filename, node, tests, "lowers the learning rate by")


def _scopes(tree: ast.Module) -> Iterator[Any]:
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _own_nodes(scope: Any) -> Iterator[ast.AST]:
    """What a function or the module executes itself, without the functions in it, in order."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            yield child
            yield from _own_nodes(child)


def _of_tests(scope: Any) -> set[str]:
    """The names of a scope that hold something computed of test data, or are called so."""
    found: set[str] = set()
    nodes = list(_own_nodes(scope))
    for _ in range(3):  # a loss is added up over a loop, and divided behind it
        for node in nodes:
            if (
                isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
                and node.value is not None
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if _mentions(node.value, found):
                    found |= {
                        name.id
                        for target in targets
                        for name in ast.walk(target)
                        if isinstance(name, ast.Name) and not _BEST.search(name.id)
                    }
            elif isinstance(node, ast.For) and _mentions(node.iter, found):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
                        found.add(inner.target.id)
    return found


def _mentions(node: ast.AST, tests: set[str]) -> bool:
    return any(
        isinstance(name, ast.Name)
        and (name.id in tests or (_TEST.search(name.id) and not _BEST.search(name.id)))
        for name in ast.walk(node)
    )


def _is_choice(node: ast.If, tests: set[str]) -> bool:
    """`if test_loss < best: ...` that keeps a state, or ends the loop."""
    compares = [part for part in ast.walk(node.test) if isinstance(part, ast.Compare)]
    if not any(
        isinstance(compare.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE))
        and len(compare.comparators) == 1
        and _is_pair(compare.left, compare.comparators[0], tests)
        for compare in compares
    ):
        return False
    for statement in node.body:
        for part in ast.walk(statement):
            if isinstance(part, ast.Call):
                name = part.func.attr if isinstance(part.func, ast.Attribute) else ""
                name = part.func.id if isinstance(part.func, ast.Name) else name
                if name in _KEEPS:
                    return True
    return False


def _is_pair(left: ast.expr, right: ast.expr, tests: set[str]) -> bool:
    def is_best(node: ast.expr) -> bool:
        return any(_BEST.search(word) for word in _words(node))

    return (_mentions(left, tests) and is_best(right)) or (
        is_best(left) and _mentions(right, tests)
    )


def _is_plateau(node: ast.Call, tests: set[str]) -> bool:
    """`scheduler.step(test_loss)`."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "step" or not node.args:
        return False
    holder = ast.unparse(node.func.value).lower()
    return ("sched" in holder or "plateau" in holder) and _mentions(node.args[0], tests)


def _finding(filename: str, node: ast.expr, tests: set[str], what: str) -> Finding:
    figure = next(
        name.id for name in ast.walk(node) if isinstance(name, ast.Name) and _mentions(name, tests)
    )
    end = node.end_col_offset if node.end_lineno == node.lineno else node.col_offset + 1
    return Finding(
        f"the file {what} {figure}, of the test data, and has no validation data: what the test says of "
        "the model that was kept is too good",
        where=(filename, node.lineno, node.col_offset + 1, (end or node.col_offset) + 1),
        evidence={"chosen_by": figure},
        fixes=[
            Fix(
                "split validation data off the training data, choose by these, and test once at the end",
                reason="Cawley & Talbot 2010: the best of n figures is better than it will be again",
                obstacle="how to split depends on what the samples are",
            ),
        ],
        confidence=Confidence.LIKELY,
    )
