"""Sound trainings that look like faulty ones: zero branches, frozen bases, cut gradients, all by design.

`SOUND` holds whole files by name, as `benchmarks.repair_models` does. No fix of theirs may be called
verified, and `--fix --unsafe-fixes` must leave them as they are.
"""

from __future__ import annotations

# ruff: noqa: E501 - the texts are wrapped as their authors would

SOUND: dict[str, str] = {}

_DIGITS = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed({seed})
raw = load_digits()
order = torch.randperm(len(raw.target))
X = torch.tensor(raw.data / 8 - 1, dtype=torch.float32)[order]
y = torch.tensor(raw.target)[order]
train_loader = DataLoader(TensorDataset(X[:1500], y[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(X[1500:], y[1500:]), batch_size=99)
"""

_PLAIN = """
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed({seed})
"""


def _add(name: str, text: str, *, digits: int = 0, plain: int = 0) -> None:
    head = _DIGITS.format(seed=digits) if digits else _PLAIN.format(seed=plain) if plain else ""
    SOUND[name] = (head + text).lstrip("\n")


_add(
    "resnet_zero_gamma",
    """

class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        nn.init.zeros_(self.bn2.weight)  # each block starts as the identity

    def forward(self, x):
        z = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(z)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.body = nn.Sequential(Residual(16), Residual(16), Residual(16))
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x):
        x = F.relu(self.stem(x.view(-1, 1, 8, 8)))
        return self.head(F.avg_pool2d(self.body(x), 4).flatten(1))


model = Net()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
""",
    digits=101,
)

_add(
    "lora_on_frozen_base",
    """

class LoRALinear(nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = LoRALinear(nn.Linear(64, 128))
        self.fc2 = LoRALinear(nn.Linear(128, 128))
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.head(x)


model = Adapted()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
""",
    digits=102,
)

_add(
    "siren",
    """
coords = torch.rand(2000, 2) * 2 - 1
values = (torch.sin(9 * coords[:, :1]) * torch.cos(7 * coords[:, 1:])) * 0.8
train_loader = DataLoader(TensorDataset(coords[:1800], values[:1800]), batch_size=100, shuffle=True)
val_loader = DataLoader(TensorDataset(coords[1800:], values[1800:]), batch_size=100)


class Sine(nn.Module):
    def __init__(self, n_in, n_out, first=False, omega=12.0):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.omega = omega
        bound = 1 / n_in if first else math.sqrt(6 / n_in) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


model = nn.Sequential(Sine(2, 64, first=True), Sine(64, 64), Sine(64, 64), nn.Linear(64, 1))
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
""",
    plain=103,
)

_add(
    "adaln_zero",
    """

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.modulation = nn.Linear(dim, 3 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(F.silu(c)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    def __init__(self, dim=64):
        super().__init__()
        self.enter = nn.Linear(64, dim)
        self.label = nn.Embedding(10, dim)
        self.blocks = nn.ModuleList([Block(dim) for _ in range(3)])
        self.leave = nn.Linear(dim, 64)

    def forward(self, noisy, label):
        x, c = self.enter(noisy), self.label(label)
        for block in self.blocks:
            x = block(x, c)
        return self.leave(x)


noisy = X + 0.5 * torch.randn_like(X)
train_loader = DataLoader(TensorDataset(noisy[:1500], y[:1500], X[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(noisy[1500:], y[1500:], X[1500:]), batch_size=99)
model = Denoiser()
criterion = nn.MSELoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
""",
    digits=104,
)

_add(
    "lstm_forget_bias",
    """
sequence = torch.randint(0, 5, (1000, 14))
answer = sequence[:, 2]
train_loader = DataLoader(TensorDataset(sequence[:850], answer[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(sequence[850:], answer[850:]), batch_size=75)


class Recall(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.emb = nn.Embedding(5, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 5)
        for name, p in self.lstm.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(p)
            elif "bias" in name:
                nn.init.zeros_(p)
                p.data[hidden : 2 * hidden] = 1.0  # remember at first

    def forward(self, x):
        return self.fc(self.lstm(self.emb(x))[0][:, -1])


model = Recall()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


def train(model):
    model.train()
    for epoch in range(10):
        for x, target in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(x), target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
""",
    plain=105,
)

_add(
    "rezero",
    """

class ReZero(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.alpha * self.f(x)


model = nn.Sequential(nn.Linear(64, 48), *[ReZero(48) for _ in range(6)], nn.Linear(48, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=106,
)

_add(
    "convnext_layer_scale",
    """

class Block(nn.Module):
    def __init__(self, dim, scale=1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.pw1 = nn.Linear(dim, 4 * dim)
        self.pw2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(scale * torch.ones(dim))

    def forward(self, x):
        z = self.dwconv(x).permute(0, 2, 3, 1)
        z = self.pw2(F.gelu(self.pw1(self.norm(z))))
        return x + (self.gamma * z).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.stem = nn.Conv2d(1, dim, 2, stride=2)
        self.blocks = nn.Sequential(Block(dim), Block(dim))
        self.norm = nn.LayerNorm(dim * 16)
        self.head = nn.Linear(dim * 16, 10)

    def forward(self, x):
        x = self.blocks(self.stem(x.reshape(-1, 1, 8, 8)))
        return self.head(self.norm(x.flatten(1)))


model = ConvNeXt()
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
""",
    digits=107,
)

_add(
    "linear_probe",
    """

class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
        for p in self.backbone.parameters():
            p.requires_grad = False
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


model = Probe()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
""",
    digits=108,
)

_add(
    "llama_like_tied",
    """
V, T, D = 20, 12, 32
rows = [torch.randint(0, V, (700, 1))]
for _ in range(T):
    step = torch.where(torch.rand(700, 1) < 0.85, rows[-1] * 7 + 3, rows[-1] + 1)
    rows.append(step % V)
text = torch.cat(rows, 1)
train_loader = DataLoader(TensorDataset(text[:600, :-1], text[:600, 1:]), batch_size=30, shuffle=True)
val_loader = DataLoader(TensorDataset(text[600:, :-1], text[600:, 1:]), batch_size=50)


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2 = RMSNorm(d), RMSNorm(d)
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, d, bias=False)
        self.v = nn.Linear(d, d, bias=False)
        self.o = nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(d, 2 * d, bias=False)
        self.up = nn.Linear(d, 2 * d, bias=False)
        self.down = nn.Linear(2 * d, d, bias=False)

    def forward(self, x):
        h = self.n1(x)
        q, k, v = (f(h).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).flatten(2))
        h = self.n2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(V, D)
        self.pos = nn.Parameter(0.02 * torch.randn(T, D))
        self.layers = nn.ModuleList([Layer(D) for _ in range(2)])
        self.norm = RMSNorm(D)
        self.out = nn.Linear(D, V, bias=False)
        nn.init.normal_(self.tok.weight, std=0.02)
        self.out.weight = self.tok.weight

    def forward(self, idx):
        x = self.tok(idx) + self.pos
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


def criterion(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


model = LM()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
""",
    plain=109,
)

_add(
    "simsiam_stop_gradient",
    """

class SimSiam(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, d))
        self.predictor = nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, d))

    def forward(self, a, b):
        za, zb = self.encoder(a), self.encoder(b)
        return self.predictor(za), self.predictor(zb), za.detach(), zb.detach()


model = SimSiam()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model):
    model.train()
    for epoch in range(5):
        for x, _ in train_loader:
            a, b = x + 0.2 * torch.randn_like(x), x + 0.2 * torch.randn_like(x)
            pa, pb, za, zb = model(a, b)
            loss = -(F.cosine_similarity(pa, zb).mean() + F.cosine_similarity(pb, za).mean()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
""",
    digits=110,
)

_add(
    "vq_straight_through",
    """

class VQ(nn.Module):
    def __init__(self, codes=32, d=8):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4 * d))
        self.book = nn.Embedding(codes, d)
        nn.init.uniform_(self.book.weight, -0.5, 0.5)
        self.dec = nn.Sequential(nn.Linear(4 * d, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x):
        z = self.enc(x).view(len(x), 4, -1)
        nearest = torch.cdist(z, self.book.weight.expand(len(x), -1, -1)).argmin(-1)
        q = self.book(nearest)
        passed = z + (q - z).detach()
        return self.dec(passed.flatten(1)), z, q


def criterion(output, target):
    image, z, q = output
    return F.mse_loss(image, target) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


train_loader = DataLoader(TensorDataset(X[:1500], X[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(X[1500:], X[1500:]), batch_size=99)
model = VQ()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=111,
)

_add(
    "simclr_nt_xent",
    """

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48))
        self.project = nn.Sequential(nn.ReLU(), nn.Linear(48, 24))

    def forward(self, x):
        return F.normalize(self.project(self.body(x)), dim=1)


def nt_xent(za, zb, temperature=0.2):
    z = torch.cat([za, zb])
    sim = z @ z.T / temperature
    sim.fill_diagonal_(float("-inf"))
    n = len(za)
    return F.cross_entropy(sim, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


model = Encoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def train(model, epochs=5):
    model.train()
    for _ in range(epochs):
        for images, _labels in train_loader:
            a = images + 0.3 * torch.randn_like(images)
            b = images + 0.3 * torch.randn_like(images)
            loss = nt_xent(model(a), model(b))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
""",
    digits=112,
)

_add(
    "coupling_flow",
    """
angle = torch.rand(2000) * math.pi
moons = torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(2000, 2)
moons[::2] = torch.tensor([1.0, 0.4]) - moons[::2]
moons = (moons - moons.mean(0)) / moons.std(0)
train_loader = DataLoader(TensorDataset(moons[:1800], moons[:1800]), batch_size=100, shuffle=True)


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, dim=1)
        s = torch.tanh(s)
        b = b * torch.exp(s) + t
        return torch.cat([b, a] if self.flip else [a, b], 1), s.sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([Coupling(i % 2 == 0) for i in range(6)])

    def forward(self, x):
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, logdet = step(x)
            total = total + logdet
        return x, total


def criterion(output, _target):
    z, logdet = output
    return (0.5 * z.pow(2).sum(1) - logdet).mean() + math.log(2 * math.pi)


model = Flow()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    plain=113,
)

_add(
    "pinn_decay",
    """

class Solution(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
        )

    def forward(self, t):
        return self.net(t)


model = Solution()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def train(model):
    # u' = -2 u with u(0) = 1
    for step in range(200):
        t = torch.rand(64, 1, requires_grad=True)
        u = model(t)
        du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        loss = (du + 2 * u).pow(2).mean() + (model(torch.zeros(1, 1)) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
    plain=114,
)

_add(
    "fourier_features",
    """
pixels = torch.rand(1800, 2)
colours = torch.stack([torch.sin(12 * pixels[:, 0]), torch.cos(9 * pixels[:, 1]), pixels.prod(1)], 1) * 0.5 + 0.5
train_loader = DataLoader(TensorDataset(pixels[:1600], colours[:1600]), batch_size=80, shuffle=True)
val_loader = DataLoader(TensorDataset(pixels[1600:], colours[1600:]), batch_size=100)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(4) * math.pi)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, p):
        angles = (p[..., None] * self.frequencies).flatten(1)
        return torch.sigmoid(self.mlp(torch.cat([angles.sin(), angles.cos()], 1)))


model = Field()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
""",
    plain=115,
)

_add(
    "mixture_of_experts",
    """

class MoE(nn.Module):
    def __init__(self, d=64, experts=4):
        super().__init__()
        self.router = nn.Linear(d, experts)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(d, 48), nn.ReLU(), nn.Linear(48, 10)) for _ in range(experts)]
        )

    def forward(self, x):
        weights = F.softmax(self.router(x), dim=-1)
        answers = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (weights.unsqueeze(-1) * answers).sum(1)


model = MoE()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=116,
)

_add(
    "selu_alpha_dropout",
    """

class SelfNormalizing(nn.Module):
    def __init__(self, depth=6, width=64):
        super().__init__()
        sizes = [64] + [width] * depth
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.drop = nn.AlphaDropout(0.05)
        self.head = nn.Linear(width, 10)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = self.drop(F.selu(layer(x)))
        return self.head(x)


model = SelfNormalizing()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
""",
    digits=117,
)

_add(
    "film_conditioning",
    """
condition = torch.randint(0, 3, (1200,))
x = torch.randn(1200, 6)
target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin() * 2, x[:, 3].abs() - 1], 1)[torch.arange(1200), condition]
train_loader = DataLoader(TensorDataset(x[:1000], condition[:1000], target[:1000]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1000:], condition[1000:], target[1000:]), batch_size=100)


class FiLM(nn.Module):
    def __init__(self, d=48):
        super().__init__()
        self.fc1 = nn.Linear(6, d)
        self.fc2 = nn.Linear(d, d)
        self.film = nn.Embedding(3, 2 * d)
        nn.init.zeros_(self.film.weight)  # no change at first
        self.out = nn.Linear(d, 1)

    def forward(self, x, c):
        scale, shift = self.film(c).chunk(2, 1)
        h = F.relu(self.fc1(x))
        h = F.relu(self.fc2(h) * (1 + scale) + shift)
        return self.out(h).squeeze(-1)


model = FiLM()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
""",
    plain=118,
)

_add(
    "accumulation_and_warmup",
    """
model = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.LayerNorm(80), nn.Linear(80, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
ACCUMULATE = 2
WARMUP = 10
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min((step + 1) / WARMUP, 0.5 * (1 + torch.cos(torch.tensor(step / 120 * 3.14159)).item()))
)


def train(model, epochs=8):
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        for i, (images, labels) in enumerate(train_loader):
            loss = criterion(model(images), labels) / ACCUMULATE
            loss.backward()
            if (i + 1) % ACCUMULATE == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            hits = sum((model(a).argmax(1) == b).sum().item() for a, b in val_loader)
        print(epoch, hits / 297)
""",
    digits=119,
)

_add(
    "distillation",
    """

def net(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


teacher = net(256)
teacher.eval()
teacher.requires_grad_(False)
student = net(32)
optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = student

    def forward(self, x):
        return self.student(x)


model = Pair()


def train(model):
    model.train()
    for _ in range(6):
        for x, labels in train_loader:
            with torch.no_grad():
                soft = F.softmax(teacher(x) / 2.0, dim=1)
            logits = model(x)
            distil = F.kl_div(F.log_softmax(logits / 2.0, dim=1), soft, reduction="batchmean")
            loss = F.cross_entropy(logits, labels) + 0.3 * distil
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
""",
    digits=120,
)

_add(
    "bottleneck_factorised",
    """

class LowRank(nn.Module):
    \"\"\"A 128 x 128 matrix as a product of two thin ones.\"\"\"

    def __init__(self, n, rank=8):
        super().__init__()
        self.down = nn.Linear(n, rank, bias=False)
        self.up = nn.Linear(rank, n)

    def forward(self, x):
        return self.up(self.down(x))


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), LowRank(128), nn.ReLU(), nn.Linear(128, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=121,
)

_add(
    "masked_autoencoder",
    """

class MAE(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.embed = nn.Linear(4, d)
        self.pos = nn.Parameter(0.02 * torch.randn(16, d))
        self.mask_token = nn.Parameter(torch.zeros(d))
        layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.predict = nn.Linear(d, 4)

    def forward(self, patches, hidden):
        x = torch.where(hidden[..., None], self.mask_token, self.embed(patches)) + self.pos
        return self.predict(self.encoder(x))


patches = X.view(-1, 16, 4)
hidden = torch.rand(len(X), 16) < 0.4
train_loader = DataLoader(TensorDataset(patches[:1500], hidden[:1500], patches[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(patches[1500:], hidden[1500:], patches[1500:]), batch_size=99)
model = MAE()
criterion = nn.MSELoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
""",
    digits=122,
)

_add(
    "poisson_counts",
    """
x = torch.randn(1200, 5)
rate = torch.exp(0.6 * x[:, 0] - 0.4 * x[:, 1] * x[:, 2] + 0.3)
counts = torch.poisson(rate.clamp(max=20))
train_loader = DataLoader(TensorDataset(x[:1000], counts[:1000]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1000:], counts[1000:]), batch_size=100)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        return F.softplus(self.net(x)).squeeze(1) + 1e-4


model = Counter()
criterion = nn.PoissonNLLLoss(log_input=False)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
""",
    plain=123,
)

_add(
    "gaussian_likelihood",
    """
x = torch.rand(1200, 1) * 6 - 3
y = torch.sin(x) + torch.randn(1200, 1) * (0.1 + 0.15 * x.abs())
train_loader = DataLoader(TensorDataset(x[:1000], y[:1000]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1000:], y[1000:]), batch_size=100)


class Heteroscedastic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.mean = nn.Linear(48, 1)
        self.spread = nn.Linear(48, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.mean(h), F.softplus(self.spread(h)) + 1e-3


def criterion(output, target):
    return F.gaussian_nll_loss(output[0], target, output[1])


model = Heteroscedastic()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
""",
    plain=124,
)

_add(
    "mixup_and_soft_labels",
    """
model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 10))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def train(model):
    model.train()
    for epoch in range(8):
        for images, labels in train_loader:
            share = torch.distributions.Beta(0.4, 0.4).sample()
            other = torch.randperm(len(images))
            soft = F.one_hot(labels, 10).float()
            mixed = share * images + (1 - share) * images[other]
            target = share * soft + (1 - share) * soft[other]
            optimizer.zero_grad()
            criterion(model(mixed), target).backward()
            optimizer.step()
""",
    digits=125,
)

_add(
    "focal_loss",
    """
x = torch.randn(2000, 8)
rare = ((x[:, 0] * x[:, 1] > 0.8) & (x[:, 2] > -0.5)).float()
train_loader = DataLoader(TensorDataset(x[:1700], rare[:1700]), batch_size=85, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1700:], rare[1700:]), batch_size=100)


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
        nn.init.constant_(self.layers[-1].bias, -2.0)  # few are positive

    def forward(self, x):
        return self.layers(x)[:, 0]


class FocalLoss(nn.Module):
    def forward(self, logits, target):
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p = torch.exp(-bce)
        weight = torch.where(target > 0.5, 0.7, 0.3)
        return (weight * (1 - p) ** 2 * bce).mean()


model = Scorer()
criterion = FocalLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
""",
    plain=126,
)

_add(
    "padded_embeddings",
    """
PAD = 0
ids = torch.randint(1, 50, (1000, 12))
length = torch.randint(4, 13, (1000,))
ids[torch.arange(12)[None] >= length[:, None]] = PAD
label = ((ids < 15) & (ids > 0)).sum(1).gt(length * 0.3).long()
train_loader = DataLoader(TensorDataset(ids[:850], label[:850]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(ids[850:], label[850:]), batch_size=75)


class Average(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.embedding = nn.Embedding(50, dim, padding_idx=PAD)
        self.fc1 = nn.Linear(dim, 32)
        self.fc2 = nn.Linear(32, 2)

    def forward(self, ids):
        mask = (ids != PAD).float().unsqueeze(-1)
        pooled = (self.embedding(ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.fc2(F.relu(self.fc1(pooled)))


model = Average()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
""",
    plain=127,
)

_add(
    "triplet_metric",
    """

class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x):
        return F.normalize(self.net(x), dim=-1)


model = Embedder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
triplet = nn.TripletMarginLoss(margin=0.3)


def train(model):
    model.train()
    for _ in range(6):
        for images, labels in train_loader:
            z = model(images)
            same = labels[:, None] == labels[None]
            distance = torch.cdist(z, z)
            far = distance.masked_fill(~same, -1).argmax(1)
            near = distance.masked_fill(same, 9).argmin(1)
            loss = triplet(z, z[far], z[near])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
""",
    digits=128,
)

_add(
    "multi_label",
    """
x = torch.randn(1200, 10)
tags = torch.stack([x[:, 0] > 0, x[:, 1] * x[:, 2] > 0, x[:, 3] + x[:, 4] > 0.5, x[:, 5].abs() > 0.7], 1).float()
train_loader = DataLoader(TensorDataset(x[:1000], tags[:1000]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1000:], tags[1000:]), batch_size=100)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(10, 64), nn.LeakyReLU(0.1), nn.Linear(64, 64), nn.LeakyReLU(0.1))
        self.tags = nn.Linear(64, 4)

    def forward(self, x):
        return torch.sigmoid(self.tags(self.hidden(x)))


model = Tagger()
criterion = nn.BCELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
""",
    plain=129,
)

_add(
    "diffusion_denoiser",
    """
images = X.view(-1, 1, 8, 8)
when = torch.rand(len(X))
noise = torch.randn_like(images)
blend = (1 - when).view(-1, 1, 1, 1)
noisy = blend.sqrt() * images + (1 - blend).sqrt() * noise
train_loader = DataLoader(TensorDataset(noisy[:1500], when[:1500], noise[:1500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(noisy[1500:], when[1500:], noise[1500:]), batch_size=99)


class ResBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(4, c)
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)
        self.time = nn.Linear(16, c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, t):
        h = self.conv1(F.silu(self.norm(x))) + self.time(t)[:, :, None, None]
        return x + self.conv2(F.silu(h))


class Denoiser(nn.Module):
    def __init__(self, c=24):
        super().__init__()
        self.register_buffer("freqs", torch.exp(torch.linspace(0, 4, 8)))
        self.enter = nn.Conv2d(1, c, 3, padding=1)
        self.block1, self.block2 = ResBlock(c), ResBlock(c)
        self.leave = nn.Conv2d(c, 1, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x, t):
        angle = t[:, None] * self.freqs
        t = torch.cat([angle.sin(), angle.cos()], 1)
        x = self.enter(x)
        return self.leave(F.silu(self.block2(self.block1(x, t), t)))


model = Denoiser()
criterion = nn.MSELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=130,
)

_add(
    "euler_ode",
    """

class Field(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class ODENet(nn.Module):
    def __init__(self, d=48, steps=5):
        super().__init__()
        self.enter = nn.Linear(64, d)
        self.field = Field(d)
        self.steps = steps
        self.leave = nn.Linear(d, 10)

    def forward(self, x):
        x = self.enter(x)
        for _ in range(self.steps):
            x = x + self.field(x) / self.steps
        return self.leave(x)


model = ODENet()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=131,
)

_add(
    "weight_norm_net",
    """
from torch.nn.utils.parametrizations import weight_norm

model = nn.Sequential(
    weight_norm(nn.Linear(64, 64)),
    nn.ELU(),
    weight_norm(nn.Linear(64, 64)),
    nn.ELU(),
    nn.Linear(64, 10),
)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)
""",
    digits=132,
)

_add(
    "two_rates_and_no_decay",
    """

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))


model = Classifier()
decay = [p for p in model.parameters() if p.ndim > 1]
plain = [p for p in model.parameters() if p.ndim <= 1]
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(
    [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 1e-3}], lr=3e-3
)
""",
    digits=133,
)

_add(
    "conditional_batchnorm_stem",
    """

class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.value = nn.Conv2d(c, c, 3, padding=1)
        self.gate = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))


class GatedCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.gates = nn.Sequential(Gate(16), Gate(16), Gate(16), Gate(16))
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = self.gates(self.stem(x.view(-1, 1, 8, 8)))
        return self.head(F.max_pool2d(F.relu(x), 2).flatten(1))


model = GatedCNN()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
""",
    digits=134,
)

_add(
    "ema_teacher",
    """
import copy

online = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
target = copy.deepcopy(online).requires_grad_(False)
predictor = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


class BYOL(nn.Module):
    def __init__(self):
        super().__init__()
        self.online, self.target, self.predictor = online, target, predictor

    def forward(self, a, b):
        with torch.no_grad():
            goal = F.normalize(self.target(b), dim=1)
        return F.normalize(self.predictor(self.online(a)), dim=1), goal


model = BYOL()
optimizer = torch.optim.Adam([*online.parameters(), *predictor.parameters()], lr=2e-3)


def train(model):
    model.train()
    for _ in range(5):
        for x, _labels in train_loader:
            p, z = model(x + 0.2 * torch.randn_like(x), x + 0.2 * torch.randn_like(x))
            loss = (p - z).pow(2).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters()):
                    slow.lerp_(fast, 0.02)
""",
    digits=135,
)
