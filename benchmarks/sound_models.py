"""Sound models in the styles that people write, as source texts: what faults are injected into.

Each text is a file of its own with `torch`, `nn` and `F` imported, one model that can be built without
arguments, and `example_inputs` with a batch of four. `MODELS` holds them by name.
"""

# ruff: noqa: E501 - the texts are wrapped as their authors would

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sound:
    """One model: its name, the class to build, what comes out of it, and its source.

    `task` is what the output means: `classes` and `regression` for tables of logits or values,
    `tokens` for logits at each position, `pixels` for logits of a map, else `other`. `causal` tells
    whether position t may only see what came before; `sequence` whether it works on sequences of
    variable length; the causal input is
    the last one.
    """

    name: str
    main: str
    task: str
    source: str
    causal: bool = False
    sequence: bool = False


MODELS: dict[str, Sound] = {}


def _add(
    name: str, main: str, task: str, source: str, *, causal: bool = False, sequence: bool = False
) -> None:
    MODELS[name] = Sound(name, main, task, source.lstrip("\n"), causal, sequence)


_add(
    "mlp",
    "Net",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, n_in=20, hidden=64, n_out=5):
        super(Net, self).__init__()
        self.fc1 = nn.Linear(n_in, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, n_out)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = self.drop(x)
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


example_inputs = (torch.randn(4, 20),)
""",
)

_add(
    "tabular_embeddings",
    "TabularModel",
    "regression",
    '''
import torch
from torch import nn
import torch.nn.functional as F


class TabularModel(nn.Module):
    """Categorical columns through embeddings, continuous ones through batch norm."""

    def __init__(self, cardinalities=(10, 7, 23), n_cont=6, layers=(64, 32)):
        super().__init__()
        self.embeds = nn.ModuleList([nn.Embedding(c, min(8, c // 2)) for c in cardinalities])
        n_emb = sum(e.embedding_dim for e in self.embeds)
        self.bn_cont = nn.BatchNorm1d(n_cont)
        sizes = [n_emb + n_cont] + list(layers)
        blocks = []
        for i, o in zip(sizes[:-1], sizes[1:]):
            blocks += [
                nn.Linear(i, o, bias=False),
                nn.BatchNorm1d(o),
                nn.ReLU(inplace=True),
                nn.Dropout(0.1),
            ]
        self.layers = nn.Sequential(*blocks)
        self.out = nn.Linear(sizes[-1], 1)

    def forward(self, cat, cont):
        x = [e(cat[:, i]) for i, e in enumerate(self.embeds)]
        x = torch.cat(x, 1)
        c = self.bn_cont(cont)
        x = torch.cat([x, c], 1)
        x = self.layers(x)
        return self.out(x)


example_inputs = (torch.randint(0, 7, (4, 3)), torch.randn(4, 6))
''',
)

_add(
    "lenet",
    "LeNet5",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, img):
        out = F.max_pool2d(F.relu(self.conv1(img)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        out = out.view(out.size(0), -1)
        out = F.relu(self.fc1(out))
        out = F.relu(self.fc2(out))
        return self.fc3(out)


example_inputs = (torch.randn(4, 1, 28, 28),)
""",
)

_add(
    "vgg",
    "VGG",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F

cfg = [32, 32, "M", 64, 64, "M", 128, 128, "M"]


class VGG(nn.Module):
    def __init__(self, num_classes=10):
        super(VGG, self).__init__()
        self.features = self._make_layers(cfg)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(128, 96),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(96, num_classes),
        )

    def _make_layers(self, cfg):
        layers = []
        channels = 3
        for v in cfg:
            if v == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [
                    nn.Conv2d(channels, v, 3, padding=1, bias=False),
                    nn.BatchNorm2d(v),
                    nn.ReLU(inplace=True),
                ]
                channels = v
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.features(x)
        x = self.pool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "resnet",
    "ResNet",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_planes, planes, stride=1):
        super(BasicBlock, self).__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(planes),
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        out = F.relu(out)
        return out


class ResNet(nn.Module):
    def __init__(self, blocks=(1, 2, 1), num_classes=10):
        super(ResNet, self).__init__()
        self.in_planes = 16
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._make_layer(16, blocks[0], stride=1)
        self.layer2 = self._make_layer(32, blocks[1], stride=2)
        self.layer3 = self._make_layer(64, blocks[2], stride=2)
        self.linear = nn.Linear(64, num_classes)

    def _make_layer(self, planes, num_blocks, stride):
        layers = []
        for s in [stride] + [1] * (num_blocks - 1):
            layers.append(BasicBlock(self.in_planes, planes, s))
            self.in_planes = planes
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer1(out)
        out = self.layer2(out)
        out = self.layer3(out)
        out = F.avg_pool2d(out, out.shape[-1])
        out = out.view(out.size(0), -1)
        out = self.linear(out)
        return out


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "densenet",
    "DenseNet",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Bottleneck(nn.Module):
    def __init__(self, in_planes, growth):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, 4 * growth, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat([out, x], 1)


class Transition(nn.Module):
    def __init__(self, in_planes, out_planes):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_planes)
        self.conv = nn.Conv2d(in_planes, out_planes, kernel_size=1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    def __init__(self, growth=12, depth=3, num_classes=10):
        super().__init__()
        planes = 2 * growth
        self.conv1 = nn.Conv2d(3, planes, kernel_size=3, padding=1, bias=False)
        self.dense1, planes = self._dense(planes, growth, depth)
        self.trans1 = Transition(planes, planes // 2)
        planes = planes // 2
        self.dense2, planes = self._dense(planes, growth, depth)
        self.bn = nn.BatchNorm2d(planes)
        self.linear = nn.Linear(planes, num_classes)

    def _dense(self, planes, growth, depth):
        layers = []
        for _ in range(depth):
            layers.append(Bottleneck(planes, growth))
            planes += growth
        return nn.Sequential(*layers), planes

    def forward(self, x):
        out = self.conv1(x)
        out = self.trans1(self.dense1(out))
        out = self.dense2(out)
        out = F.relu(self.bn(out))
        out = F.adaptive_avg_pool2d(out, (1, 1)).flatten(1)
        return self.linear(out)


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "unet",
    "UNet",
    "pixels",
    '''
import torch
import torch.nn as nn
import torch.nn.functional as F


class DoubleConv(nn.Module):
    """(convolution => [BN] => ReLU) * 2"""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        x = torch.cat([x2, x1], dim=1)
        return self.conv(x)


class UNet(nn.Module):
    def __init__(self, n_channels=3, n_classes=2):
        super().__init__()
        self.inc = DoubleConv(n_channels, 16)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(32, 64))
        self.up1 = Up(64, 32)
        self.up2 = Up(32, 16)
        self.outc = nn.Conv2d(16, n_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        logits = self.outc(x)
        return logits


example_inputs = (torch.randn(4, 3, 32, 32),)
''',
)

_add(
    "mobilenet",
    "MobileNetV2",
    "classes",
    """
import torch
from torch import nn
from torch.nn import functional as F


class ConvBNReLU(nn.Sequential):
    def __init__(self, in_planes, out_planes, kernel_size=3, stride=1, groups=1):
        padding = (kernel_size - 1) // 2
        super(ConvBNReLU, self).__init__(
            nn.Conv2d(in_planes, out_planes, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio):
        super(InvertedResidual, self).__init__()
        hidden = int(round(inp * expand_ratio))
        self.use_res_connect = stride == 1 and inp == oup
        layers = []
        if expand_ratio != 1:
            layers.append(ConvBNReLU(inp, hidden, kernel_size=1))
        layers.extend([
            ConvBNReLU(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, oup, 1, 1, 0, bias=False),
            nn.BatchNorm2d(oup),
        ])
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, num_classes=10):
        super(MobileNetV2, self).__init__()
        setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
        channel = 16
        features = [ConvBNReLU(3, channel, stride=1)]
        for t, c, n, s in setting:
            for i in range(n):
                features.append(InvertedResidual(channel, c, s if i == 0 else 1, expand_ratio=t))
                channel = c
        features.append(ConvBNReLU(channel, 128, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(128, num_classes),
        )

    def forward(self, x):
        x = self.features(x)
        x = x.mean([2, 3])
        x = self.classifier(x)
        return x


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "convnext",
    "ConvNeXt",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, dim, layer_scale=1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(layer_scale * torch.ones(dim))

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.pwconv2(x)
        x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return shortcut + x


class ConvNeXt(nn.Module):
    def __init__(self, in_chans=3, num_classes=10, dims=(24, 48)):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, dims[0], kernel_size=4, stride=4)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            self.stages.append(nn.Sequential(Block(dim), Block(dim)))
            if i + 1 < len(dims):
                self.stages.append(nn.Conv2d(dim, dims[i + 1], kernel_size=2, stride=2))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = self.norm(x.mean([-2, -1]))
        return self.head(x)


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "lstm_classifier",
    "SentimentLSTM",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class SentimentLSTM(nn.Module):
    def __init__(self, vocab_size=100, embedding_dim=32, hidden_dim=48, n_layers=2, output_size=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, n_layers, dropout=0.3, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(hidden_dim, output_size)

    def forward(self, x):
        embeds = self.embedding(x)
        lstm_out, (h, c) = self.lstm(embeds)
        last = lstm_out[:, -1, :]
        out = self.dropout(last)
        out = self.fc(out)
        return out


example_inputs = (torch.randint(0, 100, (4, 12)),)
""",
    sequence=True,
)

_add(
    "gru_forecaster",
    "Forecaster",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Forecaster(nn.Module):
    def __init__(self, features=7, hidden=32, horizon=3):
        super().__init__()
        self.inp = nn.Linear(features, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * hidden)
        self.mlp = nn.Sequential(
            nn.Linear(2 * hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, horizon),
        )

    def forward(self, x):
        x = torch.relu(self.inp(x))
        x, _ = self.rnn(x)
        x = self.norm(x)
        x = x.mean(dim=1)
        return self.mlp(x)


example_inputs = (torch.randn(4, 15, 7),)
""",
    sequence=True,
)

_add(
    "bert_encoder",
    "TextEncoder",
    "classes",
    """
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, dropout=0.1, max_len=50):
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        x = x + self.pe[:, : x.size(1)]
        return self.dropout(x)


class TextEncoder(nn.Module):
    def __init__(self, ntoken=100, d_model=32, nhead=2, d_hid=64, nlayers=2, n_classes=6):
        super().__init__()
        self.embed = nn.Embedding(ntoken, d_model)
        self.pos = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, d_hid, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, nlayers, enable_nested_tensor=False)
        self.fc = nn.Linear(d_model, n_classes)

    def forward(self, src):
        x = self.embed(src) * math.sqrt(32)
        x = self.pos(x)
        x = self.encoder(x)
        x = x.mean(dim=1)
        return self.fc(x)


example_inputs = (torch.randint(0, 100, (4, 10)),)
""",
    sequence=True,
)

_add(
    "gpt",
    "GPT",
    "tokens",
    """
import math

import torch
import torch.nn as nn
from torch.nn import functional as F


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(0.1)
        mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
        self.register_buffer("bias", mask)
        self.n_head = n_head

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


class Block(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, block_size)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.ModuleDict(dict(
            c_fc=nn.Linear(n_embd, 4 * n_embd),
            act=nn.GELU(),
            c_proj=nn.Linear(4 * n_embd, n_embd),
            dropout=nn.Dropout(0.1),
        ))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        m = self.mlp
        h = m.dropout(m.c_proj(m.act(m.c_fc(self.ln_2(x)))))
        return x + h


class GPT(nn.Module):
    def __init__(self, vocab_size=65, block_size=16, n_embd=32, n_head=2, n_layer=2):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList([Block(n_embd, n_head, block_size) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(pos))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        return self.lm_head(x)


example_inputs = (torch.randint(0, 65, (4, 16)),)
""",
    causal=True,
    sequence=True,
)

_add(
    "llama",
    "Llama",
    "tokens",
    """
import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q = self.wq(x).view(b, t, self.heads, -1).transpose(1, 2)
        k = self.wk(x).view(b, t, self.heads, -1).transpose(1, 2)
        v = self.wv(x).view(b, t, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).reshape(b, t, d)
        return self.wo(out)


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attention = Attention(dim, heads)
        self.feed_forward = FeedForward(dim, 2 * dim)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)

    def forward(self, x):
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(nn.Module):
    def __init__(self, vocab=80, dim=32, heads=2, n_layers=2, max_len=32):
        super().__init__()
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(0.02 * torch.randn(1, max_len, dim))
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(n_layers))
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens):
        h = self.tok(tokens) + self.pos[:, : tokens.shape[1]]
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h)
        return self.output(h)


example_inputs = (torch.randint(0, 80, (4, 12)),)
""",
    causal=True,
    sequence=True,
)

_add(
    "vit",
    "ViT",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, dropout=0.1):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=3, dim_head=16):
        super().__init__()
        inner_dim = dim_head * heads
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, inner_dim * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(0.1))

    def forward(self, x):
        b, n, _ = x.shape
        x = self.norm(x)
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in qkv)
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        attn = self.attend(dots)
        out = torch.matmul(attn, v)
        out = out.transpose(1, 2).reshape(b, n, -1)
        return self.to_out(out)


class ViT(nn.Module):
    def __init__(self, image=32, patch=8, num_classes=10, dim=48, depth=2, mlp_dim=96):
        super().__init__()
        n = (image // patch) ** 2
        self.patch = patch
        self.to_patch = nn.Linear(3 * patch * patch, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, n + 1, dim) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([
                Attention(dim),
                FeedForward(dim, mlp_dim),
            ]))
        self.norm = nn.LayerNorm(dim)
        self.mlp_head = nn.Linear(dim, num_classes)

    def forward(self, img):
        p = self.patch
        b, c, h, w = img.shape
        x = img.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
        x = self.to_patch(x)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = x + self.pos_embedding
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        x = self.norm(x)
        return self.mlp_head(x[:, 0])


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "dcgan_generator",
    "Generator",
    "other",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F

nz, ngf, nc = 64, 16, 3


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


class Generator(nn.Module):
    def __init__(self):
        super(Generator, self).__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.apply(weights_init)

    def forward(self, input):
        return self.main(input)


example_inputs = (torch.randn(4, 64, 1, 1),)
""",
)

_add(
    "gan_discriminator",
    "Discriminator",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


def discriminator_block(in_filters, out_filters, bn=True):
    block = [nn.Conv2d(in_filters, out_filters, 3, 2, 1, bias=not bn)]
    if bn:
        block.append(nn.BatchNorm2d(out_filters))
    block.append(nn.LeakyReLU(0.2, inplace=True))
    block.append(nn.Dropout2d(0.25))
    return block


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            *discriminator_block(1, 16, bn=False),
            *discriminator_block(16, 32),
            *discriminator_block(32, 64),
        )
        self.adv_layer = nn.Linear(64 * 4 * 4, 1)

    def forward(self, img):
        out = self.model(img)
        out = out.view(out.shape[0], -1)
        validity = self.adv_layer(out)
        return validity


example_inputs = (torch.randn(4, 1, 32, 32),)
""",
)

_add(
    "vae",
    "VAE",
    "other",
    """
import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self, d_in=196, d_hidden=100, d_z=10):
        super(VAE, self).__init__()
        self.fc1 = nn.Linear(d_in, d_hidden)
        self.fc21 = nn.Linear(d_hidden, d_z)
        self.fc22 = nn.Linear(d_hidden, d_z)
        self.fc3 = nn.Linear(d_z, d_hidden)
        self.fc4 = nn.Linear(d_hidden, d_in)

    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def reparameterize(self, mu, logvar):
        if not self.training:
            return mu
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def decode(self, z):
        h3 = F.relu(self.fc3(z))
        return torch.sigmoid(self.fc4(h3))

    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 196))
        z = self.reparameterize(mu, logvar)
        return self.decode(z), mu, logvar


example_inputs = (torch.rand(4, 1, 14, 14),)
""",
)

_add(
    "conv_autoencoder",
    "ConvAutoencoder",
    "other",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, code=24):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, code),
        )

    def forward(self, x):
        return self.net(x)


class Decoder(nn.Module):
    def __init__(self, code=24):
        super().__init__()
        self.fc = nn.Linear(code, 32 * 7 * 7)
        self.deconv1 = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1)
        self.deconv2 = nn.ConvTranspose2d(16, 1, 3, stride=2, padding=1, output_padding=1)

    def forward(self, z):
        h = F.relu(self.fc(z))
        h = h.view(-1, 32, 7, 7)
        h = F.relu(self.deconv1(h))
        return torch.sigmoid(self.deconv2(h))


class ConvAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()

    def forward(self, x):
        return self.decoder(self.encoder(x))


example_inputs = (torch.rand(4, 1, 28, 28),)
""",
)

_add(
    "siamese",
    "SiameseNet",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 5)
        self.c2 = nn.Conv2d(16, 32, 5)
        self.fc = nn.Linear(32 * 4 * 4, 64)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = torch.flatten(x, start_dim=1)
        return torch.tanh(self.fc(x))


class SiameseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = Embedder()
        self.out = nn.Linear(64, 1)

    def forward(self, first, second):
        a = self.embed(first)
        b = self.embed(second)
        distance = torch.abs(a - b)
        return self.out(distance)


example_inputs = (torch.randn(4, 1, 28, 28), torch.randn(4, 1, 28, 28))
""",
)

_add(
    "gcn",
    "GCN",
    "classes",
    '''
import torch
import torch.nn as nn
import torch.nn.functional as F


class GraphConv(nn.Module):
    """Batched dense graph convolution: D^-1 (A + I) X W."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x, adj):
        adj = adj + torch.eye(adj.size(-1), device=adj.device)
        support = torch.matmul(x, self.weight)
        out = torch.bmm(adj, support) / adj.sum(-1, keepdim=True)
        return out + self.bias


class GCN(nn.Module):
    def __init__(self, nfeat=9, nhid=32, nclass=3, dropout=0.3):
        super().__init__()
        self.gc1 = GraphConv(nfeat, nhid)
        self.gc2 = GraphConv(nhid, nhid)
        self.readout = nn.Linear(nhid, nclass)
        self.dropout = dropout

    def forward(self, x, adj):
        x = F.relu(self.gc1(x, adj))
        x = F.dropout(x, self.dropout, training=self.training)
        x = F.relu(self.gc2(x, adj))
        x = x.max(dim=1).values
        return self.readout(x)


example_inputs = (torch.randn(4, 11, 9), (torch.rand(4, 11, 11) > 0.6).float())
''',
)

_add(
    "wavenet",
    "WaveNet",
    "tokens",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class CausalConv1d(nn.Conv1d):
    def __init__(self, in_channels, out_channels, kernel_size, dilation=1):
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        self.left = (kernel_size - 1) * dilation

    def forward(self, x):
        return super().forward(F.pad(x, (self.left, 0)))


class ResidualLayer(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.filter = CausalConv1d(channels, channels, 2, dilation)
        self.gate = CausalConv1d(channels, channels, 2, dilation)
        self.res = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        z = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return x + self.res(z), self.skip(z)


class WaveNet(nn.Module):
    def __init__(self, classes=64, channels=24, layers=4):
        super().__init__()
        self.embed = nn.Embedding(classes, channels)
        self.front = CausalConv1d(channels, channels, 2)
        self.blocks = nn.ModuleList([ResidualLayer(channels, 2 ** i) for i in range(layers - 1)])
        self.last = CausalConv1d(channels, channels, 2)
        self.end1 = nn.Conv1d(channels, channels, 1)
        self.end2 = nn.Conv1d(channels, classes, 1)

    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        x = self.front(x)
        skips = 0
        for block in self.blocks:
            x, skip = block(x)
            skips = skips + skip
        skips = skips + self.last(x)
        x = F.relu(skips)
        x = F.relu(self.end1(x))
        return self.end2(x).transpose(1, 2)


example_inputs = (torch.randint(0, 64, (4, 24)),)
""",
    causal=True,
    sequence=True,
)

_add(
    "seq2seq",
    "Seq2Seq",
    "tokens",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, vocab, emb, hid):
        super().__init__()
        self.embedding = nn.Embedding(vocab, emb)
        self.rnn = nn.GRU(emb, hid, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, src):
        return self.rnn(self.dropout(self.embedding(src)))


class Attention(nn.Module):
    def __init__(self, hid):
        super().__init__()
        self.attn = nn.Linear(2 * hid, hid)
        self.v = nn.Linear(hid, 1, bias=False)

    def forward(self, hidden, outputs):
        hidden = hidden.unsqueeze(1).expand(-1, outputs.shape[1], -1)
        energy = torch.tanh(self.attn(torch.cat((hidden, outputs), dim=2)))
        return F.softmax(self.v(energy).squeeze(2), dim=1)


class Decoder(nn.Module):
    def __init__(self, vocab, emb, hid):
        super().__init__()
        self.embedding = nn.Embedding(vocab, emb)
        self.attention = Attention(hid)
        self.rnn = nn.GRUCell(emb + hid, hid)
        self.fc_out = nn.Linear(2 * hid, vocab)

    def forward(self, token, hidden, outputs):
        a = self.attention(hidden, outputs).unsqueeze(1)
        context = torch.bmm(a, outputs).squeeze(1)
        hidden = self.rnn(torch.cat((self.embedding(token), context), dim=1), hidden)
        logits = self.fc_out(torch.cat((hidden, context), dim=1))
        return logits, hidden


class Seq2Seq(nn.Module):
    def __init__(self, source=50, target=60, emb=16, hid=24):
        super().__init__()
        self.encoder = Encoder(source, emb, hid)
        self.decoder = Decoder(target, emb, hid)

    def forward(self, src, trg):
        outputs, hidden = self.encoder(src)
        hidden = hidden[-1]
        logits = []
        for t in range(trg.shape[1]):
            step, hidden = self.decoder(trg[:, t], hidden, outputs)
            logits.append(step)
        return torch.stack(logits, dim=1)


example_inputs = (torch.randint(0, 50, (4, 9)), torch.randint(0, 60, (4, 6)))
""",
    causal=True,
    sequence=True,
)

_add(
    "mixer",
    "MLPMixer",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class PreNormResidual(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.fn(self.norm(x)) + x


def FeedForward(dim, hidden, dense):
    return nn.Sequential(
        dense(dim, hidden, 1) if dense is nn.Conv1d else dense(dim, hidden),
        nn.GELU(),
        nn.Dropout(0.1),
        dense(hidden, dim, 1) if dense is nn.Conv1d else dense(hidden, dim),
        nn.Dropout(0.1),
    )


class MLPMixer(nn.Module):
    def __init__(self, channels=3, patch=8, patches=16, dim=40, depth=2, classes=10):
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.blocks = nn.Sequential(*[
            nn.Sequential(
                PreNormResidual(dim, FeedForward(patches, 2 * patches, nn.Conv1d)),
                PreNormResidual(dim, FeedForward(dim, 2 * dim, nn.Linear)),
            )
            for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.blocks(x)
        x = self.norm(x)
        x = x.mean(dim=1)
        return self.head(x)


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "detector",
    "SSDHead",
    "other",
    '''
import torch
import torch.nn as nn
import torch.nn.functional as F


class Conv(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class SSDHead(nn.Module):
    """Two scales, each with a class and a box branch."""

    def __init__(self, num_classes=5, anchors=3):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(Conv(3, 16, s=2), Conv(16, 32, s=2))
        self.down = Conv(32, 64, s=2)
        self.lateral = nn.Conv2d(64, 32, 1)
        self.smooth = Conv(32, 32)
        self.cls_heads = nn.ModuleList([nn.Conv2d(c, anchors * num_classes, 3, padding=1) for c in (32, 64)])
        self.box_heads = nn.ModuleList([nn.Conv2d(c, anchors * 4, 3, padding=1) for c in (32, 64)])

    def forward(self, x):
        c3 = self.stem(x)
        c4 = self.down(c3)
        p3 = self.smooth(c3 + F.interpolate(self.lateral(c4), scale_factor=2))
        scores, boxes = [], []
        for feature, cls, box in zip([p3, c4], self.cls_heads, self.box_heads):
            scores.append(cls(feature).permute(0, 2, 3, 1).reshape(feature.size(0), -1, self.num_classes))
            boxes.append(box(feature).permute(0, 2, 3, 1).reshape(feature.size(0), -1, 4))
        return torch.cat(scores, 1), torch.cat(boxes, 1)


example_inputs = (torch.randn(4, 3, 32, 32),)
''',
)

_add(
    "actor_critic",
    "ActorCritic",
    "other",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


def layer_init(layer, std=2 ** 0.5, bias_const=0.0):
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, bias_const)
    return layer


class ActorCritic(nn.Module):
    def __init__(self, obs=8, actions=6):
        super().__init__()
        self.critic = nn.Sequential(
            layer_init(nn.Linear(obs, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 1), std=1.0),
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(obs, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, actions), std=0.01),
        )

    def forward(self, x):
        return self.actor(x), self.critic(x)


example_inputs = (torch.randn(4, 8),)
""",
)

_add(
    "dueling_dqn",
    "DuelingDQN",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class DuelingDQN(nn.Module):
    def __init__(self, in_channels=2, n_actions=6):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 8, stride=4)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=4, stride=2)
        self.conv3 = nn.Conv2d(32, 32, kernel_size=3, stride=1)
        self.value1 = nn.Linear(32 * 4 * 4, 64)
        self.value2 = nn.Linear(64, 1)
        self.advantage1 = nn.Linear(32 * 4 * 4, 64)
        self.advantage2 = nn.Linear(64, n_actions)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = x.reshape(x.size(0), -1)
        value = self.value2(F.relu(self.value1(x)))
        advantage = self.advantage2(F.relu(self.advantage1(x)))
        return value + advantage - advantage.mean(dim=1, keepdim=True)


example_inputs = (torch.randn(4, 2, 60, 60),)
""",
)

_add(
    "text_cnn",
    "TextCNN",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class TextCNN(nn.Module):
    def __init__(self, vocab=120, dim=32, kernels=(3, 4, 5), channels=20, classes=3):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.convs = nn.ModuleList([nn.Conv2d(1, channels, (k, dim)) for k in kernels])
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(len(kernels) * channels, classes)

    def forward(self, x):
        x = self.embed(x).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        x = [F.max_pool1d(line, line.size(2)).squeeze(2) for line in x]
        x = torch.cat(x, 1)
        x = self.dropout(x)
        return self.fc1(x)


example_inputs = (torch.randint(0, 120, (4, 14)),)
""",
)

_add(
    "audio_cnn",
    "M5",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class M5(nn.Module):
    def __init__(self, n_input=1, n_output=12, stride=8, n_channel=16):
        super().__init__()
        self.conv1 = nn.Conv1d(n_input, n_channel, kernel_size=40, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm1d(n_channel)
        self.pool1 = nn.MaxPool1d(3)
        self.conv2 = nn.Conv1d(n_channel, n_channel, kernel_size=3, bias=False)
        self.bn2 = nn.BatchNorm1d(n_channel)
        self.pool2 = nn.MaxPool1d(3)
        self.conv3 = nn.Conv1d(n_channel, 2 * n_channel, kernel_size=3, bias=False)
        self.bn3 = nn.BatchNorm1d(2 * n_channel)
        self.fc1 = nn.Linear(2 * n_channel, n_output)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn1(x))
        x = self.pool1(x)
        x = self.conv2(x)
        x = F.relu(self.bn2(x))
        x = self.pool2(x)
        x = self.conv3(x)
        x = F.relu(self.bn3(x))
        x = F.avg_pool1d(x, x.shape[-1])
        x = x.flatten(1)
        return self.fc1(x)


example_inputs = (torch.randn(4, 1, 800),)
""",
)

_add(
    "wide_deep",
    "WideAndDeep",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class WideAndDeep(nn.Module):
    def __init__(self, users=40, items=50, dim=16, dense=5):
        super().__init__()
        self.tables = nn.ModuleDict({
            "user": nn.Embedding(users, dim),
            "item": nn.Embedding(items, dim),
        })
        self.wide = nn.Linear(dense, 1)
        self.deep = nn.Sequential(
            nn.Linear(2 * dim + dense, 64),
            nn.ReLU(),
            nn.Dropout(p=0.2),
            nn.Linear(64, 32),
            nn.ReLU(),
        )
        self.final = nn.Linear(32, 1)

    def forward(self, user, item, dense):
        u = self.tables["user"](user)
        i = self.tables["item"](item)
        features = torch.cat((u, i, dense), dim=-1)
        deep = self.deep(features)
        score = self.final(deep) + self.wide(dense)
        return score


example_inputs = (torch.randint(0, 40, (4,)), torch.randint(0, 50, (4,)), torch.randn(4, 5))
""",
)

_add(
    "pointnet",
    "PointNet",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class PointNet(nn.Module):
    def __init__(self, k=8):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(3, 32, 1, bias=False)
        self.conv2 = torch.nn.Conv1d(32, 64, 1, bias=False)
        self.conv3 = torch.nn.Conv1d(64, 128, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(32)
        self.bn2 = nn.BatchNorm1d(64)
        self.bn3 = nn.BatchNorm1d(128)
        self.fc1 = nn.Linear(128, 64, bias=False)
        self.bn4 = nn.BatchNorm1d(64)
        self.dropout = nn.Dropout(p=0.3)
        self.fc2 = nn.Linear(64, k)

    def forward(self, points):
        x = points.transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = torch.max(x, 2, keepdim=True)[0]
        x = x.view(-1, 128)
        x = F.relu(self.bn4(self.fc1(x)))
        x = self.fc2(self.dropout(x))
        return x


example_inputs = (torch.randn(4, 30, 3),)
""",
)

_add(
    "squeeze_excite",
    "SENet",
    "classes",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super(SELayer, self).__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(4, c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(4, c_out),
            SELayer(c_out),
        )
        self.down = nn.Conv2d(c_in, c_out, 1, stride=stride)

    def forward(self, x):
        return F.relu(self.body(x) + self.down(x))


class SENet(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = SEBlock(16, 32, 2)
        self.block2 = SEBlock(32, 64, 2)
        self.classifier = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.block1(x)
        x = self.block2(x)
        x = x.mean(dim=(2, 3))
        return self.classifier(x)


example_inputs = (torch.randn(4, 3, 32, 32),)
""",
)

_add(
    "char_rnn",
    "CharRNN",
    "tokens",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class CharRNN(nn.Module):
    def __init__(self, vocab=60, hidden=40, layers=2):
        super().__init__()
        self.encoder = nn.Embedding(vocab, hidden)
        self.rnn = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.decoder = nn.Linear(hidden, vocab)

    def forward(self, tokens):
        x = self.encoder(tokens)
        out, _ = self.rnn(x)
        out = self.drop(out)
        return self.decoder(out)


example_inputs = (torch.randint(0, 60, (4, 13)),)
""",
    causal=True,
    sequence=True,
)

_add(
    "time_series_decoder",
    "DecoderOnly",
    "regression",
    """
import torch
import torch.nn as nn
import torch.nn.functional as F


class DecoderOnly(nn.Module):
    def __init__(self, features=5, dim=32, heads=2, depth=2, max_len=40):
        super().__init__()
        self.proj = nn.Linear(features, dim)
        self.position = nn.Parameter(torch.randn(1, max_len, dim) * 0.02)
        self.attn = nn.ModuleList([nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(depth)])
        self.norm1 = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.norm2 = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.ff = nn.ModuleList()
        for _ in range(depth):
            self.ff.append(nn.Sequential(
                nn.Linear(dim, 2 * dim),
                nn.ReLU(),
                nn.Linear(2 * dim, dim),
            ))
        self.head = nn.Linear(dim, 1)

    def forward(self, series):
        length = series.size(1)
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        h = self.proj(series) + self.position[:, :length]
        for attn, n1, n2, ff in zip(self.attn, self.norm1, self.norm2, self.ff):
            q = n1(h)
            a, _ = attn(q, q, q, attn_mask=mask, need_weights=False)
            h = h + a
            h = h + ff(n2(h))
        return self.head(h)


example_inputs = (torch.randn(4, 14, 5),)
""",
    causal=True,
    sequence=True,
)

_add(
    "transformer_nmt",
    "Translator",
    "tokens",
    """
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Translator(nn.Module):
    def __init__(self, src_vocab=50, tgt_vocab=55, d_model=32):
        super().__init__()
        self.src_embed = nn.Embedding(src_vocab, d_model)
        self.tgt_embed = nn.Embedding(tgt_vocab, d_model)
        self.src_pos = nn.Parameter(torch.randn(1, 30, d_model) * 0.02)
        self.tgt_pos = nn.Parameter(torch.randn(1, 30, d_model) * 0.02)
        self.transformer = nn.Transformer(
            d_model=d_model, nhead=2, num_encoder_layers=1, num_decoder_layers=2,
            dim_feedforward=64, dropout=0.1, batch_first=True,
        )
        self.generator = nn.Linear(d_model, tgt_vocab)

    def forward(self, src, tgt):
        s = self.src_embed(src) * math.sqrt(32) + self.src_pos[:, : src.size(1)]
        t = self.tgt_embed(tgt) * math.sqrt(32) + self.tgt_pos[:, : tgt.size(1)]
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        out = self.transformer(s, t, tgt_mask=mask)
        return self.generator(out)


example_inputs = (torch.randint(0, 50, (4, 9)), torch.randint(0, 55, (4, 7)))
""",
    causal=True,
    sequence=True,
)
