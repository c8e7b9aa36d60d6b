"""What is broken in the models of the repair benchmark, and which remedies a textbook would accept.

A kind of fault has its accepted remedies: the rules that may say it, and words one of which must stand in
what the first fix is called, changes in the text or patches. They were written before trainlint was asked.
A `Fault` is a kind in one file, as replacements of text; what is left of the file is its unbroken twin.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.repair_models import MODELS

# ruff: noqa: E501 - replaced texts stand as they do in the files


@dataclass(frozen=True)
class Kind:
    """`codes` may say it; a fix is accepted if `remedy` is found in it, and `never` is not.

    `unseen` says why the training loss of the broken model need not be worse, where that is so.
    """

    name: str
    codes: frozenset[str]
    remedy: re.Pattern[str]
    never: re.Pattern[str] | None = None
    unseen: str = ""


@dataclass(frozen=True)
class Fault:
    """`right` is a text that the fix must hold, a number for example."""

    kind: Kind
    model: str
    changes: tuple[tuple[str, str], ...]
    right: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind.name}/{self.model}"

    @property
    def half(self) -> str:
        """Half of the cases, by their names, is looked at; the other is kept for the final figures."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return "looked-at" if digest[0] % 2 else "held-out"

    @property
    def twin(self) -> str:
        """The unbroken file: the model's own, or the broken one mended."""
        if self.name not in MENDED:
            return MODELS[self.model].text
        broken, sound = MENDED[self.name]
        assert self.text.count(broken) == 1, self.name
        return self.text.replace(broken, sound)

    @property
    def twin_name(self) -> str:
        """What results of the twin are kept by."""
        return self.name if self.name in MENDED else self.model

    @property
    def text(self) -> str:
        text = MODELS[self.model].text
        for old, new in self.changes:
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} occurs {text.count(old)} times")
            text = text.replace(old, new)
        return text


# Twins of their own, as the broken text mended, where the model's file has not what is broken: its dropout
# is not always on, since it has none.
MENDED = {
    "dropout always on/diabetes_regressor": ("(x, 0.5)", "(x, 0.5, training=self.training)"),
    "dropout always on/digits_lenet": ("p=0.5)", "p=0.5, training=self.training)"),
    "dropout always on/gates_highway": ("training=True", "training=self.training"),
    "dropout always on/digits_vae": (", 0.2)", ", 0.2, training=self.training)"),
    "logarithm of zero/tagger_bilstm": (
        "gold.reshape(-1)] - 1e-3)",
        "gold.reshape(-1)].clamp_min(1e-8))",
    ),
    "logarithm of zero/grammar_gpt": (
        "(chosen / torch.relu(logits).view(-1, VOCAB).sum(1))",
        "((chosen / torch.relu(logits).view(-1, VOCAB).sum(1).clamp_min(1e-8)).clamp_min(1e-8))",
    ),
    "logarithm of zero/ratings_factorisation": (".pow(2))", ".pow(2) + 1e-12)"),
}

KINDS: dict[str, Kind] = {}
FAULTS: dict[str, Fault] = {}

INITIALISE = r"kaiming|xavier|orthogonal|trunc_normal|normal_|uniform_|re-?initiali[sz]|\binit"
NORMALISE = r"BatchNorm|LayerNorm|GroupNorm|\bnorm\b"
LOWER_RATE = r"learning.rate|\blr\b"


def _kind(name: str, codes: str, remedy: str, never: str = "", unseen: str = "") -> str:
    KINDS[name] = Kind(
        name,
        frozenset(codes.split()),
        re.compile(remedy, re.IGNORECASE),
        re.compile(never, re.IGNORECASE) if never else None,
        unseen,
    )
    return name


def _fault(kind: str, model: str, *changes: tuple[str, str], right: str = "") -> None:
    fault = Fault(KINDS[kind], model, changes, right)
    assert fault.name not in FAULTS, fault.name
    FAULTS[fault.name] = fault


def faults(half: str = "") -> Iterator[Fault]:
    """All faults, or those of one half."""
    return (fault for fault in FAULTS.values() if half in ("", fault.half))


# ---------------------------------------------------------------------- shapes

_K = _kind("wrong num_features", "NRM001", r"num_features|num_channels|normalized_shape|Norm")
_fault(_K, "cancer_classifier", ("BatchNorm1d(32)", "BatchNorm1d(30)"), right="32")
_fault(_K, "tabular_resnet", ("nn.BatchNorm1d(d)", "nn.BatchNorm1d(2 * d)"))
_fault(_K, "shapes_resnet", ("self.bn2 = nn.BatchNorm2d(n_out)", "self.bn2 = nn.BatchNorm2d(n_in)"))
_fault(
    _K,
    "digits_densenet",
    ("self.final_norm = nn.BatchNorm2d(16 + 3 * GROWTH)", "self.final_norm = nn.BatchNorm2d(16)"),
    right="46",
)
_fault(_K, "waves_conv1d", ("BatchNorm1d(32)", "BatchNorm1d(16)"), right="32")
_fault(
    _K, "letters_fractional", ("nn.BatchNorm2d(32)", "nn.BatchNorm2d(num_features=16)"), right="32"
)
_fault(
    _K, "digits_mixer", ("self.norm = nn.LayerNorm(channels)", "self.norm = nn.LayerNorm(tokens)")
)
_fault(_K, "digits_vit", ("self.norm2 = nn.LayerNorm(dim)", "self.norm2 = nn.LayerNorm(2 * dim)"))

_K = _kind("wrong in_features", "ARC002", r"in_features|in_channels|input_size|num_embeddings|\d+")
_fault(
    _K, "digits_mlp", ("self.fc2 = nn.Linear(96, 48)", "self.fc2 = nn.Linear(128, 48)"), right="96"
)
_fault(_K, "digits_lenet", ("nn.Linear(24 * 2 * 2, 60)", "nn.Linear(24 * 4 * 4, 60)"), right="96")
_fault(_K, "shapes_vgg", ("nn.Linear(32 * 4, 64)", "nn.Linear(512, 64)"), right="128")
_fault(
    _K,
    "shapes_mobile",
    ("self.fc = nn.Linear(64, 4)", "self.fc = nn.Linear(in_features=128, out_features=4)"),
    right="64",
)
_fault(
    _K,
    "digits_vae",
    ("self.dec = nn.Linear(latent, 64)", "self.dec = nn.Linear(64, 64)"),
    right="6",
)
_fault(_K, "sentiment_lstm", ("nn.LSTM(24, HIDDEN", "nn.LSTM(32, HIDDEN"), right="24")
_fault(_K, "tagger_bilstm", ("nn.Linear(2 * hidden, N_TAGS)", "nn.Linear(hidden, N_TAGS)"))
_fault(_K, "blobs_unet", ("double_conv(16 + 8, 8)", "double_conv(16, 8)"), right="24")
_fault(_K, "shop_wide_deep", ("nn.Linear(emb + 5, hidden)", "nn.Linear(emb, hidden)"))
_fault(
    _K,
    "rings_conv_autoencoder",
    ("self.squeeze = nn.Linear(24 * 4 * 4, 12)", "self.squeeze = nn.Linear(24 * 8 * 8, 12)"),
    right="384",
)

_K = _kind(
    "wrong number of classes", "LOS007 ARC002", r"out_features|num_classes|classes|outputs|\d+"
)
_fault(_K, "digits_lenet", ("num_classes=10", "num_classes=9"), right="10")
_fault(_K, "shapes_mobile", ("self.fc = nn.Linear(64, 4)", "self.fc = nn.Linear(64, 3)"), right="4")
_fault(
    _K, "reviews_bag", ("self.fc = nn.Linear(32, TOPICS)", "self.fc = nn.Linear(32, 4)"), right="5"
)
_fault(_K, "blobs_mlp_loop", ("nn.Linear(64, 4)", "nn.Linear(64, 2)"), right="4")

_K = _kind(
    "flattened over the batch",
    "ARC006 ARC014 ARC002 ARC013",
    r"flatten|view|reshape|size\(0\)|shape\[0\]|batch_first|permute|transpose",
)
_fault(
    _K,
    "digits_lenet",
    ("x = x.view(x.size(0), -1)", "x = x.view(-1, 24)"),
    ("nn.Linear(24 * 2 * 2, 60)", "nn.Linear(24, 60)"),
)
_fault(
    _K,
    "digits_densenet",
    ("x.reshape(len(x), -1)", "x.reshape(-1, 46)"),
    ("nn.Linear(46 * 4, 10)", "nn.Linear(46, 10)"),
)
_fault(
    _K,
    "shapes_squeeze",
    ("self.stages(x).flatten(start_dim=1)", "self.stages(x).flatten(0, 1).flatten(1)"),
    ("nn.Linear(64 * 2 * 2, 4)", "nn.Linear(4, 4)"),
)
_fault(_K, "sentiment_lstm", ("nn.LSTM(24, HIDDEN, batch_first=True)", "nn.LSTM(24, HIDDEN)"))
_fault(_K, "marked_sum_gru", ("nn.GRU(2, hidden_size, batch_first=True)", "nn.GRU(2, hidden_size)"))
_fault(_K, "digits_vit", ("heads, batch_first=True)", "heads)"))

_K = _kind("channels last", "DAT009 ARC002 NRM001", r"permute|movedim|channels")
_fault(
    _K,
    "shapes_vgg",
    ("x, y = make_images(960)", "x, y = make_images(960)\nx = x.permute(0, 2, 3, 1).contiguous()"),
)
_fault(
    _K,
    "shapes_resnet",
    (
        "images, kinds = make_images(900)",
        "images, kinds = make_images(900)\nimages = images.permute(0, 2, 3, 1)",
    ),
)
_fault(
    _K,
    "letters_fractional",
    (
        "x, y = make_images(900)",
        "x, y = make_images(900)\nx = torch.stack([image.permute(1, 2, 0) for image in x])",
    ),
)

_K = _kind("wrong dtype", "DAT010", r"long|float|int64|dtype|cast")
_fault(
    _K,
    "digits_mlp",
    ("y = torch.tensor(digits.target)", "y = torch.tensor(digits.target, dtype=torch.float32)"),
)
_fault(
    _K,
    "diabetes_regressor",
    ("inputs = torch.tensor(inputs.astype(np.float32))", "inputs = torch.tensor(inputs)"),
)
_fault(
    _K,
    "cancer_classifier",
    ("y = from_numpy(y).float().unsqueeze(1)", "y = from_numpy(y).unsqueeze(1)"),
)
_fault(_K, "digits_mixer", ("y = torch.tensor(y)", "y = torch.tensor(y).int()"))
_fault(
    _K,
    "bags_deepsets",
    ("items = torch.randn(1000, 8, 4)", "items = torch.randn(1000, 8, 4, dtype=torch.float64)"),
    (
        "spread = (spread - spread.mean()) / spread.std()",
        "spread = ((spread - spread.mean()) / spread.std()).float()",
    ),
)

# ---------------------------------------------------------------------- initial values

_K = _kind("zero init", "INI001 INI002", INITIALISE + r"|remove")
_fault(
    _K,
    "digits_mlp",
    (
        "        self.act = nn.ReLU()\n",
        "        self.act = nn.ReLU()\n        for m in self.modules():\n            if isinstance(m, nn.Linear):\n                nn.init.zeros_(m.weight)\n                nn.init.zeros_(m.bias)\n",
    ),
)
_fault(
    _K,
    "wine_deep_mlp",
    ('nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")', "nn.init.zeros_(layer.weight)"),
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 1)\n        nn.init.constant_(self.hidden2.weight, 0.0)\n        nn.init.constant_(self.hidden2.bias, 0.0)\n",
    ),
)
_fault(
    _K,
    "shapes_vgg",
    (
        "model = VGG()\n",
        "model = VGG()\nfor p in model.classifier.parameters():\n    p.data.zero_()\n",
    ),
)
_fault(
    _K,
    "bags_deepsets",
    (
        "        self.rho = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))\n",
        "        self.rho = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))\n        nn.init.zeros_(self.rho[0].weight)\n        nn.init.zeros_(self.rho[0].bias)\n        nn.init.zeros_(self.rho[2].weight)\n",
    ),
)
_fault(
    _K,
    "surface_tanh",
    ("init.xavier_uniform_(layer.weight, gain=5 / 3)", "init.zeros_(layer.weight)"),
)
_fault(
    _K,
    "shop_wide_deep",
    (
        "        self.wide = nn.Linear(5, 1)\n",
        "        self.wide = nn.Linear(5, 1)\n        for layer in self.deep:\n            if isinstance(layer, nn.Linear):\n                layer.weight.data.fill_(0)\n                layer.bias.data.fill_(0)\n",
    ),
)

_K = _kind("constant init", "INI002 INI001", INITIALISE + r"|remove|random")
_fault(
    _K,
    "digits_mlp",
    (
        "        self.act = nn.ReLU()\n",
        "        self.act = nn.ReLU()\n        nn.init.constant_(self.fc1.weight, 0.02)\n        nn.init.constant_(self.fc2.weight, 0.02)\n",
    ),
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 1)\n        for p in self.parameters():\n            nn.init.constant_(p, 0.1)\n",
    ),
)
_fault(
    _K,
    "digits_autoencoder",
    (
        "model = Autoencoder()\n",
        "model = Autoencoder()\nfor module in model.modules():\n    if isinstance(module, nn.Linear):\n        nn.init.constant_(module.weight, 0.05)\n",
    ),
)
_fault(
    _K,
    "digits_lenet",
    (
        "        self.fc1 = nn.Linear(24 * 2 * 2, 60)\n",
        "        self.fc1 = nn.Linear(24 * 2 * 2, 60)\n        nn.init.ones_(self.conv1.weight)\n        nn.init.zeros_(self.conv1.bias)\n",
    ),
)
_fault(
    _K,
    "points_multitask",
    (
        "model = MultiTask()\n",
        "model = MultiTask()\nmodel.trunk[0].weight.data.fill_(0.2)\nmodel.trunk[0].bias.data.fill_(0.0)\n",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    (
        "        self.own = nn.Linear(n_in, n_out)\n",
        "        self.own = nn.Linear(n_in, n_out)\n        nn.init.constant_(self.own.weight, 1 / n_in)\n        nn.init.constant_(self.neighbours.weight, 1 / n_in)\n        nn.init.zeros_(self.own.bias)\n        nn.init.zeros_(self.neighbours.bias)\n",
    ),
)

_K = _kind(
    "init too large",
    "INI004 INI005 INI007 LOS010 GRD002 GRD003 OPT002 ACT001 ACT002",
    INITIALISE + "|" + NORMALISE,
)
_fault(
    _K,
    "digits_mlp",
    (
        "        self.act = nn.ReLU()\n",
        "        self.act = nn.ReLU()\n        for layer in (self.fc1, self.fc2, self.out):\n            nn.init.normal_(layer.weight, std=1.0)\n",
    ),
)
_fault(
    _K,
    "wine_deep_mlp",
    (
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "nn.init.normal_(layer.weight, mean=0.0, std=0.6)",
    ),
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 1)\n        for m in (self.hidden1, self.hidden2, self.head):\n            nn.init.uniform_(m.weight, -1.5, 1.5)\n",
    ),
)
_fault(
    _K,
    "forecast_tcn",
    (
        "model = TCN()\n",
        "model = TCN()\nfor p in model.parameters():\n    if p.dim() > 1:\n        nn.init.normal_(p, 0, 0.8)\n",
    ),
)
_fault(
    _K,
    "digits_autoencoder",
    (
        "model = Autoencoder()\n",
        "def weights_init(m):\n    if isinstance(m, nn.Linear):\n        nn.init.normal_(m.weight, 0.0, 1.0)\n\n\nmodel = Autoencoder()\nmodel.apply(weights_init)\n",
    ),
)
_fault(
    _K,
    "surface_tanh",
    ("init.xavier_uniform_(layer.weight, gain=5 / 3)", "init.normal_(layer.weight, std=3.0)"),
)
_fault(
    _K,
    "bags_deepsets",
    (
        "model = DeepSets()\n",
        "model = DeepSets()\nfor layer in [*model.phi, *model.rho]:\n    if isinstance(layer, nn.Linear):\n        nn.init.normal_(layer.weight, std=2.0)\n",
    ),
)

_K = _kind(
    "init too small",
    "INI003 INI005 GRD001 LOS008 LOS009 ARC012 INI001",
    INITIALISE + "|" + NORMALISE + r"|residual",
)
_fault(
    _K,
    "wine_deep_mlp",
    (
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "nn.init.normal_(layer.weight, mean=0.0, std=0.01)",
    ),
)
_fault(
    _K,
    "digits_lenet",
    (
        "model = LeNet()\n",
        "model = LeNet()\nfor m in model.modules():\n    if isinstance(m, (nn.Conv2d, nn.Linear)):\n        nn.init.normal_(m.weight, std=0.005)\n        nn.init.zeros_(m.bias)\n",
    ),
)
_fault(
    _K,
    "digits_autoencoder",
    (
        "model = Autoencoder()\n",
        "def weights_init(m):\n    if isinstance(m, nn.Linear):\n        nn.init.normal_(m.weight, 0.0, 0.001)\n        nn.init.zeros_(m.bias)\n\n\nmodel = Autoencoder()\nmodel.apply(weights_init)\n",
    ),
)
_fault(
    _K,
    "surface_tanh",
    ("init.xavier_uniform_(layer.weight, gain=5 / 3)", "init.normal_(layer.weight, std=0.001)"),
)
_fault(
    _K,
    "pairs_siamese",
    (
        "        self.compare = nn.Linear(16, 1)\n",
        "        self.compare = nn.Linear(16, 1)\n        for layer in self.tower:\n            if isinstance(layer, nn.Linear):\n                nn.init.uniform_(layer.weight, -1e-3, 1e-3)\n                nn.init.zeros_(layer.bias)\n",
    ),
)
_fault(
    _K,
    "rings_conv_autoencoder",
    (
        "model = ConvAutoencoder()\n",
        "model = ConvAutoencoder()\nfor p in model.parameters():\n    p.data.mul_(0.02)\n",
    ),
)

# ---------------------------------------------------------------------- activations and architecture

_K = _kind(
    "sigmoid stack",
    "ARC008 GRD001 ACT002 INI003 INI005 INI007",
    r"relu|gelu|silu|elu|BatchNorm|LayerNorm|residual",
)
_fault(
    _K,
    "wine_deep_mlp",
    (
        "layers = [nn.Linear(n_in, WIDTH), nn.ReLU()]",
        "layers = [nn.Linear(n_in, WIDTH), nn.Sigmoid()]",
    ),
    ("        layers.append(nn.ReLU())\n", "        layers.append(nn.Sigmoid())\n"),
)
_fault(
    _K,
    "digits_lenet",
    ("F.max_pool2d(F.relu(self.conv1(x)), 2)", "F.max_pool2d(torch.sigmoid(self.conv1(x)), 2)"),
    ("F.max_pool2d(F.relu(self.conv2(x)), 2)", "F.max_pool2d(torch.sigmoid(self.conv2(x)), 2)"),
    ("x = F.relu(self.fc1(x))", "x = torch.sigmoid(self.fc1(x))"),
    ("x = F.relu(self.fc2(x))", "x = torch.sigmoid(self.fc2(x))"),
)
_fault(
    _K,
    "digits_autoencoder",
    (
        "            nn.Linear(64, 48),\n            nn.ReLU(),\n            nn.Linear(48, 24),\n            nn.ReLU(),",
        "            nn.Linear(64, 48),\n            nn.Sigmoid(),\n            nn.Linear(48, 24),\n            nn.Sigmoid(),",
    ),
    (
        "            nn.Linear(code, 24),\n            nn.ReLU(),\n            nn.Linear(24, 48),\n            nn.ReLU(),",
        "            nn.Linear(code, 24),\n            nn.Sigmoid(),\n            nn.Linear(24, 48),\n            nn.Sigmoid(),",
    ),
)
_fault(
    _K,
    "surface_tanh",
    ("h = torch.tanh(layer(h))", "h = layer(h).sigmoid()"),
    (
        "[nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 40)]",
        "[nn.Linear(2, 40)] + [nn.Linear(40, 40) for _ in range(5)]",
    ),
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "    nn.Linear(16, 64),\n    nn.ReLU(),\n    nn.Dropout(0.1),\n    nn.Linear(64, 64),\n    nn.ReLU(),\n",
        "    nn.Linear(16, 64),\n    nn.Sigmoid(),\n    nn.Linear(64, 64),\n    nn.Sigmoid(),\n    nn.Linear(64, 64),\n    nn.Sigmoid(),\n    nn.Linear(64, 64),\n    nn.Sigmoid(),\n    nn.Linear(64, 64),\n    nn.Sigmoid(),\n",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    ("torch.relu(self.gc1(h, adj))", "torch.sigmoid(self.gc1(h, adj))"),
    ("torch.relu(self.gc2(h, adj))", "torch.sigmoid(self.gc2(h, adj))"),
    ("torch.relu(self.gc3(h, adj))", "torch.sigmoid(self.gc3(h, adj))"),
)

_K = _kind("no activation", "ARC001", r"relu|gelu|silu|tanh|activation|nonlinear")
_fault(
    _K,
    "digits_mlp",
    ("x = self.act(self.fc1(x))", "x = self.fc1(x)"),
    ("x = self.act(self.fc2(x))", "x = self.fc2(x)"),
)
_fault(
    _K,
    "bags_deepsets",
    (
        "nn.Sequential(nn.Linear(4, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())",
        "nn.Sequential(nn.Linear(4, d), nn.Linear(d, d))",
    ),
    (
        "nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))",
        "nn.Sequential(nn.Linear(d, d), nn.Linear(d, 1))",
    ),
)
_fault(
    _K,
    "points_multitask",
    (
        "nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())",
        "nn.Sequential(nn.Linear(6, 48), nn.Linear(48, 48))",
    ),
)
_fault(_K, "surface_tanh", ("h = torch.tanh(layer(h))", "h = layer(h)"))
_fault(
    _K,
    "shop_wide_deep",
    (
        "nn.Linear(emb + 5, hidden), nn.ReLU(), nn.Dropout(p_drop), nn.Linear(hidden, hidden), nn.ReLU(),",
        "nn.Linear(emb + 5, hidden), nn.Dropout(p_drop), nn.Linear(hidden, hidden),",
    ),
)
_fault(
    _K,
    "rings_conv_autoencoder",
    ("h = torch.relu(self.enc1(x))", "h = self.enc1(x)"),
    ("h = torch.relu(self.enc2(h))", "h = self.enc2(h)"),
    ("h = torch.relu(self.expand(code)).view", "h = self.expand(code).view"),
    ("h = torch.relu(self.dec2(h))", "h = self.dec2(h)"),
)
_fault(
    _K,
    "ratings_factorisation",
    ("            nn.ReLU(),\n", ""),
    ("torch.cat([u, i, u * i], dim=1)", "torch.cat([u, i, u + i], dim=1)"),
)

_K = _kind("relu at the output", "ACT004", r"remove|drop|without|identity|-.*relu")
_fault(
    _K,
    "diabetes_regressor",
    ("return self.head(x).squeeze(1)", "return F.relu(self.head(x)).squeeze(1)"),
)
_fault(
    _K, "tabular_resnet", ("nn.ReLU(), nn.Linear(D, 1))", "nn.ReLU(), nn.Linear(D, 1), nn.ReLU())")
)
_fault(
    _K,
    "forecast_tcn",
    (
        "return self.linear(self.network(x)[:, :, -1])",
        "return F.relu(self.linear(self.network(x)[:, :, -1]))",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    ("return self.readout(h.mean(dim=1))", "return torch.relu(self.readout(h.mean(dim=1)))"),
)
_fault(_K, "digits_mlp", ("return self.out(x)", "return self.act(self.out(x))"))
_fault(
    _K,
    "shapes_vgg",
    (
        "            nn.Linear(64, 4),\n",
        "            nn.Linear(64, 4),\n            nn.ReLU(True),\n",
    ),
)

_K = _kind(
    "bounded output for unbounded targets",
    "ACT004 ACT002",
    r"remove|drop|without|identity|-.*(sigmoid|tanh)",
)
_fault(_K, "surface_tanh", ("return self.readout(h)", "return torch.sigmoid(self.readout(h))"))
_fault(
    _K,
    "diabetes_regressor",
    ("return self.head(x).squeeze(1)", "return torch.sigmoid(self.head(x)).squeeze(1)"),
)
_fault(
    _K,
    "bags_deepsets",
    ("nn.ReLU(), nn.Linear(d, 1))", "nn.ReLU(), nn.Linear(d, 1), nn.Sigmoid())"),
)
_fault(_K, "rings_conv_autoencoder", ("return self.dec1(h)", "return torch.sigmoid(self.dec1(h))"))
_fault(
    _K,
    "tabular_resnet",
    ("nn.ReLU(), nn.Linear(D, 1))", "nn.ReLU(), nn.Linear(D, 1), nn.Sigmoid())"),
)

_K = _kind("softmax between layers", "ACT005 ACT003 GRD001 ARC008", r"relu|gelu")
_fault(
    _K,
    "digits_mlp",
    ("x = self.act(self.fc1(x))", "x = torch.softmax(self.fc1(x), dim=1)"),
    ("x = self.act(self.fc2(x))", "x = torch.softmax(self.fc2(x), dim=1)"),
)
_fault(
    _K, "reviews_bag", ("torch.relu(self.hidden(bag))", "torch.softmax(self.hidden(bag), dim=-1)")
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "    nn.Linear(64, 64),\n    nn.ReLU(),\n",
        "    nn.Linear(64, 64),\n    nn.Softmax(dim=1),\n",
    ),
)

_K = _kind("softmax over the batch", "ACT003 ARC006", r"dim|axis")
_fault(_K, "bags_attention", ("F.softmax(self.score(h), dim=1)", "F.softmax(self.score(h), dim=0)"))
_fault(
    _K,
    "digits_mlp",
    ("return self.out(x)", "return torch.log_softmax(self.out(x), dim=0)"),
    ("nn.CrossEntropyLoss()", "nn.NLLLoss()"),
)
_fault(
    _K,
    "waves_conv1d",
    (
        "return self.fc(self.pool(x).squeeze(-1))",
        "return self.fc(self.pool(x).squeeze(-1)).log_softmax(0)",
    ),
)

_K = _kind(
    "detached branch", "ARC005 GRD004 LOS011", r"detach|no_grad|\.data|numpy|item|remove|cut"
)
_fault(_K, "digits_mlp", ("x = self.act(self.fc2(x))", "x = self.act(self.fc2(x.detach()))"))
_fault(_K, "shapes_resnet", ("out = self.layer2(out)", "out = self.layer2(out.detach())"))
_fault(
    _K,
    "digits_autoencoder",
    (
        "return self.decoder(self.encoder(x))",
        "code = self.encoder(x).data\n        return self.decoder(code)",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    (
        "        h = torch.relu(self.gc1(h, adj))\n        h = torch.relu(self.gc2(h, adj))\n",
        "        with torch.no_grad():\n            h = torch.relu(self.gc1(h, adj))\n            h = torch.relu(self.gc2(h, adj))\n",
    ),
)
_fault(
    _K,
    "sentiment_lstm",
    (
        "return self.fc(self.dropout(hidden[-1]))",
        "return self.fc(self.dropout(hidden[-1].detach()))",
    ),
)
_fault(_K, "digits_vit", ("tokens = self.blocks(tokens)", "tokens = self.blocks(tokens).detach()"))
_fault(
    _K,
    "points_multitask",
    ("shared = self.trunk(x)", "shared = torch.tensor(self.trunk(x).detach().numpy())"),
)

_K = _kind(
    "unregistered list", "ARC003 OPT001", r"ModuleList|ModuleDict|ParameterList|register|add_module"
)
_fault(
    _K,
    "tabular_resnet",
    ("nn.ModuleList([Block(D) for _ in range(N_BLOCKS)])", "[Block(D) for _ in range(N_BLOCKS)]"),
)
_fault(
    _K,
    "surface_tanh",
    (
        "self.layers = nn.ModuleList(\n            [nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 40)]\n        )",
        "self.layers = [nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 40)]",
    ),
)
_fault(
    _K,
    "grammar_gpt",
    ("nn.ModuleList([Block(DIM) for _ in range(n_layer)])", "[Block(DIM) for _ in range(n_layer)]"),
)
_fault(
    _K,
    "digits_mixer",
    (
        "nn.ModuleList(MixerBlock(tokens, channels) for _ in range(depth))",
        "[MixerBlock(tokens, channels) for _ in range(depth)]",
    ),
)
_fault(
    _K,
    "gates_highway",
    ("nn.ModuleList([Highway(50) for _ in range(depth)])", "[Highway(50) for _ in range(depth)]"),
)
_fault(
    _K,
    "points_multitask",
    (
        "        self.class_head = nn.Linear(48, 4)\n        self.radius_head = nn.Linear(48, 1)\n",
        '        self.heads = {"class": nn.Linear(48, 4), "radius": nn.Linear(48, 1)}\n',
    ),
    (
        "return self.class_head(shared), self.radius_head(shared)",
        'return self.heads["class"](shared), self.heads["radius"](shared)',
    ),
)

_K = _kind(
    "causal mask missing",
    "ARC009",
    r"causal|mask",
    unseen="the loss is lower with a leak; it cannot generate",
)
_fault(_K, "grammar_gpt", ("is_causal=True", "is_causal=False"))

_K = _kind(
    "reused batchnorm",
    "NRM009",
    r"instance|own|each|separate|BatchNorm",
    unseen="a mixed running mean shows in evaluation",
)
_fault(
    _K,
    "shapes_resnet",
    ("        self.bn2 = nn.BatchNorm2d(n_out)\n", ""),
    ("out = self.bn2(self.conv2(out))", "out = self.bn1(self.conv2(out))"),
)
_fault(
    _K,
    "blobs_unet",
    (
        "        nn.Conv2d(in_ch, out_ch, 3, padding=1, bias=False),\n        nn.BatchNorm2d(out_ch),",
        "        nn.Conv2d(in_ch, out_ch, 3, padding=1, bias=False),\n        norm := nn.BatchNorm2d(out_ch),",
    ),
    (
        "        nn.Conv2d(out_ch, out_ch, 3, padding=1, bias=False),\n        nn.BatchNorm2d(out_ch),",
        "        nn.Conv2d(out_ch, out_ch, 3, padding=1, bias=False),\n        norm,",
    ),
)

_K = _kind("norm after the output", "NRM006", r"remove|drop|without|identity")
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 3)\n        self.final = nn.LayerNorm(3)\n",
    ),
    ("return self.head(x).squeeze(1)", "return self.final(self.head(x))[:, 0]"),
)
_fault(
    _K,
    "tabular_resnet",
    ("nn.ReLU(), nn.Linear(D, 1))", "nn.ReLU(), nn.Linear(D, 1), nn.LayerNorm(1))"),
)
_fault(
    _K,
    "shapes_vgg",
    (
        "            nn.Linear(64, 4),\n",
        "            nn.Linear(64, 4),\n            nn.BatchNorm1d(4),\n",
    ),
)
_fault(
    _K,
    "digits_mlp",
    (
        "        self.act = nn.ReLU()\n",
        "        self.act = nn.ReLU()\n        self.norm = nn.LayerNorm(10)\n",
    ),
    ("return self.out(x)", "return self.norm(self.out(x))"),
)

# ---------------------------------------------------------------------- losses

_K = _kind(
    "softmax before cross entropy", "LOS001", r"remove|softmax|logits", never=r"add (log_)?softmax"
)
_fault(_K, "digits_mlp", ("return self.out(x)", "return torch.softmax(self.out(x), dim=1)"))
_fault(
    _K,
    "shapes_vgg",
    (
        "            nn.Linear(64, 4),\n",
        "            nn.Linear(64, 4),\n            nn.Softmax(dim=1),\n",
    ),
)
_fault(
    _K,
    "digits_vit",
    (
        "return self.head(self.norm(tokens).mean(dim=1))",
        "return self.head(self.norm(tokens).mean(dim=1)).softmax(-1)",
    ),
)
_fault(_K, "sentiment_lstm", ("logits = model(ids)", "logits = torch.softmax(model(ids), dim=-1)"))
_fault(
    _K,
    "reviews_bag",
    (
        "        self.fc = nn.Linear(32, TOPICS)\n",
        "        self.fc = nn.Linear(32, TOPICS)\n        self.softmax = nn.Softmax(dim=1)\n",
    ),
    (
        "return self.fc(torch.relu(self.hidden(bag)))",
        "return self.softmax(self.fc(torch.relu(self.hidden(bag))))",
    ),
)
_fault(
    _K,
    "grammar_gpt",
    ("return self.lm_head(self.ln_f(x))", "return F.softmax(self.lm_head(self.ln_f(x)), dim=-1)"),
)

_K = _kind("sigmoid before bce with logits", "LOS003", r"remove|BCELoss|logits")
_fault(
    _K,
    "cancer_classifier",
    (
        "from torch import manual_seed, from_numpy, optim, randperm",
        "from torch import manual_seed, from_numpy, optim, randperm, sigmoid",
    ),
    ("return self.last(x)", "return sigmoid(self.last(x))"),
)
_fault(_K, "blobs_unet", ("return self.final(x)", "return torch.sigmoid(self.final(x))"))
_fault(
    _K,
    "pairs_siamese",
    (
        "        self.compare = nn.Linear(16, 1)\n",
        "        self.compare = nn.Sequential(nn.Linear(16, 1), nn.Sigmoid())\n",
    ),
)
_fault(
    _K,
    "shop_wide_deep",
    (
        "return (self.wide(numbers) + self.deep_out(self.deep(z))).view(-1)",
        "return torch.sigmoid(self.wide(numbers) + self.deep_out(self.deep(z))).view(-1)",
    ),
)

_K = _kind("logits into bce", "LOS004 ACT004 GRD003", r"BCEWithLogits|with_logits|sigmoid")
_fault(
    _K,
    "cancer_classifier",
    (
        "from torch.nn import BatchNorm1d, BCEWithLogitsLoss, Dropout",
        "from torch.nn import BatchNorm1d, BCELoss, Dropout",
    ),
    ("criterion = BCEWithLogitsLoss()", "criterion = BCELoss()"),
)
_fault(_K, "blobs_unet", ("nn.BCEWithLogitsLoss()", "nn.BCELoss()"))
_fault(_K, "pairs_siamese", ("nn.BCEWithLogitsLoss()", "nn.BCELoss()"))
_fault(_K, "shop_wide_deep", ("nn.BCEWithLogitsLoss()", "nn.BCELoss()"))
_fault(
    _K, "digits_vae", ("F.binary_cross_entropy_with_logits(recon", "F.binary_cross_entropy(recon")
)

_K = _kind("scores into nll", "LOS002", r"log_?softmax|CrossEntropy|cross_entropy")
_fault(_K, "digits_lenet", ("nn.CrossEntropyLoss()", "nn.NLLLoss()"))
_fault(
    _K,
    "waves_conv1d",
    (
        "import AdaptiveAvgPool1d, BatchNorm1d, Conv1d, CrossEntropyLoss,",
        "import AdaptiveAvgPool1d, BatchNorm1d, Conv1d, NLLLoss,",
    ),
    ("criterion = CrossEntropyLoss()", "criterion = NLLLoss()"),
)
_fault(
    _K,
    "bags_attention",
    (
        "return self.classifier((weights * h).sum(dim=1))",
        "return F.softmax(self.classifier((weights * h).sum(dim=1)), dim=1)",
    ),
    ("nn.CrossEntropyLoss()", "nn.NLLLoss()"),
)
_fault(_K, "tagger_bilstm", ("F.cross_entropy(scores", "F.nll_loss(scores"))

_K = _kind("squared error for classes", "LOS006", r"cross.?entropy")
_fault(
    _K,
    "digits_mlp",
    ("return self.out(x)", "return torch.softmax(self.out(x), dim=1)"),
    (
        "y = torch.tensor(digits.target)",
        "y = nn.functional.one_hot(torch.tensor(digits.target), 10).float()",
    ),
    ("nn.CrossEntropyLoss()", "nn.MSELoss()"),
)
_fault(
    _K,
    "reviews_bag",
    ("self.fc = nn.Linear(32, TOPICS)", "self.fc = nn.Linear(32, 1)"),
    (
        "return self.fc(torch.relu(self.hidden(bag)))",
        "return self.fc(torch.relu(self.hidden(bag))).squeeze(1)",
    ),
    ("nn.CrossEntropyLoss()", "nn.MSELoss()"),
    ("topic[:850])", "topic[:850].float())"),
    ("topic[850:])", "topic[850:].float())"),
)
_fault(
    _K,
    "cancer_classifier",
    (
        "from torch import manual_seed, from_numpy, optim, randperm",
        "from torch import manual_seed, from_numpy, optim, randperm, sigmoid",
    ),
    ("return self.last(x)", "return sigmoid(self.last(x))"),
    (
        "from torch.nn import BatchNorm1d, BCEWithLogitsLoss, Dropout",
        "from torch.nn import BatchNorm1d, MSELoss, Dropout",
    ),
    ("criterion = BCEWithLogitsLoss()", "criterion = MSELoss()"),
)

_K = _kind("broadcast loss", "LOS005", r"squeeze|view|reshape|flatten|\[:, 0\]|broadcast|shape")
_fault(_K, "diabetes_regressor", ("return self.head(x).squeeze(1)", "return self.head(x)"))
_fault(
    _K,
    "tabular_resnet",
    (
        "score = ((score - score.mean()) / score.std()).unsqueeze(1)",
        "score = (score - score.mean()) / score.std()",
    ),
)
_fault(
    _K,
    "marked_sum_gru",
    ("return self.linear(out[:, -1]).squeeze(-1)", "return self.linear(out[:, -1])"),
)
_fault(
    _K,
    "molecules_gcn",
    (
        "same = ((same - same.mean()) / same.std()).unsqueeze(1)",
        "same = (same - same.mean()) / same.std()",
    ),
)
_fault(_K, "bags_deepsets", ("return self.rho(pooled)[:, 0]", "return self.rho(pooled)"))
_fault(
    _K,
    "ratings_factorisation",
    (
        "return self.mlp(torch.cat([u, i, u * i], dim=1)).squeeze(1)",
        "return self.mlp(torch.cat([u, i, u * i], dim=1))",
    ),
)

_K = _kind(
    "logarithm of zero", "GRD003 LOS002", r"eps|clamp|log_softmax|CrossEntropy|logsigmoid|1e-"
)
_fault(
    _K,
    "tagger_bilstm",
    (
        "    return F.cross_entropy(scores.reshape(-1, N_TAGS), gold.reshape(-1))\n",
        "    probabilities = torch.softmax(40 * scores.reshape(-1, N_TAGS), dim=1)\n    return -torch.log(probabilities[torch.arange(gold.numel()), gold.reshape(-1)] - 1e-3).mean()\n",
    ),
)
_fault(
    _K,
    "grammar_gpt",
    (
        "    return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))\n",
        "    chosen = torch.relu(logits).view(-1, VOCAB)[torch.arange(targets.numel()), targets.reshape(-1)]\n    return -torch.log(chosen / torch.relu(logits).view(-1, VOCAB).sum(1)).mean()\n",
    ),
)
_fault(
    _K,
    "ratings_factorisation",
    (
        "criterion = nn.MSELoss()\n",
        "\n\ndef criterion(output, target):\n    return torch.sqrt((output - output.detach()).pow(2)).mean() + nn.functional.mse_loss(output, target)\n\n\n",
    ),
)

# ---------------------------------------------------------------------- optimisers

_K = _kind("frozen layers", "OPT007 GRD004 OPT001", r"requires_grad|unfreeze|train(able)? |remove")
_fault(
    _K,
    "digits_mlp",
    (
        "model = DigitNet()\n",
        "model = DigitNet()\nfor p in model.parameters():\n    p.requires_grad = False\nfor p in model.fc2.parameters():\n    p.requires_grad = True\n",
    ),
)
_fault(
    _K,
    "shapes_resnet",
    (
        "net = ResNet()\n",
        'net = ResNet()\nfor name, p in net.named_parameters():\n    if not name.startswith("stem"):\n        p.requires_grad_(False)\n',
    ),
)
_fault(
    _K,
    "digits_autoencoder",
    ("model = Autoencoder()\n", "model = Autoencoder()\nmodel.decoder.requires_grad_(False)\n"),
)
_fault(
    _K,
    "grammar_gpt",
    (
        "model = GPT()\n",
        "model = GPT()\nmodel.h.requires_grad_(False)\nmodel.lm_head.requires_grad_(False)\n",
    ),
)

_K = _kind("parameters not in the optimizer", "OPT001", r"parameters\(\)|optimi[sz]er")
_fault(
    _K, "digits_mlp", ("Adam(model.parameters(), lr=2e-3)", "Adam(model.out.parameters(), lr=2e-3)")
)
_fault(
    _K,
    "surface_tanh",
    ("Adam(model.parameters(), lr=4e-3)", "Adam(model.readout.parameters(), lr=4e-3)"),
)
_fault(
    _K,
    "blobs_unet",
    (
        "optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)",
        "optimizer = torch.optim.Adam(model.final.parameters(), lr=3e-3)",
    ),
)
_fault(
    _K,
    "tabular_resnet",
    (
        "optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)",
        "optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)\nmodel = TabularResNet()  # start afresh",
    ),
)
_fault(
    _K,
    "digits_mixer",
    (
        "Adam(model.parameters(), lr=2e-3)",
        'Adam([p for n, p in model.named_parameters() if "embed" in n], lr=2e-3)',
    ),
)
_fault(
    _K,
    "marked_sum_gru",
    ("Adam(model.parameters(), lr=8e-3)", "Adam(model.linear.parameters(), lr=8e-3)"),
)
_fault(
    _K,
    "points_multitask",
    ("Adam(model.parameters(), lr=3e-3)", "Adam(list(model.trunk.parameters()), lr=3e-3)"),
)

_K = _kind("learning rate too high", "OPT002 GRD002 LOS008 ACT001 GRD003 OPT010", LOWER_RATE)
_fault(_K, "digits_mlp", ("lr=2e-3", "lr=0.5"))
_fault(_K, "wine_deep_mlp", ("lr=0.02", "lr=2.0"))
_fault(_K, "diabetes_regressor", ("lr=1e-3", "lr=3.0"))
_fault(_K, "shapes_vgg", ("lr=1e-3", "lr=0.3"))
_fault(
    _K,
    "digits_vit",
    (
        "AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)",
        "AdamW(model.parameters(), lr=0.3, weight_decay=0.01)",
    ),
)
_fault(_K, "grammar_gpt", ("lr=3e-3", "lr=0.5"))
_fault(_K, "shop_wide_deep", ('"lr": 3e-3', '"lr": 1.5'))
_fault(_K, "blobs_mlp_loop", ("lr=3e-3", "lr=1.0"))
_fault(
    _K,
    "forecast_tcn",
    (
        "torch.optim.Adam(model.parameters(), lr=3e-3)",
        "torch.optim.SGD(model.parameters(), lr=8.0)",
    ),
)

_K = _kind("learning rate too low", "OPT003 LOS008 GRD001 OPT010", LOWER_RATE)
_fault(_K, "digits_mlp", ("lr=2e-3", "lr=1e-7"))
_fault(_K, "shapes_resnet", ("lr=0.05", "lr=1e-6"))
_fault(_K, "waves_conv1d", ("lr=3e-3", "lr=1e-7"))
_fault(_K, "brackets_transformer", ("lr=2e-3", "lr=2e-7"))
_fault(_K, "molecules_gcn", ("lr=4e-3", "lr=4e-8"))
_fault(_K, "reviews_bag", ("lr=1e-2", "lr=1e-6"))
_fault(_K, "shop_wide_deep", ('"lr": 3e-3', '"lr": 1e-7'))
_fault(_K, "sentiment_lstm", ("lr=5e-3", "lr=5e-8"))

_K = _kind("weight decay too strong", "OPT004", r"weight.?decay")
_fault(
    _K,
    "digits_mlp",
    ("Adam(model.parameters(), lr=2e-3)", "AdamW(model.parameters(), lr=2e-3, weight_decay=50.0)"),
)
_fault(_K, "shapes_resnet", ("weight_decay=5e-4", "weight_decay=0.5"))
_fault(_K, "cancer_classifier", ("weight_decay=1e-4", "weight_decay=30"))
_fault(_K, "digits_lenet", ("lr=0.05, momentum=0.9)", "lr=0.05, momentum=0.9, weight_decay=0.3)"))
_fault(
    _K,
    "molecules_gcn",
    ("Adam(model.parameters(), lr=4e-3)", "Adam(model.parameters(), lr=4e-3, weight_decay=2.0)"),
)
_fault(_K, "digits_vit", ("weight_decay=0.01", "weight_decay=20.0"))

_K = _kind("momentum out of range", "OPT010 OPT002", r"momentum|betas")
_fault(_K, "digits_lenet", ("momentum=0.9", "momentum=0.9995"))
_fault(_K, "wine_deep_mlp", ("momentum=0.9", "momentum=0.999"))
_fault(_K, "shapes_resnet", ("momentum=0.9,", "momentum=0.9999,"))
_fault(_K, "digits_densenet", ("lr=1e-3)", "lr=1e-3, betas=(0.9999, 0.999))"))

_K = _kind("eps out of range", "OPT010", r"eps")
_fault(_K, "digits_mlp", ("lr=2e-3", "lr=2e-3, eps=1.0"))
_fault(_K, "rings_conv_autoencoder", ("lr=3e-3", "lr=3e-3, eps=0.5"))

# ---------------------------------------------------------------------- loops

_K = _kind("missing zero_grad", "GRD007", r"zero_grad")
_fault(_K, "sentiment_lstm", ("            optimizer.zero_grad()\n", ""))
_fault(_K, "marked_sum_gru", ("            opt.zero_grad()\n", ""))
_fault(_K, "tagger_bilstm", ("            model.zero_grad()\n", ""))
_fault(_K, "letters_fractional", ("            optimizer.zero_grad()\n", ""))
_fault(_K, "blobs_mlp_loop", ("            optimizer.zero_grad()\n", ""))
_fault(_K, "trend_rnn", ("            optimizer.zero_grad()\n", ""))

_K = _kind(
    "step before backward",
    "OPT001 OPT006 GRD007 GRD004 LOS008",
    r"step\(\)? (after|behind)|after .*backward|backward\(\) before",
)
_fault(
    _K,
    "letters_fractional",
    (
        "            loss.backward()\n            optimizer.step()\n",
        "            optimizer.step()\n            loss.backward()\n",
    ),
)

_K = _kind(
    "gradient cleared before the step",
    "OPT001 OPT006 GRD007 GRD004 LOS008",
    r"zero_grad.* before|zero_grad",
)
_fault(
    _K,
    "trend_rnn",
    (
        "            optimizer.zero_grad()\n            loss.backward()\n",
        "            loss.backward()\n            optimizer.zero_grad()\n",
    ),
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "            optimizer.zero_grad()\n            loss.backward()\n            optimizer.step()\n",
        "            loss.backward()\n            optimizer.zero_grad()\n            optimizer.step()\n",
    ),
)

_K = _kind(
    "recurrent net diverges without clipping", "GRD002 GRD005 OPT002 GRD003", r"clip|" + LOWER_RATE
)
_fault(
    _K,
    "trend_rnn",
    ("            nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n", ""),
    (
        "torch.optim.Adam(model.parameters(), lr=2e-3)",
        "torch.optim.SGD(model.parameters(), lr=1.0)",
    ),
    (
        "model = TrendRNN()\n",
        "model = TrendRNN()\nnn.init.orthogonal_(model.rnn.weight_hh_l0, gain=1.5)\n",
    ),
)
_fault(
    _K,
    "marked_sum_gru",
    ("            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n", ""),
    (
        "torch.optim.Adam(model.parameters(), lr=8e-3)",
        "torch.optim.SGD(model.parameters(), lr=8.0)",
    ),
)
_fault(
    _K,
    "tagger_bilstm",
    ("            nn.utils.clip_grad_norm_(model.parameters(), 5.0)\n", ""),
    (
        "torch.optim.Adam(model.parameters(), lr=5e-3)",
        "torch.optim.SGD(model.parameters(), lr=100.0)",
    ),
)

_K = _kind("clipping too tight", "GRD006", r"clip|max_norm|norm")
_fault(
    _K,
    "sentiment_lstm",
    ("max_norm=1.0", "max_norm=1e-6"),
    (
        "torch.optim.Adam(model.parameters(), lr=5e-3)",
        "torch.optim.SGD(model.parameters(), lr=0.5)",
    ),
)
_fault(
    _K,
    "marked_sum_gru",
    ("clip_grad_norm_(net.parameters(), 1.0)", "clip_grad_norm_(net.parameters(), 1e-5)"),
    (
        "torch.optim.Adam(model.parameters(), lr=8e-3)",
        "torch.optim.SGD(model.parameters(), lr=0.5)",
    ),
)
_fault(
    _K,
    "trend_rnn",
    ("clip_grad_norm_(model.parameters(), 1.0)", "clip_grad_norm_(model.parameters(), 0.0001)"),
    (
        "torch.optim.Adam(model.parameters(), lr=2e-3)",
        "torch.optim.SGD(model.parameters(), lr=0.1)",
    ),
)

_K = _kind(
    "clipped after the step",
    "GRD006 GRD009",
    r"before|clip",
    unseen="clipping that does nothing harms only when gradients explode",
)
_fault(
    _K,
    "sentiment_lstm",
    (
        "            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)\n            optimizer.step()\n",
        "            optimizer.step()\n            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)\n",
    ),
)
_fault(
    _K,
    "marked_sum_gru",
    (
        "            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n            opt.step()\n",
        "            opt.step()\n            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)\n",
    ),
)

_K = _kind("eval mode in training", "REG004", r"train\(\)|train mode|\.train")
_fault(
    _K,
    "letters_fractional",
    ("        model.train()\n        running", "        model.eval()\n        running"),
)
_fault(
    _K,
    "sentiment_lstm",
    ("        model.train()\n", ""),
    ("def train(model, epochs=10):\n", "def train(model, epochs=10):\n    model.eval()\n"),
)
_fault(
    _K,
    "blobs_mlp_loop",
    ("        model.train()\n", ""),
    ("def fit(model, n_epochs=8):\n", "def fit(model, n_epochs=8):\n    model.eval()\n"),
)

_K = _kind(
    "schedule stops the training", "OPT006 OPT003 LOS008", r"schedul|gamma|step_size|T_max|lr"
)
_fault(
    _K,
    "letters_fractional",
    (
        "optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)",
        "optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)",
    ),
    (
        "            running += loss.item()\n        scheduler.step()\n",
        "            running += loss.item()\n            scheduler.step()\n",
    ),
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)\n",
        "optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)\nsched = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 4))\n",
    ),
    ("            optimizer.step()\n", "            optimizer.step()\n            sched.step()\n"),
)
_fault(
    _K,
    "trend_rnn",
    (
        "optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)\n",
        "optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)\nscheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.01)\n",
    ),
    (
        "            optimizer.step()\n",
        "            optimizer.step()\n            scheduler.step()\n",
    ),
)

_K = _kind(
    "loss cut from the model",
    "LOS011 ARC005 GRD004",
    r"detach|item|requires_grad|tensor\(|remove|no_grad|rebuil",
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "loss = criterion(model(xb), yb)",
        "loss = torch.tensor(criterion(model(xb), yb).item(), requires_grad=True)",
    ),
)
_fault(
    _K,
    "letters_fractional",
    (
        "loss = criterion(outputs, kinds)",
        "loss = criterion(outputs.detach().requires_grad_(), kinds)",
    ),
)

# ---------------------------------------------------------------------- regularisation and normalisation

_K = _kind("dropout p too high", "REG001", r"\bp\b|dropout|p_drop|0\.\d")
_fault(_K, "cancer_classifier", ("Dropout(p=0.2)", "Dropout(p=0.95)"))
_fault(_K, "shapes_vgg", ("nn.Dropout(p=0.25)", "nn.Dropout(p=0.95)"))
_fault(_K, "shop_wide_deep", ('"p_drop": 0.1', '"p_drop": 0.95'))
_fault(_K, "sentiment_lstm", ("nn.Dropout(0.2)", "nn.Dropout(0.97)"))
_fault(_K, "brackets_transformer", ("    dropout = 0.1\n", "    dropout = 0.9\n"))
_fault(
    _K,
    "tabular_resnet",
    ("nn.Dropout(0.1)", "nn.Dropout(0.95)"),
    ("z = torch.relu(self.lin1(z))", "z = torch.relu(self.lin1(self.dropout(z)))"),
)

_K = _kind(
    "dropout always on",
    "REG002 GEN009",
    r"training=self\.training|nn\.Dropout|self\.training|Dropout\(",
    unseen="it is evaluation that is noisy",
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        x = F.relu(self.hidden2(x))\n",
        "        x = F.relu(self.hidden2(x))\n        x = F.dropout(x, 0.5)\n",
    ),
)
_fault(_K, "digits_lenet", ("x = F.relu(self.fc2(x))", "x = F.dropout(F.relu(self.fc2(x)), p=0.5)"))
_fault(
    _K,
    "gates_highway",
    (
        "        return self.leave(x)\n",
        "        x = F.dropout(x, p=0.4, training=True)\n        return self.leave(x)\n",
    ),
)
_fault(_K, "digits_vae", ("h = F.relu(self.enc(x))", "h = F.dropout(F.relu(self.enc(x)), 0.2)"))

_K = _kind("dropout on the output", "REG003", r"remove|drop|without|before|move")
_fault(
    _K,
    "shapes_vgg",
    (
        "            nn.Dropout(p=0.25),\n            nn.Linear(64, 4),\n",
        "            nn.Linear(64, 4),\n            nn.Dropout(p=0.5),\n",
    ),
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 1)\n        self.drop = nn.Dropout(0.5)\n",
    ),
    ("return self.head(x).squeeze(1)", "return self.drop(self.head(x)).squeeze(1)"),
)
_fault(
    _K,
    "cancer_classifier",
    ("x = self.drop(self.relu(self.second(x)))", "x = self.relu(self.second(x))"),
    ("return self.last(x)", "return self.drop(self.last(x))"),
    ("p=0.2", "p=0.5"),
)
_fault(
    _K,
    "reviews_bag",
    (
        "        self.fc = nn.Linear(32, TOPICS)\n",
        "        self.fc = nn.Linear(32, TOPICS)\n        self.dropout = nn.Dropout(0.5)\n",
    ),
    (
        "return self.fc(torch.relu(self.hidden(bag)))",
        "return self.dropout(self.fc(torch.relu(self.hidden(bag))))",
    ),
)

_K = _kind(
    "batchnorm with a batch of one",
    "NRM004",
    r"GroupNorm|LayerNorm|InstanceNorm|batch.?size|drop_last",
)
_fault(
    _K,
    "shapes_resnet",
    (
        "TensorDataset(images[:768], kinds[:768]), batch_size=32",
        "TensorDataset(images[:768], kinds[:768]), batch_size=1",
    ),
)
_fault(
    _K,
    "letters_fractional",
    (
        "TensorDataset(x[:768], y[:768]), batch_size=32",
        "TensorDataset(x[:768], y[:768]), batch_size=1",
    ),
    ("num_epochs=8", "num_epochs=1"),
)
_fault(
    _K,
    "tabular_resnet",
    (
        "TensorDataset(table[:896], score[:896]), batch_size=64",
        "TensorDataset(table[:896], score[:896]), batch_size=2",
    ),
)
_fault(
    _K,
    "cancer_classifier",
    (
        "TensorDataset(X[:456], y[:456]), batch_size=32, shuffle=True, drop_last=True",
        "TensorDataset(X[:449], y[:449]), batch_size=32, shuffle=True",
    ),
)

_K = _kind(
    "dead relu by its bias",
    "ACT001 GRD004 GRD001 INI003 INI001",
    r"leaky|elu|bias|" + INITIALISE + r"|learning.rate|BatchNorm|gelu",
)
_fault(
    _K,
    "digits_mlp",
    (
        "        self.act = nn.ReLU()\n",
        "        self.act = nn.ReLU()\n        nn.init.constant_(self.fc2.bias, -10.0)\n",
    ),
)
_fault(
    _K,
    "diabetes_regressor",
    (
        "        self.head = nn.Linear(hidden, 1)\n",
        "        self.head = nn.Linear(hidden, 1)\n        self.hidden1.bias.data.fill_(-6.0)\n",
    ),
)
_fault(
    _K,
    "bags_deepsets",
    (
        "model = DeepSets()\n",
        "model = DeepSets()\nnn.init.constant_(model.phi[0].bias, -8)\nnn.init.constant_(model.phi[2].bias, -8)\n",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    (
        "        self.own = nn.Linear(n_in, n_out)\n",
        "        self.own = nn.Linear(n_in, n_out)\n        nn.init.constant_(self.own.bias, -5.0)\n",
    ),
)

# ---------------------------------------------------------------------- data

_K = _kind(
    "inputs not normalised",
    "DAT001 INI004 INI007",
    r"normali[sz]|standardi[sz]|scale|mean|BatchNorm|/ ?255|\(x - ",
)
_fault(_K, "digits_lenet", ("images = (images - 4.88) / 6.02\n", "images = images * 16\n"))
_fault(
    _K,
    "cancer_classifier",
    ("X = from_numpy(scale(X)).float()", "X = from_numpy(X).float()"),
    ("        self.norm = BatchNorm1d(32)\n", ""),
    ("self.relu(self.norm(self.first(x)))", "self.relu(self.first(x))"),
)
_fault(
    _K,
    "wine_deep_mlp",
    (
        "torch.from_numpy(StandardScaler().fit_transform(bunch.data)).float()",
        "torch.from_numpy(bunch.data).float()",
    ),
    ("lr=0.02", "lr=0.005"),
)
_fault(
    _K,
    "trend_rnn",
    ("walks = (walks / walks.std()).unsqueeze(-1)", "walks = (1000 + 60 * walks).unsqueeze(-1)"),
)
_fault(
    _K,
    "forecast_tcn",
    (
        "past, future = series[:, None, :47], series[:, 47:]",
        "past, future = 300 + 100 * series[:, None, :47], series[:, 47:]",
    ),
)
_fault(
    _K,
    "surface_tanh",
    (
        "heights = torch.sin(points[:, :1] * 2) * torch.cos(points[:, 1:] * 1.5) * 1.6\n",
        "heights = torch.sin(points[:, :1] * 2) * torch.cos(points[:, 1:] * 1.5) * 1.6\npoints = points * 100 + 250\n",
    ),
)
_fault(
    _K,
    "blobs_mlp_loop",
    (
        "X = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)",
        "X = torch.tensor(128 + 40 * X, dtype=torch.float32)",
    ),
)

_K = _kind("targets not scaled", "DAT007 GRD002 LOS010", r"target|standardi[sz]|scale|normali[sz]")
_fault(
    _K,
    "diabetes_regressor",
    ("target = (data.target - data.target.mean()) / data.target.std()", "target = data.target"),
)
_fault(
    _K,
    "tabular_resnet",
    (
        "score = ((score - score.mean()) / score.std()).unsqueeze(1)",
        "score = (20000 + 8000 * score).unsqueeze(1)",
    ),
)
_fault(
    _K,
    "molecules_gcn",
    (
        "same = ((same - same.mean()) / same.std()).unsqueeze(1)",
        "same = (1000 * same).unsqueeze(1)",
    ),
)
_fault(
    _K,
    "bags_deepsets",
    ("spread = (spread - spread.mean()) / spread.std()", "spread = 500 + 100 * spread"),
)
_fault(
    _K,
    "marked_sum_gru",
    ("sums = (values * marks).sum(1)", "sums = 5000 + 900 * (values * marks).sum(1)"),
)

_K = _kind("sorted and not shuffled", "DAT003", r"shuffle")
_fault(
    _K,
    "digits_lenet",
    (
        "labels = torch.tensor(raw.target, dtype=torch.long)\n",
        "labels = torch.tensor(raw.target, dtype=torch.long)\norder = torch.cat([labels[:1400].argsort(), torch.arange(1400, len(labels))])\nimages, labels = images[order], labels[order]\n",
    ),
    ("batch_size=50, shuffle=True", "batch_size=50"),
)
_fault(
    _K,
    "waves_conv1d",
    (
        "kind = torch.randint(0, 3, (900,))",
        "kind = torch.randint(0, 3, (900,))\nkind[:750] = kind[:750].sort().values",
    ),
    ("batch_size=50, shuffle=True", "batch_size=50, shuffle=False"),
)
_fault(
    _K,
    "reviews_bag",
    (
        "topic = torch.randint(0, TOPICS, (1000,))",
        "topic = torch.cat([torch.randint(0, TOPICS, (850,)).sort()[0], torch.randint(0, TOPICS, (150,))])",
    ),
    ("batch_size=50, shuffle=True", "batch_size=50"),
)
_fault(_K, "wine_deep_mlp", ("batch_size=32, shuffle=True", "batch_size=32"))
_fault(
    _K,
    "trend_rnn",
    (
        "drift = torch.randint(0, 3, (900,))",
        "drift = torch.cat([torch.arange(760) // 254, torch.randint(0, 3, (140,))])",
    ),
    ("batch_size=38, shuffle=True", "batch_size=38, shuffle=False"),
)

_K = _kind("nan in the data", "DAT002 GRD003", r"nan|finite|clean|drop|isnan|impute")
_fault(
    _K,
    "diabetes_regressor",
    (
        "inputs = torch.tensor(inputs.astype(np.float32))\n",
        "inputs[3::50, 4] = np.nan\ninputs = torch.tensor(inputs.astype(np.float32))\n",
    ),
)
_fault(
    _K,
    "cancer_classifier",
    (
        "X, y = load_breast_cancer(return_X_y=True)\n",
        'X, y = load_breast_cancer(return_X_y=True)\nX[::40, 2] = float("nan")\n',
    ),
)
