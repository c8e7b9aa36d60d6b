"""The unbroken models of the repair benchmark: files as their authors would write them.

Each is a whole file: data that can be learnt, a model, a loss, an optimizer and loaders at module level, or
a loop `train(model)` of its own. `MODELS` holds them by name. `benchmarks.repair_faults` breaks them.
"""

from __future__ import annotations

from dataclasses import dataclass

# ruff: noqa: E501 - the texts are wrapped as their authors would


@dataclass(frozen=True)
class Model:
    """`family` is the architecture's; `text` the file."""

    name: str
    family: str
    text: str


MODELS: dict[str, Model] = {}


def _add(name: str, family: str, text: str) -> None:
    MODELS[name] = Model(name, family, text.lstrip("\n"))


# ---------------------------------------------------------------------- perceptrons

_add(
    "digits_mlp",
    "MLP",
    '''
"""Handwritten digits with a small perceptron."""
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)

digits = load_digits()
X = torch.tensor(digits.data / 16.0, dtype=torch.float32)
y = torch.tensor(digits.target)
train_set, val_set = random_split(TensorDataset(X, y), [1500, 297])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=128)


class DigitNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 96)
        self.fc2 = nn.Linear(96, 48)
        self.out = nn.Linear(48, 10)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.fc1(x))
        x = self.act(self.fc2(x))
        return self.out(x)


model = DigitNet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
''',
)

_add(
    "wine_deep_mlp",
    "deep MLP",
    """
import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)

DEPTH = 8
WIDTH = 48

bunch = load_wine()
features = torch.from_numpy(StandardScaler().fit_transform(bunch.data)).float()
labels = torch.from_numpy(bunch.target).long()
train_loader = DataLoader(TensorDataset(features, labels), batch_size=32, shuffle=True)


def he_init(layer):
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


def build_model(n_in=13, n_out=3):
    layers = [nn.Linear(n_in, WIDTH), nn.ReLU()]
    for _ in range(DEPTH - 2):
        layers.append(nn.Linear(WIDTH, WIDTH))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(WIDTH, n_out))
    net = nn.Sequential(*layers)
    net.apply(he_init)
    return net


model = build_model()
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
""",
)

_add(
    "diabetes_regressor",
    "regression MLP",
    """
import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(11)

data = datasets.load_diabetes()
inputs = data.data / data.data.std(axis=0)
target = (data.target - data.target.mean()) / data.target.std()
inputs = torch.tensor(inputs.astype(np.float32))
target = torch.tensor(target.astype(np.float32))


class Regressor(nn.Module):
    \"\"\"Disease progression after one year.\"\"\"

    def __init__(self, hidden: int = 40):
        super().__init__()
        self.hidden1 = nn.Linear(10, hidden)
        self.hidden2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        x = F.relu(self.hidden1(x))
        x = F.relu(self.hidden2(x))
        return self.head(x).squeeze(1)


train_loader = DataLoader(TensorDataset(inputs[:380], target[:380]), batch_size=38, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[380:], target[380:]), batch_size=62)

net = Regressor()
loss_fn = nn.MSELoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
""",
)

_add(
    "cancer_classifier",
    "binary MLP",
    """
from torch import manual_seed, from_numpy, optim, randperm
from torch.nn import BatchNorm1d, BCEWithLogitsLoss, Dropout, Linear, Module, ReLU
from torch.utils.data import DataLoader, TensorDataset
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

manual_seed(5)

X, y = load_breast_cancer(return_X_y=True)
shuffled = randperm(len(y)).numpy()
X, y = X[shuffled], y[shuffled]
X = from_numpy(scale(X)).float()
y = from_numpy(y).float().unsqueeze(1)


class TumorClassifier(Module):
    def __init__(self):
        super().__init__()
        self.first = Linear(30, 32)
        self.norm = BatchNorm1d(32)
        self.second = Linear(32, 16)
        self.relu = ReLU()
        self.drop = Dropout(p=0.2)
        self.last = Linear(16, 1)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.drop(self.relu(self.second(x)))
        return self.last(x)


model = TumorClassifier()
criterion = BCEWithLogitsLoss()
optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
train_loader = DataLoader(TensorDataset(X[:456], y[:456]), batch_size=32, shuffle=True, drop_last=True)
val_loader = DataLoader(TensorDataset(X[456:], y[456:]), batch_size=113)
""",
)

_add(
    "tabular_resnet",
    "tabular ResNet",
    """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(21)
N_FEATURES, D, N_BLOCKS = 12, 32, 3

# y depends on products of columns, so that a line does not do
table = torch.randn(1024, N_FEATURES)
score = table[:, 0] * table[:, 1] + torch.sin(2 * table[:, 2]) + 0.5 * table[:, 3]
score = ((score - score.mean()) / score.std()).unsqueeze(1)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.BatchNorm1d(d)
        self.lin1 = nn.Linear(d, 2 * d)
        self.lin2 = nn.Linear(2 * d, d)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        z = self.norm(x)
        z = torch.relu(self.lin1(z))
        z = self.dropout(z)
        return x + self.lin2(z)


class TabularResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(N_FEATURES, D)
        self.blocks = nn.ModuleList([Block(D) for _ in range(N_BLOCKS)])
        self.head = nn.Sequential(nn.LayerNorm(D), nn.ReLU(), nn.Linear(D, 1))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


model = TabularResNet()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(table[:896], score[:896]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(table[896:], score[896:]), batch_size=128)
""",
)

_add(
    "surface_tanh",
    "tanh MLP",
    """
# Fit a smooth surface z = f(x, y) with a tanh network.
import torch
from torch import nn
import torch.nn.init as init
import torch.utils.data as tud

torch.manual_seed(8)

points = torch.rand(1200, 2) * 4 - 2
heights = torch.sin(points[:, :1] * 2) * torch.cos(points[:, 1:] * 1.5) * 1.6


class Surface(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(2, 40), nn.Linear(40, 40), nn.Linear(40, 40)]
        )
        self.readout = nn.Linear(40, 1)
        for layer in self.layers:
            init.xavier_uniform_(layer.weight, gain=5 / 3)
            init.zeros_(layer.bias)

    def forward(self, xy):
        h = xy
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.readout(h)


model = Surface()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
train_loader = tud.DataLoader(tud.TensorDataset(points, heights), batch_size=60, shuffle=True)
""",
)

# ---------------------------------------------------------------------- images

_IMAGES = """
torch.manual_seed({seed})


def make_images(count, size=16):
    \"\"\"Coloured squares, bars and crosses on noise.\"\"\"
    images = 0.3 * torch.randn(count, 3, size, size)
    kinds = torch.randint(0, 4, (count,))
    for image, kind in zip(images, kinds):
        r, c = torch.randint(3, size - 4, (2,)).tolist()
        if kind == 0:
            image[0, r - 2 : r + 3, c - 2 : c + 3] += 1.5
        elif kind == 1:
            image[:, r, :] += 1.2
        elif kind == 2:
            image[:, :, c] += 1.2
        else:
            image[2, r - 2 : r + 3, c] += 1.8
            image[2, r, c - 2 : c + 3] += 1.8
    return images, kinds
"""

_add(
    "digits_lenet",
    "LeNet",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)

raw = load_digits()
images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1)
images = (images - 4.88) / 6.02
labels = torch.tensor(raw.target, dtype=torch.long)


class LeNet(nn.Module):
    def __init__(self, num_classes=10):
        super(LeNet, self).__init__()
        self.conv1 = nn.Conv2d(1, 12, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(24 * 2 * 2, 60)
        self.fc2 = nn.Linear(60, 42)
        self.fc3 = nn.Linear(42, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


model = LeNet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
train_loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=100)
""",
)

_add(
    "shapes_vgg",
    "VGG",
    "\nimport torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    + _IMAGES.format(seed=2)
    + """

cfg = [16, 16, "M", 32, 32, "M"]


def make_layers(cfg, in_channels=3):
    layers = []
    for v in cfg:
        if v == "M":
            layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
        else:
            layers += [
                nn.Conv2d(in_channels, v, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(v),
                nn.ReLU(inplace=True),
            ]
            in_channels = v
    return nn.Sequential(*layers)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = make_layers(cfg)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(32 * 4, 64),
            nn.ReLU(True),
            nn.Dropout(p=0.25),
            nn.Linear(64, 4),
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


x, y = make_images(960)
train_loader = DataLoader(TensorDataset(x[:800], y[:800]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(x[800:], y[800:]), batch_size=80)
model = VGG()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
""",
)

_add(
    "shapes_resnet",
    "ResNet",
    "\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\nimport torch.optim as optim\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    + _IMAGES.format(seed=4)
    + """

def conv3x3(n_in, n_out, stride=1):
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.conv1 = conv3x3(n_in, n_out, stride)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = conv3x3(n_out, n_out)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.stem = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = BasicBlock(16, 16)
        self.layer2 = BasicBlock(16, 32, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, num_classes)

    def forward(self, x):
        out = F.relu(self.bn(self.stem(x)))
        out = self.layer1(out)
        out = self.layer2(out)
        out = self.pool(out).flatten(1)
        return self.linear(out)


net = ResNet()
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
images, kinds = make_images(900)
train_loader = DataLoader(TensorDataset(images[:768], kinds[:768]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(images[768:], kinds[768:]), batch_size=66)
""",
)

_add(
    "shapes_mobile",
    "separable CNN",
    "\nimport torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    + _IMAGES.format(seed=6)
    + """

class DepthwiseSeparable(nn.Sequential):
    def __init__(self, cin, cout, stride):
        super().__init__(
            nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False),
            nn.BatchNorm2d(cin),
            nn.ReLU6(),
            nn.Conv2d(cin, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU6(),
        )


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.body = nn.Sequential(
            DepthwiseSeparable(16, 32, 2),
            DepthwiseSeparable(32, 32, 1),
            DepthwiseSeparable(32, 64, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        x = self.body(self.stem(x))
        x = self.pool(x).flatten(1)
        return self.fc(self.drop(x))


images, kinds = make_images(840)
dataset = TensorDataset(images[:720], kinds[:720])
train_loader = DataLoader(dataset, batch_size=36, shuffle=True)
val_loader = DataLoader(TensorDataset(images[720:], kinds[720:]), batch_size=60)
model = MobileNet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
""",
)

_add(
    "digits_densenet",
    "DenseNet",
    """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(7)
GROWTH = 10

pixels, answers = load_digits(return_X_y=True)
pixels = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
answers = torch.tensor(answers)


class DenseLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, GROWTH, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(torch.relu(self.bn(x)))], dim=1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.dense = nn.Sequential(*[DenseLayer(16 + i * GROWTH) for i in range(3)])
        self.final_norm = nn.BatchNorm2d(16 + 3 * GROWTH)
        self.pool = nn.AvgPool2d(4)
        self.classify = nn.Linear(46 * 4, 10)

    def forward(self, x):
        x = self.dense(self.stem(x))
        x = torch.relu(self.final_norm(x))
        x = self.pool(x)
        return self.classify(x.reshape(len(x), -1))


model = DenseNet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
train_loader = DataLoader(TensorDataset(pixels[:1344], answers[:1344]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(pixels[1344:], answers[1344:]), batch_size=151)
""",
)

_add(
    "blobs_unet",
    "UNet",
    """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(9)


def blobs(count, size=16):
    grid = torch.arange(size).float()
    centre = torch.rand(count, 2, 1, 1) * 10 + 3
    radius = torch.rand(count, 1, 1) * 2.5 + 1.5
    distance = (grid[None, :, None] - centre[:, 0]) ** 2 + (grid[None, None, :] - centre[:, 1]) ** 2
    mask = (distance < radius**2).float().unsqueeze(1)
    return mask * 1.5 + 0.7 * torch.randn(count, 1, size, size), mask


def double_conv(in_ch, out_ch):
    return nn.Sequential(
        nn.Conv2d(in_ch, out_ch, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_ch),
        nn.ReLU(),
        nn.Conv2d(out_ch, out_ch, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_ch),
        nn.ReLU(),
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = double_conv(1, 8)
        self.down2 = double_conv(8, 16)
        self.bottom = double_conv(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.up2 = double_conv(32 + 16, 16)
        self.up1 = double_conv(16 + 8, 8)
        self.final = nn.Conv2d(8, 1, kernel_size=1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        x = self.up2(torch.cat([self.up(c), b], dim=1))
        x = self.up1(torch.cat([self.up(x), a], dim=1))
        return self.final(x)


model = UNet()
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
images, masks = blobs(480)
train_loader = DataLoader(TensorDataset(images[:400], masks[:400]), batch_size=16, shuffle=True)
val_loader = DataLoader(TensorDataset(images[400:], masks[400:]), batch_size=40)
""",
)

_add(
    "digits_vit",
    "vision transformer",
    """
import torch
from torch import nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(13)

PATCH = 2
DIM = 32
HEADS = 4
BLOCKS = 2

bunch = load_digits()
images = torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 16 * 2 - 1
labels = torch.as_tensor(bunch.target)


class EncoderBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patchify = nn.Conv2d(1, DIM, kernel_size=PATCH, stride=PATCH)
        self.pos = nn.Parameter(0.02 * torch.randn(1, 16, DIM))
        self.blocks = nn.Sequential(*[EncoderBlock(DIM, HEADS) for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, 10)

    def forward(self, x):
        tokens = self.patchify(x).flatten(2).transpose(1, 2) + self.pos
        tokens = self.blocks(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


model = TinyViT()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
train_loader = DataLoader(TensorDataset(images[:1472], labels[:1472]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(images[1472:], labels[1472:]), batch_size=65)
""",
)

_add(
    "digits_mixer",
    "MLP-Mixer",
    """
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(14)
x, y = load_digits(return_X_y=True)
x = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32).view(-1, 16, 4)
y = torch.tensor(y)
order = torch.randperm(len(y))
x, y = x[order], y[order]


class FeedForward(nn.Module):
    def __init__(self, size, expansion=3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(size, expansion * size), nn.GELU(), nn.Linear(expansion * size, size)
        )

    def forward(self, x):
        return self.net(x)


class MixerBlock(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        self.token_norm = nn.LayerNorm(channels)
        self.token_mix = FeedForward(tokens)
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mix = FeedForward(channels)

    def forward(self, x):
        z = self.token_norm(x).transpose(1, 2)
        x = x + self.token_mix(z).transpose(1, 2)
        return x + self.channel_mix(self.channel_norm(x))


class Mixer(nn.Module):
    def __init__(self, tokens=16, channels=24, depth=3, classes=10):
        super().__init__()
        self.embed = nn.Linear(4, channels)
        self.blocks = nn.ModuleList(MixerBlock(tokens, channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


model = Mixer()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=99)
""",
)

_add(
    "shapes_squeeze",
    "squeeze-and-excitation CNN",
    "\nimport torch as t\nimport torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    + _IMAGES.format(seed=16)
    + """

class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels),
            nn.Sigmoid(),
        )

    def forward(self, x):
        gate = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


class Stage(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, cout)
        self.se = SqueezeExcite(cout)

    def forward(self, x):
        return self.se(t.relu(self.norm(self.conv(x))))


class SENet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(Stage(3, 16), Stage(16, 32), Stage(32, 64))
        self.head = nn.Linear(64 * 2 * 2, 4)

    def forward(self, x):
        return self.head(self.stages(x).flatten(start_dim=1))


images, kinds = make_images(800)
model = SENet()
criterion = nn.CrossEntropyLoss()
optimizer = t.optim.Adam(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(images[:672], kinds[:672]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(images[672:], kinds[672:]), batch_size=64)
""",
)

# ---------------------------------------------------------------------- what gives back its input

_add(
    "digits_autoencoder",
    "autoencoder",
    """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(17)
data = torch.tensor(load_digits().data, dtype=torch.float32) / 16.0


class Autoencoder(nn.Module):
    def __init__(self, code=10):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 48),
            nn.ReLU(),
            nn.Linear(48, 24),
            nn.ReLU(),
            nn.Linear(24, code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 24),
            nn.ReLU(),
            nn.Linear(24, 48),
            nn.ReLU(),
            nn.Linear(48, 64),
            nn.Sigmoid(),
        )
        for layer in [*self.encoder, *self.decoder]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.decoder(self.encoder(x))


model = Autoencoder()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(TensorDataset(data[:1440], data[:1440]), batch_size=48, shuffle=True)
val_loader = DataLoader(TensorDataset(data[1440:], data[1440:]), batch_size=119)
""",
)

_add(
    "rings_conv_autoencoder",
    "convolutional autoencoder",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(18)


def rings(n, size=16):
    axis = torch.linspace(-1, 1, size)
    cx, cy = torch.rand(2, n, 1, 1) - 0.5
    r = torch.rand(n, 1, 1) * 0.4 + 0.2
    d = ((axis[None, :, None] - cy) ** 2 + (axis[None, None, :] - cx) ** 2).sqrt()
    return torch.exp(-(((d - r) / 0.12) ** 2)).unsqueeze(1) * 2 - 0.5


class ConvAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1 = nn.Conv2d(1, 12, 4, stride=2, padding=1)
        self.enc2 = nn.Conv2d(12, 24, 4, stride=2, padding=1)
        self.squeeze = nn.Linear(24 * 4 * 4, 12)
        self.expand = nn.Linear(12, 24 * 4 * 4)
        self.dec2 = nn.ConvTranspose2d(24, 12, 4, stride=2, padding=1)
        self.dec1 = nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1)

    def forward(self, x):
        h = torch.relu(self.enc1(x))
        h = torch.relu(self.enc2(h))
        code = self.squeeze(h.flatten(1))
        h = torch.relu(self.expand(code)).view(-1, 24, 4, 4)
        h = torch.relu(self.dec2(h))
        return self.dec1(h)


images = rings(800)
model = ConvAutoencoder()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(TensorDataset(images[:640], images[:640]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(images[640:], images[640:]), batch_size=80)
""",
)

_add(
    "digits_vae",
    "variational autoencoder",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(19)
digits = torch.tensor(load_digits().data / 16, dtype=torch.float32)
train_loader = DataLoader(TensorDataset(digits, digits), batch_size=64, shuffle=True, drop_last=True)


class VAE(nn.Module):
    def __init__(self, latent=6):
        super().__init__()
        self.enc = nn.Linear(64, 64)
        self.mu = nn.Linear(64, latent)
        self.logvar = nn.Linear(64, latent)
        self.dec = nn.Linear(latent, 64)
        self.out = nn.Linear(64, 64)

    def encode(self, x):
        h = F.relu(self.enc(x))
        return self.mu(h), self.logvar(h)

    def reparameterize(self, mu, logvar):
        if not self.training:
            return mu
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def decode(self, z):
        return self.out(F.relu(self.dec(z)))

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar)
        return self.decode(z), mu, logvar


def criterion(output, target):
    recon, mu, logvar = output
    bce = F.binary_cross_entropy_with_logits(recon, target, reduction="none").sum(1).mean()
    kld = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
    return bce + kld


model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
)

# ---------------------------------------------------------------------- sequences

_add(
    "waves_conv1d",
    "1-D CNN",
    """
from math import pi

import torch
from torch.nn import AdaptiveAvgPool1d, BatchNorm1d, Conv1d, CrossEntropyLoss, Linear, MaxPool1d, Module, ReLU, Sequential
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(23)

# three kinds of waves: sine, square, sawtooth
time = torch.linspace(0, 4 * pi, 64)
kind = torch.randint(0, 3, (900,))
phase = torch.rand(900, 1) * 2 * pi
speed = torch.rand(900, 1) + 0.7
angle = time * speed + phase
sine = torch.sin(angle)
waves = torch.where(kind[:, None] == 0, sine, torch.where(kind[:, None] == 1, sine.sign() * 0.7, (angle % (2 * pi)) / pi - 1))
signal = (waves + 0.25 * torch.randn(900, 64)).unsqueeze(1)


class WaveNet1d(Module):
    def __init__(self):
        super().__init__()
        self.block1 = Sequential(Conv1d(1, 16, 5, padding=2, bias=False), BatchNorm1d(16), ReLU(), MaxPool1d(2))
        self.block2 = Sequential(Conv1d(16, 32, 5, padding=2, bias=False), BatchNorm1d(32), ReLU(), MaxPool1d(2))
        self.pool = AdaptiveAvgPool1d(1)
        self.fc = Linear(32, 3)

    def forward(self, x):
        x = self.block2(self.block1(x))
        return self.fc(self.pool(x).squeeze(-1))


model = WaveNet1d()
criterion = CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(TensorDataset(signal[:750], kind[:750]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(signal[750:], kind[750:]), batch_size=75)
""",
)

_add(
    "forecast_tcn",
    "TCN",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(24)

t = torch.arange(48.0)
freq = torch.rand(1000, 1) * 0.5 + 0.2
series = torch.sin(freq * t + torch.rand(1000, 1) * 6.28) + 0.1 * torch.randn(1000, 48)
past, future = series[:, None, :47], series[:, 47:]


class TemporalBlock(nn.Module):
    def __init__(self, n_in, n_out, dilation):
        super().__init__()
        self.left = 2 * dilation
        self.conv1 = nn.Conv1d(n_in, n_out, 3, dilation=dilation)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, dilation=dilation)
        self.down = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x):
        y = F.relu(self.conv1(F.pad(x, (self.left, 0))))
        y = F.relu(self.conv2(F.pad(y, (self.left, 0))))
        return F.relu(y + self.down(x))


class TCN(nn.Module):
    def __init__(self, channels=(16, 16, 16)):
        super().__init__()
        blocks = []
        n_in = 1
        for i, n_out in enumerate(channels):
            blocks.append(TemporalBlock(n_in, n_out, 2**i))
            n_in = n_out
        self.network = nn.Sequential(*blocks)
        self.linear = nn.Linear(n_in, 1)

    def forward(self, x):
        return self.linear(self.network(x)[:, :, -1])


model = TCN()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(TensorDataset(past[:840], future[:840]), batch_size=42, shuffle=True)
val_loader = DataLoader(TensorDataset(past[840:], future[840:]), batch_size=80)
""",
)

_add(
    "sentiment_lstm",
    "LSTM",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(25)
VOCAB, LENGTH, HIDDEN = 40, 16, 32

# words below 8 are good, words above 31 are bad: the majority tells
tokens = torch.randint(0, VOCAB, (1200, LENGTH))
mood = (tokens < 8).sum(1) - (tokens > 31).sum(1)
keep = mood != 0
tokens, positive = tokens[keep][:900], (mood[keep] > 0).long()[:900]


class SentimentLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 24)
        self.lstm = nn.LSTM(24, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, ids):
        embedded = self.embedding(ids)
        _, (hidden, _) = self.lstm(embedded)
        return self.fc(self.dropout(hidden[-1]))


train_loader = DataLoader(TensorDataset(tokens[:720], positive[:720]), batch_size=36, shuffle=True)
val_loader = DataLoader(TensorDataset(tokens[720:], positive[720:]), batch_size=60)
model = SentimentLSTM()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)


def train(model, epochs=10):
    for epoch in range(epochs):
        model.train()
        for ids, labels in train_loader:
            optimizer.zero_grad()
            logits = model(ids)
            loss = criterion(logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for ids, labels in val_loader:
                correct += (model(ids).argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {correct / 180:.3f}")
    return model


if __name__ == "__main__":
    train(model)
""",
)

_add(
    "marked_sum_gru",
    "GRU",
    """
\"\"\"Add the two marked numbers of a sequence.\"\"\"
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(26)
STEPS = 12

values = torch.rand(1200, STEPS) * 2 - 1
marks = torch.zeros(1200, STEPS)
for row in marks:
    row[torch.randperm(STEPS)[:2]] = 1.0
sequences = torch.stack([values, marks], dim=2)
sums = (values * marks).sum(1)


class Adder(nn.Module):
    def __init__(self, hidden_size=32):
        super().__init__()
        self.rnn = nn.GRU(2, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.linear(out[:, -1]).squeeze(-1)


loader = DataLoader(TensorDataset(sequences, sums), batch_size=60, shuffle=True)
model = Adder()
loss_fn = nn.MSELoss()
opt = torch.optim.Adam(model.parameters(), lr=8e-3)


def train(net):
    net.train()
    for epoch in range(15):
        total = 0.0
        for x, y in loader:
            opt.zero_grad()
            loss = loss_fn(net(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            total += loss.item()
        print(epoch, total / len(loader))


if __name__ == "__main__":
    train(model)
""",
)

_add(
    "trend_rnn",
    "plain RNN",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(27)

# does the noisy walk go up, down, or stay?
drift = torch.randint(0, 3, (900,))
walks = torch.cumsum(0.35 * torch.randn(900, 20) + (drift[:, None] - 1) * 0.25, dim=1)
walks = (walks / walks.std()).unsqueeze(-1)


class TrendRNN(nn.Module):
    def __init__(self, input_size=1, hidden_size=32, num_classes=3):
        super().__init__()
        self.rnn = nn.RNN(input_size, hidden_size, num_layers=1, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.fc(output[:, -1, :])


model = TrendRNN()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(walks[:760], drift[:760]), batch_size=38, shuffle=True)
val_loader = DataLoader(TensorDataset(walks[760:], drift[760:]), batch_size=70)


def train_one_epoch(model, epochs=10):
    model.train()
    for _ in range(epochs):
        for walk, target in train_loader:
            prediction = model(walk)
            loss = criterion(prediction, target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
""",
)

_add(
    "tagger_bilstm",
    "bidirectional LSTM tagger",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(28)
N_WORDS, N_TAGS = 30, 3

# the tag is 0 for small words, 1 if the next word is small, else 2
words = torch.randint(0, N_WORDS, (700, 12))
small = words < 8
before_small = torch.cat([small[:, 1:], torch.zeros(700, 1, dtype=torch.bool)], 1)
tags = torch.where(small, 0, torch.where(before_small, 1, 2))


class Tagger(nn.Module):
    def __init__(self, dim=20, hidden=24):
        super().__init__()
        self.embed = nn.Embedding(N_WORDS, dim)
        self.encoder = nn.LSTM(dim, hidden, bidirectional=True, batch_first=True)
        self.tag = nn.Linear(2 * hidden, N_TAGS)

    def forward(self, x):
        states, _ = self.encoder(self.embed(x))
        return self.tag(states)


def criterion(scores, gold):
    return F.cross_entropy(scores.reshape(-1, N_TAGS), gold.reshape(-1))


train_loader = DataLoader(TensorDataset(words[:600], tags[:600]), batch_size=30, shuffle=True)
val_loader = DataLoader(TensorDataset(words[600:], tags[600:]), batch_size=50)
model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)


def train(model):
    for _ in range(10):
        for sentence, gold in train_loader:
            model.train()
            model.zero_grad()
            loss = criterion(model(sentence), gold)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
""",
)

_add(
    "brackets_transformer",
    "transformer encoder",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(29)


class Config:
    vocab_size = 12
    seq_len = 10
    d_model = 32
    n_heads = 4
    n_layers = 2
    n_classes = 3
    dropout = 0.1


cfg = Config()

# which of the symbols 0, 1, 2 stands there most often
symbols = torch.randint(0, cfg.vocab_size, (1400, cfg.seq_len))
counts = torch.stack([(symbols == k).sum(1) for k in range(3)], 1).float()
label = (counts + 0.1 * torch.tensor([2.0, 1.0, 0.0])).argmax(1)


class EncoderClassifier(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.token_emb = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.pos_emb = nn.Parameter(torch.zeros(1, cfg.seq_len, cfg.d_model))
        nn.init.trunc_normal_(self.pos_emb, std=0.02)
        layer = nn.TransformerEncoderLayer(
            d_model=cfg.d_model,
            nhead=cfg.n_heads,
            dim_feedforward=64,
            dropout=cfg.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, cfg.n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(cfg.d_model)
        self.classifier = nn.Linear(cfg.d_model, cfg.n_classes)

    def forward(self, ids):
        h = self.token_emb(ids) + self.pos_emb
        h = self.encoder(h)
        return self.classifier(self.norm(h).mean(dim=1))


model = EncoderClassifier(cfg)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(symbols[:1200], label[:1200]), batch_size=48, shuffle=True)
val_loader = DataLoader(TensorDataset(symbols[1200:], label[1200:]), batch_size=100)
""",
)

_add(
    "grammar_gpt",
    "GPT",
    """
import math

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(30)
VOCAB, BLOCK, DIM = 16, 16, 32


def sentences(n):
    # each token is followed by one of two: a Markov chain
    rows = torch.randint(0, VOCAB, (n, 1))
    for _ in range(BLOCK):
        last = rows[:, -1]
        jump = torch.rand(n) < 0.8
        following = torch.where(jump, (3 * last + 1) % VOCAB, (last + 5) % VOCAB)
        rows = torch.cat([rows, following[:, None]], 1)
    return rows


class CausalSelfAttention(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.heads, -1).transpose(1, 2) for p in self.qkv(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = CausalSelfAttention(dim)
        self.ln_2 = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, 4 * dim)
        self.gelu = nn.GELU()
        self.proj = nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.proj(self.gelu(self.fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, n_layer=2):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, DIM)
        self.wpe = nn.Embedding(BLOCK, DIM)
        self.h = nn.ModuleList([Block(DIM) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(DIM)
        self.lm_head = nn.Linear(DIM, VOCAB, bias=False)
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1)))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def loss_fn(logits, targets):
    return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))


text = sentences(800)
train_loader = DataLoader(TensorDataset(text[:640, :-1], text[:640, 1:]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(text[640:, :-1], text[640:, 1:]), batch_size=80)
model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
""",
)

# ---------------------------------------------------------------------- sets, graphs, pairs

_add(
    "molecules_gcn",
    "GCN",
    """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(31)
NODES = 10

# random graphs; the answer is how many edges join nodes of the same sort
upper = torch.triu((torch.rand(900, NODES, NODES) < 0.3).float(), 1)
adjacency = upper + upper.transpose(1, 2)
sort = torch.nn.functional.one_hot(torch.randint(0, 3, (900, NODES)), 3).float()
same = (upper * (sort @ sort.transpose(1, 2))).sum((1, 2))
same = ((same - same.mean()) / same.std()).unsqueeze(1)


class GraphConv(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.neighbours = nn.Linear(n_in, n_out)
        self.own = nn.Linear(n_in, n_out)

    def forward(self, h, adj):
        return torch.bmm(adj, self.neighbours(h)) + self.own(h)


class GCN(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.gc1 = GraphConv(3, hidden)
        self.gc2 = GraphConv(hidden, hidden)
        self.gc3 = GraphConv(hidden, hidden)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, h, adj):
        h = torch.relu(self.gc1(h, adj))
        h = torch.relu(self.gc2(h, adj))
        h = torch.relu(self.gc3(h, adj))
        return self.readout(h.mean(dim=1))


model = GCN()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
train_loader = DataLoader(TensorDataset(sort[:760], adjacency[:760], same[:760]), batch_size=38, shuffle=True)
val_loader = DataLoader(TensorDataset(sort[760:], adjacency[760:], same[760:]), batch_size=70)
""",
)

_add(
    "bags_deepsets",
    "deep sets",
    """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(32)
items = torch.randn(1000, 8, 4)
spread = items[:, :, 0].var(dim=1) + items[:, :, 1].abs().mean(dim=1)
spread = (spread - spread.mean()) / spread.std()


class DeepSets(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))

    def forward(self, bag):
        pooled = self.phi(bag).mean(dim=1)
        return self.rho(pooled)[:, 0]


model = DeepSets()
criterion = nn.SmoothL1Loss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
train_loader = DataLoader(TensorDataset(items[:850], spread[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(items[850:], spread[850:]), batch_size=75)
""",
)

_add(
    "pairs_siamese",
    "siamese network",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(33)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 16
labels = torch.tensor(labels)
first = torch.randint(0, len(labels), (3000,))
second = torch.randint(0, len(labels), (3000,))
same = labels[first] == labels[second]
# as many equal pairs as different ones
keep = same | (torch.rand(3000) < 0.11)
first, second, same = first[keep], second[keep], same[keep].float()


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 16),
        )
        self.compare = nn.Linear(16, 1)

    def forward(self, a, b):
        ea, eb = self.tower(a), self.tower(b)
        return self.compare(torch.abs(ea - eb)).squeeze(1)


model = Siamese()
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(
    TensorDataset(images[first], images[second], same), batch_size=48, shuffle=True
)
""",
)

_add(
    "points_multitask",
    "multi-task network",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(34)

# where a point lies: its quadrant, and how far from the origin
points = torch.randn(1000, 6)
quadrant = (points[:, 0] > 0).long() * 2 + (points[:, 1] > 0).long()
radius = points[:, :3].norm(dim=1)
radius = (radius - radius.mean()) / radius.std()
targets = torch.stack([quadrant.float(), radius], dim=1)


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.class_head = nn.Linear(48, 4)
        self.radius_head = nn.Linear(48, 1)

    def forward(self, x):
        shared = self.trunk(x)
        return self.class_head(shared), self.radius_head(shared)


def criterion(outputs, targets):
    logits, distance = outputs
    ce = nn.functional.cross_entropy(logits, targets[:, 0].long())
    mse = nn.functional.mse_loss(distance.squeeze(1), targets[:, 1])
    return ce + mse


model = MultiTask()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
train_loader = DataLoader(TensorDataset(points[:850], targets[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(points[850:], targets[850:]), batch_size=75)
""",
)

_add(
    "reviews_bag",
    "embedding bag",
    """
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(35)
VOCABULARY = 200
TOPICS = 5

topic = torch.randint(0, TOPICS, (1000,))
common = torch.randint(0, VOCABULARY, (1000, 20))
special = topic[:, None] * 20 + torch.randint(0, 20, (1000, 20))
texts = torch.where(torch.rand(1000, 20) < 0.35, special, common)


class TextClassifier(nn.Module):
    def __init__(self, embed_dim=24):
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY, embed_dim, mode="mean")
        self.hidden = nn.Linear(embed_dim, 32)
        self.fc = nn.Linear(32, TOPICS)

    def forward(self, text):
        bag = self.embedding(text)
        return self.fc(torch.relu(self.hidden(bag)))


model = TextClassifier()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
train_loader = DataLoader(TensorDataset(texts[:850], topic[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(texts[850:], topic[850:]), batch_size=75)
""",
)

_add(
    "ratings_factorisation",
    "recommender",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(36)
USERS, ITEMS, RANK = 60, 40, 8

tastes, traits = torch.randn(USERS, 3), torch.randn(ITEMS, 3)
user = torch.randint(0, USERS, (3000,))
item = torch.randint(0, ITEMS, (3000,))
rating = (tastes[user] * traits[item]).sum(1) + 0.1 * torch.randn(3000)
rating = rating / rating.std()


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.user_factors = nn.Embedding(USERS, RANK)
        self.item_factors = nn.Embedding(ITEMS, RANK)
        self.mlp = nn.Sequential(
            nn.Linear(3 * RANK, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, users, items):
        u, i = self.user_factors(users), self.item_factors(items)
        return self.mlp(torch.cat([u, i, u * i], dim=1)).squeeze(1)


model = Recommender()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
train_loader = DataLoader(TensorDataset(user, item, rating), batch_size=100, shuffle=True)
""",
)

_add(
    "shop_wide_deep",
    "wide and deep",
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(37)
N_SHOPS = 20
settings = {"emb": 6, "hidden": 40, "p_drop": 0.1, "lr": 3e-3}

shop = torch.randint(0, N_SHOPS, (1000,))
numbers = torch.randn(1000, 5)
effect = torch.randn(N_SHOPS)
bought = ((effect[shop] + numbers[:, 0] * numbers[:, 1] + numbers[:, 2]) > 0).float()


class WideDeep(nn.Module):
    def __init__(self, emb, hidden, p_drop):
        super().__init__()
        self.emb = nn.Embedding(N_SHOPS, emb)
        self.deep = nn.Sequential(
            nn.Linear(emb + 5, hidden), nn.ReLU(), nn.Dropout(p_drop), nn.Linear(hidden, hidden), nn.ReLU(),
        )
        self.deep_out = nn.Linear(hidden, 1)
        self.wide = nn.Linear(5, 1)

    def forward(self, shop, numbers):
        z = torch.cat((self.emb(shop), numbers), dim=-1)
        return (self.wide(numbers) + self.deep_out(self.deep(z))).view(-1)


model = WideDeep(settings["emb"], settings["hidden"], settings["p_drop"])
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
train_loader = DataLoader(TensorDataset(shop[:850], numbers[:850], bought[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(shop[850:], numbers[850:], bought[850:]), batch_size=75)
""",
)

_add(
    "bags_attention",
    "attention pooling",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(38)
# a bag is positive if one of its instances lies far out
bags = torch.randn(800, 6, 5)
label = torch.randint(0, 2, (800,))
spot = torch.randint(0, 6, (800,))
bags[torch.arange(800), spot] += label[:, None] * 2.0


class AttentionMIL(nn.Module):
    def __init__(self):
        super().__init__()
        self.instance = nn.Linear(5, 32)
        self.score = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
        self.classifier = nn.Linear(32, 2)

    def forward(self, bag):
        h = F.relu(self.instance(bag))
        weights = F.softmax(self.score(h), dim=1)
        return self.classifier((weights * h).sum(dim=1))


model = AttentionMIL()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
train_loader = DataLoader(TensorDataset(bags[:680], label[:680]), batch_size=40, shuffle=True)
val_loader = DataLoader(TensorDataset(bags[680:], label[680:]), batch_size=60)
""",
)

_add(
    "gates_highway",
    "highway network",
    """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(39)
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 8 - 1, dtype=torch.float32), torch.tensor(y)


class Highway(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return g * F.relu(self.transform(x)) + (1 - g) * x


class HighwayNet(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.enter = nn.Linear(64, 50)
        self.highways = nn.ModuleList([Highway(50) for _ in range(depth)])
        self.leave = nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(self.enter(x))
        for layer in self.highways:
            x = layer(x)
        return self.leave(x)


model = HighwayNet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
train_loader = DataLoader(TensorDataset(X[:1500], y[:1500]), batch_size=60, shuffle=True)
val_loader = DataLoader(TensorDataset(X[1500:], y[1500:]), batch_size=99)
""",
)

_add(
    "letters_fractional",
    "CNN with its own loop",
    "\nimport torch\nfrom torch import nn, optim\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    + _IMAGES.format(seed=40)
    + """

class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(32 * 4 * 4, 4)

    def forward(self, x):
        return self.fc(self.drop(self.conv(x).flatten(1)))


x, y = make_images(900)
train_loader = DataLoader(TensorDataset(x[:768], y[:768]), batch_size=32, shuffle=True)
val_loader = DataLoader(TensorDataset(x[768:], y[768:]), batch_size=66)
model = SmallCNN()
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)


def evaluate(model):
    model.eval()
    hits = 0
    with torch.no_grad():
        for images, kinds in val_loader:
            hits += (model(images).argmax(dim=1) == kinds).sum().item()
    return hits / len(val_loader.dataset)


def train(model, num_epochs=8):
    for epoch in range(num_epochs):
        model.train()
        running = 0.0
        for images, kinds in train_loader:
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, kinds)
            loss.backward()
            optimizer.step()
            running += loss.item()
        scheduler.step()
        print(epoch, running / len(train_loader), evaluate(model))


if __name__ == "__main__":
    train(model)
""",
)

_add(
    "blobs_mlp_loop",
    "MLP with its own loop",
    """
import torch
import torch.nn as nn
from sklearn.datasets import make_classification
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(41)
X, y = make_classification(
    1200, n_features=16, n_informative=8, n_classes=4, class_sep=1.5, random_state=0
)
X = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
y = torch.tensor(y)
train_dl = DataLoader(TensorDataset(X[:1000], y[:1000]), batch_size=40, shuffle=True)
val_dl = DataLoader(TensorDataset(X[1000:], y[1000:]), batch_size=100)

model = nn.Sequential(
    nn.Linear(16, 64),
    nn.ReLU(),
    nn.Dropout(0.1),
    nn.Linear(64, 64),
    nn.ReLU(),
    nn.Linear(64, 4),
)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def fit(model, n_epochs=8):
    history = []
    for epoch in range(n_epochs):
        model.train()
        for xb, yb in train_dl:
            loss = criterion(model(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    return history
""",
)
