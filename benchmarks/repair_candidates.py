"""Fixes of all kinds for any model, whether or not anything is wrong: what a random fix is drawn from.

Each is a title and patches of the live model and training. Those that a model has no place for fail when
they are made, and count as what they are: a fix that does not help.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from trainlint.fixes.patch import Patch

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softmax, nn.ELU, nn.LeakyReLU, nn.SiLU,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def generic_fixes(model: nn.Module, optimizer: Any) -> list[tuple[str, list[Patch]]]:
    """Remedies by their names, for every part of the model at once."""
    modules = dict(model.named_modules())

    def of(*kinds: type) -> list[str]:
        return [name for name, module in modules.items() if name and isinstance(module, kinds)]

    layers, activations, norms = of(*_LAYERS), of(*_ACTIVATIONS), of(*_NORMS)
    dropouts = of(nn.Dropout)
    weights = [f"{name}.weight" for name in layers]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    rate = float(optimizer.param_groups[0]["lr"])
    fixes: list[tuple[str, list[Patch]]] = [
        ("nn.init.kaiming_normal_", [Patch.initialise(weights, "kaiming_normal")]),
        ("nn.init.xavier_uniform_", [Patch.initialise(weights, "xavier_uniform")]),
        ("nn.init.orthogonal_", [Patch.initialise(weights, "orthogonal")]),
        (
            "BatchNorm behind each hidden layer",
            [Patch.norm("batch", [n]) for n in layers[:-1]],
        ),
        ("LayerNorm behind each hidden layer", [Patch.norm("layer", [n]) for n in layers[:-1]]),
        ("a residual connection", [Patch.residual(layers[1:-1])]),
        ("clip_grad_norm_ to 1", [Patch.training("clip", max_norm=1.0)]),
        ("zero_grad()", [Patch.training("zero-grad")]),
        (f"lr={rate / 10:g}", [Patch.training("learning-rate", factor=0.1)]),
        (f"lr={rate * 10:g}", [Patch.training("learning-rate", factor=10.0)]),
        ("lr by a range test", [Patch.training("learning-rate", range_test=True)]),
        ("weight_decay=0.01", [Patch.training("weight-decay", value=0.01, apart=True)]),
        ("Adam over model.parameters()", [Patch.training("optimizer-rebuilt")]),
    ]
    if activations:
        fixes += [
            (f"{name} for each activation", [Patch.activation(name, modules=activations)])
            for name in ("relu", "gelu", "leaky_relu")
        ]
        fixes.append(
            (
                f"remove the last activation, {activations[-1]}",
                [Patch.without(modules=activations[-1:])],
            )
        )
    if norms:
        fixes.append(("remove the last normalisation", [Patch.without(modules=norms[-1:])]))
    if dropouts:
        fixes.append(("dropout p=0.2", [Patch.attribute(dropouts, p=0.2)]))
        fixes.append(("remove the dropouts", [Patch.without(modules=dropouts)]))
    if frozen:
        fixes.append(("requires_grad_(True) for all", [Patch.unfreeze(frozen)]))
    if "momentum" in optimizer.param_groups[0]:
        fixes.append(("momentum=0.9", [Patch.training("optimizer-options", momentum=0.9)]))
    else:
        fixes.append(
            ("betas=(0.9, 0.999)", [Patch.training("optimizer-options", betas=[0.9, 0.999])])
        )
    return fixes
