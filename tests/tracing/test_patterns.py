"""One small net per structural pattern: slicing is exact, and the pattern is prunable where it can be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from eagleeye_hf import slice_model, trace_model
from tests.helpers import random_keep, randomise, silence

PATTERNS: dict[str, tuple[type[nn.Module], set[str]]] = {}


def pattern(*prunable: str):
    """Register a net with the layers whose channels must be prunable."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        PATTERNS[cls.__name__] = cls, set(prunable)
        return cls

    return register


def conv(inputs: int, outputs: int, size: int = 3, **kwargs) -> nn.Sequential:
    kwargs.setdefault("padding", size // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, **kwargs), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """A stem, the pattern under test (`middle`), and a head."""

    inner = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.build()
        self.head = nn.Linear(self.inner, 5)

    def build(self) -> None:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


@pattern("stem.0", "a.0")
class ChannelShuffle(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(shuffle(x, 4))


@pattern("stem.0", "a.0", "b.0")
class GroupedShuffle(Net):
    def build(self):
        self.a, self.b = conv(16, 32, 1, groups=4), conv(32, 16, 1, groups=4)

    def middle(self, x):
        return self.b(shuffle(self.a(x), 4))


@pattern("stem.0", "a.0")
class NativeShuffle(Net):
    def build(self):
        self.shuffle, self.a = nn.ChannelShuffle(2), conv(16, 16)

    def middle(self, x):
        return self.a(self.shuffle(x))


@pattern("stem.0", "a.0", "b.0")
class EqualChunks(Net):
    def build(self):
        self.a, self.b = conv(8, 12), conv(20, 16)

    def middle(self, x):
        left, right = x.chunk(2, dim=1)
        return self.b(torch.cat([right, self.a(left)], 1))


@pattern("stem.0", "a.0", "b.0")
class UnequalSplit(Net):
    def build(self):
        self.sizes = (4, 12)
        self.a, self.b = conv(4, 6), conv(18, 16)

    def middle(self, x):
        left, right = torch.split(x, self.sizes, dim=1)
        return self.b(torch.cat([self.a(left), right], 1))


@pattern("stem.0", "a.0", "b.0", "c.0")
class ConcatReused(Net):
    def build(self):
        self.a, self.b, self.c = conv(16, 8), conv(24, 8), conv(48, 16)

    def middle(self, x):
        a = self.a(x)
        b = self.b(torch.cat([a, x], 1))
        return self.c(torch.cat([b, x, a, x], 1))


@pattern("stem.0", "a.0")
class FrontSlice(Net):
    def build(self):
        self.width = 10
        self.a = conv(10, 16)

    def middle(self, x):
        return self.a(x[:, : self.width])


@pattern("stem.0", "a.0")
class HalfSlices(Net):
    def build(self):
        self.a = conv(8, 16)

    def middle(self, x):
        c = x.shape[1] // 2
        return self.a(x[:, :c] * x[:, c:])


@pattern("stem.0", "a.0")
class StridedSlice(Net):
    def build(self):
        self.a = conv(8, 16)

    def middle(self, x):
        return self.a(x[:, ::2] + x[:, 1::2])


@pattern("a.0")
class ConstantIndex(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x) * x[:, 3:4] + x[:, 5].unsqueeze(1)


@pattern("a.0")
class FixedSlice(Net):
    def build(self):
        self.a = conv(6, 16)

    def middle(self, x):
        return self.a(x[:, 2:8])


@pattern("stem.0", "a.0")
class PixelShuffle(Net):
    inner = 4

    def build(self):
        self.a, self.up = conv(16, 16), nn.PixelShuffle(2)

    def middle(self, x):
        return self.up(self.a(x))


@pattern("stem.0", "a.0")
class PixelUnshuffle(Net):
    def build(self):
        self.down, self.a = nn.PixelUnshuffle(2), conv(64, 16)

    def middle(self, x):
        return self.a(self.down(x))


@pattern("stem.0", "a.0")
class SpaceToDepthViews(Net):
    def build(self):
        self.a = conv(64, 16)

    def middle(self, x):
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return self.a(x.reshape(n, c * 4, h // 2, w // 2))


@pattern("stem.0", "a.0")
class SpaceToDepthSlices(Net):
    def build(self):
        self.a = conv(64, 16)

    def middle(self, x):
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.a(torch.cat(parts, 1))


@pattern("stem.0", "b.0")
class DepthwiseMultiplier(Net):
    def build(self):
        self.a, self.b = conv(16, 48, groups=16), conv(48, 16, 1)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "a.0", "b.0", "c.0")
class GroupedAfterGrouped(Net):
    def build(self):
        self.a, self.b, self.c = conv(16, 32, groups=4), conv(32, 32, groups=8), conv(32, 16, groups=2)

    def middle(self, x):
        return self.c(self.b(self.a(x)))


@pattern("stem.0", "a.0")
class ManySmallGroups(Net):
    def build(self):
        self.a, self.b = conv(16, 32, groups=8), conv(32, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "a", "b.0")
class Transposed(Net):
    def build(self):
        self.a, self.b = nn.ConvTranspose2d(16, 12, 2, 2), conv(12, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "b.0")
class TransposedDepthwise(Net):
    def build(self):
        self.a, self.b = nn.ConvTranspose2d(16, 16, 2, 2, groups=16), conv(16, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "b.0")
class TransposedGrouped(Net):
    def build(self):
        self.a, self.b = nn.ConvTranspose2d(16, 24, 2, 2, groups=4), conv(24, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "fc1", "a.0")
class SqueezeExcite(Net):
    def build(self):
        self.fc1, self.fc2, self.a = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), conv(16, 16)

    def middle(self, x):
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return self.a(x * gate.sigmoid())


@pattern("a.0")
class EfficientChannelAttention(Net):
    def build(self):
        self.k, self.a = nn.Conv1d(1, 1, 3, padding=1), conv(16, 16)

    def middle(self, x):
        y = self.k(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
        return self.a(x * y.sigmoid())


@pattern("fc1", "a.0")
class Cbam(Net):
    def build(self):
        self.fc1, self.fc2 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.spatial, self.a = nn.Conv2d(2, 1, 7, padding=3), conv(16, 16)

    def middle(self, x):
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))) + self.fc2(
            F.relu(self.fc1(x.amax((2, 3), True)))
        )
        x = x * gate.sigmoid()
        x = x * self.spatial(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid()
        return self.a(x)


@pattern("stem.0", "a.0")
class GlobalContext(Net):
    def build(self):
        self.mask, self.t, self.a = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 16, 1), conv(16, 16)

    def middle(self, x):
        b, c, h, w = x.shape
        attention = self.mask(x).reshape(b, 1, h * w).softmax(-1).unsqueeze(3)
        context = (x.reshape(b, c, h * w).unsqueeze(1) @ attention).view(b, c, 1, 1)
        return self.a(x + self.t(context))


@pattern("stem.0", "a.0", "b.0", "fc.0", "c.0")
class SelectiveKernel(Net):
    def build(self):
        self.a, self.b, self.fc, self.out = conv(16, 16), conv(16, 16), conv(16, 8, 1), nn.Conv2d(8, 32, 1)
        self.c = conv(16, 16)

    def middle(self, x):
        paths = torch.stack([self.a(x), self.b(x)], 1)
        gates = self.out(self.fc(paths.sum(1).mean((2, 3), keepdim=True)))
        b, c, h, w = gates.shape
        gates = gates.view(b, 2, c // 2, h, w).softmax(1)
        return self.c((paths * gates).sum(1))


@pattern("stem.0", "a.0")
class SplitAttention(Net):
    def build(self):
        self.a, self.fc, self.b = conv(16, 32, groups=2), nn.Conv2d(16, 32, 1), conv(16, 16)

    def middle(self, x):
        x = self.a(x)
        b, rc, h, w = x.shape
        x = x.reshape(b, 2, rc // 2, h, w)
        gate = self.fc(x.sum(1).mean((2, 3), keepdim=True)).view(b, 1, 2, -1).transpose(1, 2).softmax(1)
        return self.b((x * gate.reshape(b, -1, 1, 1).reshape(b, 2, rc // 2, 1, 1)).sum(1))


@pattern("stem.0", "a.0", "b.0")
class LayerScaleAndResidual(Net):
    def build(self):
        self.gamma, self.a, self.b = nn.Parameter(torch.ones(16, 1, 1)), conv(16, 24), conv(24, 16)

    def middle(self, x):
        return x + self.gamma * self.b(self.a(x))


@pattern("stem.0", "a.0")
class BroadcastGate(Net):
    def build(self):
        self.gate, self.a = nn.Conv2d(16, 1, 1), conv(16, 16)

    def middle(self, x):
        return self.a(x * self.gate(x).sigmoid() + x.mean((2, 3), keepdim=True))


@pattern("stem.0", "a.0", "b.0")
class GatedLinearUnit(Net):
    def build(self):
        self.a, self.b = conv(16, 32), conv(16, 16)

    def middle(self, x):
        return self.b(F.glu(self.a(x), 1))


@pattern("a")
class WeightStandardised(Net):
    class Conv(nn.Conv2d):
        def forward(self, x):
            weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
            return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)

    def build(self):
        self.a = self.Conv(16, 24, 3)
        self.b = conv(24, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("a", "b.0")
class WeightNormed(Net):
    def build(self):
        self.a, self.b = parametrizations.weight_norm(nn.Conv2d(16, 24, 3)), conv(24, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("b.0")
class SpectralNormed(Net):
    def build(self):
        self.a, self.b = parametrizations.spectral_norm(nn.Conv2d(16, 24, 3)), conv(24, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "b.0")
class SharedConv(Net):
    def build(self):
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), conv(16, 16)

    def middle(self, x):
        return self.b(self.a(F.relu(self.a(x))))


@pattern("stem.0", "a.0", "fc")
class FlattenToLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a = conv(3, 16), conv(16, 8, stride=4)
        self.fc, self.head = nn.Linear(8 * 16, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.head(F.relu(self.fc(self.a(self.stem(x)).flatten(1))))


@pattern("stem.0", "fc1", "a.0")
class ChannelsLastLinear(Net):
    def build(self):
        self.fc1, self.fc2, self.a = nn.Linear(16, 32), nn.Linear(32, 16), conv(16, 16)

    def middle(self, x):
        y = self.fc2(F.gelu(self.fc1(x.permute(0, 2, 3, 1))))
        return self.a(x + y.permute(0, 3, 1, 2))


@pattern("stem.0", "a.0")
class InstanceNorm(Net):
    def build(self):
        self.norm, self.a = nn.InstanceNorm2d(16, affine=True), conv(16, 16)

    def middle(self, x):
        return self.a(self.norm(x))


@pattern("stem.0", "a.0")
class Prelu(Net):
    def build(self):
        self.act, self.a = nn.PReLU(16), conv(16, 16)

    def middle(self, x):
        return self.a(self.act(x))


@pattern("stem.0", "a.0")
class RepeatAndInterleave(Net):
    def build(self):
        self.a = conv(64, 16)

    def middle(self, x):
        return self.a(torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, dim=1)], 1))


@pattern("a.0")
class SoftmaxOverChannels(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x.softmax(1))


@pattern("a.0")
class LayerNormOverChannels(Net):
    def build(self):
        self.norm, self.a = nn.LayerNorm(16), conv(16, 16)

    def middle(self, x):
        return self.a(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pattern("a.0")
class GroupNormed(Net):
    def build(self):
        self.norm, self.a = nn.GroupNorm(4, 16), conv(16, 16)

    def middle(self, x):
        return self.a(self.norm(x))


@pattern("a.0")
class NormalisedOverChannels(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(F.normalize(x, dim=1))


@pattern("stem.0", "a.0")
class BackSlice(Net):
    def build(self):
        self.width = 10
        self.a = conv(10, 16)

    def middle(self, x):
        return self.a(x[:, -self.width :])


@pattern("stem.0", "a.0")
class EffectiveSqueezeExcite(Net):
    def build(self):
        self.fc, self.a = nn.Conv2d(16, 16, 1), conv(16, 16)

    def middle(self, x):
        return self.a(x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True))))


@pattern("stem.0", "a", "b.0")
class SwishGate(Net):
    def build(self):
        self.a, self.b = nn.Conv2d(16, 48, 1), conv(24, 16)

    def middle(self, x):
        gate, value = self.a(x).chunk(2, 1)
        return self.b(F.silu(gate) * value)


@pattern("stem.0", "b.0")
class MixedKernels(Net):
    def build(self):
        self.splits = [6, 5, 5]
        self.parts = nn.ModuleList(conv(n, n, k, groups=n) for n, k in zip(self.splits, (3, 5, 7), strict=True))
        self.b = conv(16, 16, 1)

    def middle(self, x):
        pieces = torch.split(x, self.splits, 1)
        return self.b(torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], 1))


@pattern("stem.0", "b.0")
class TruncatedGhost(Net):
    def build(self):
        self.out_chs = 15
        self.a, self.cheap, self.b = conv(16, 8), conv(8, 8, groups=8), conv(15, 16)

    def middle(self, x):
        x = self.a(x)
        return self.b(torch.cat([x, self.cheap(x)], 1)[:, : self.out_chs])


@pattern("stem.0", "a.0", "c.0")
class HierarchicalSplit(Net):
    def build(self):
        self.width = 6
        self.a, self.c = conv(16, 24), conv(24, 16)
        self.parts = nn.ModuleList(conv(6, 6) for _ in range(3))

    def middle(self, x):
        pieces = torch.split(self.a(x), self.width, 1)
        outputs = [pieces[0]]
        for part, piece in zip(self.parts, pieces[1:], strict=True):
            outputs.append(part(piece + outputs[-1]))
        return self.c(torch.cat(outputs, 1))


@pattern("stem.0", "a.0", "b.0", "c.0")
class CrossStage(Net):
    def build(self):
        self.a, self.b, self.c = conv(16, 24), conv(12, 12), conv(24, 16)

    def middle(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.c(torch.cat([left, right + self.b(right)], 1))


@pattern("stem.0", "a.0")
class BlurPool(Net):
    class Blur(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            row = torch.tensor([1.0, 2.0, 1.0]) / 4
            self.register_buffer("filt", (row[:, None] * row).repeat(channels, 1, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filt, stride=2, groups=self.channels)

    def build(self):
        self.blur, self.a = self.Blur(16), conv(16, 16)

    def middle(self, x):
        return self.a(self.blur(x))


@pattern("a", "b.0")
class ScaledStandardised(Net):
    class Conv(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, 3, padding=1)
            self.gain = nn.Parameter(torch.full((outputs, 1, 1, 1), 0.7))
            self.scale = (inputs * 9) ** -0.5

        def forward(self, x: Tensor) -> Tensor:
            weight = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1),
                None,
                None,
                weight=(self.gain * self.scale).view(-1),
                training=True,
            )
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)

    def build(self):
        self.a, self.b = self.Conv(16, 24), conv(24, 16)

    def middle(self, x):
        return self.b(self.a(x))


@pattern("stem.0", "a.0")
class RescaledShuffles(Net):
    """Split, shuffled and joined again, as ShuffleNet's units are."""

    def build(self):
        self.a, self.b, self.c = conv(8, 8), conv(8, 8), conv(16, 16)

    def middle(self, x):
        for block in (self.a, self.b):
            left, right = x.chunk(2, 1)
            x = shuffle(torch.cat([left, block(right)], 1), 2)
        return self.c(x)


@pattern("stem.0", "a.0")
class ZeroPaddedShortcut(Net):
    inner = 24

    def build(self):
        self.pad_front, self.pad_back = 3, 5
        self.a = conv(16, 24)

    def middle(self, x):
        return self.a(x) + F.pad(x, (0, 0, 0, 0, self.pad_front, self.pad_back))


@pattern("stem.0", "a.0")
class ConstantShortcut(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x) + torch.ones_like(x)


@pattern("stem.0", "a.0", "b.0")
class ScalarGain(Net):
    def build(self):
        self.gain, self.a, self.b = nn.Parameter(torch.tensor(0.5)), conv(16, 24), conv(24, 16)
        self.register_buffer("scale", torch.tensor(2.0))

    def middle(self, x):
        return x * self.scale + self.gain * self.b(self.a(x))


@pattern("a.0")
class PartialActivation(Net):
    """What is left of the first channels is not the first of what is left."""

    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(torch.cat([x[:, :4].sigmoid(), x[:, 4:]], 1))


@pattern("a.0")
class TemporalShift(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        fold, out = x.shape[1] // 4, torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.a(out)


@pattern("a.0")
class UnevenHalves(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        c = x.shape[1]
        left, right = torch.split(x, [c // 2, c - c // 2], 1)
        return self.a(torch.cat([left.sigmoid(), right], 1))


@pattern("a.0")
class ConstantMask(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        mask = torch.zeros(1, x.shape[1], 1, 1, dtype=x.dtype, device=x.device)
        mask[:, :3] = 1
        return self.a(x * mask)


@pattern()
class RolledWhole(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x.roll(37))


@pattern("stem.0")
class PooledSequence(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return F.avg_pool2d(self.a(x).flatten(2), 2).unsqueeze(-1).repeat(1, 2, 1, 1)


@pattern("stem.0")
class DividedByWidth(Net):
    """The head is linear, so that nothing takes the factor out."""

    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x) / len(self.a[0].weight)


@pattern("stem.0")
class ScaledByTensorOfWidth(Net):
    def build(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(x) * torch.tensor(1.0 / len(self.a[0].weight))


class Resize(nn.Module):
    height = width = 16

    def forward(self, x):
        return F.interpolate(x, (self.height, self.width))


@pattern("a.0")
class PixelsNamedAsChannels(Net):
    """An attribute that equals the number of channels by chance."""

    def build(self):
        self.a, self.resize = conv(16, 24), Resize()
        self.resize.width = self.resize.height = 16

    inner = 24

    def middle(self, x):
        return self.a(self.resize(F.max_pool2d(x, 2)))


def check(model: nn.Module, images: Tensor) -> dict:
    model = randomise(model.eval()).double()
    graph = trace_model(model, tuple(images.shape[1:]))
    groups = {group.name: group for group in graph.groups}
    for seed, ratio in ((0, 0.5), (1, None), (2, None)):
        keep = random_keep(graph, seed, ratio)
        with torch.inference_mode():
            expected = silence(model, graph, keep)(images)
            result = slice_model(model, graph, keep)(images)
        assert float((result - expected).abs().max() / expected.abs().max()) < 1e-9
    return groups


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name):
    torch.manual_seed(0)
    cls, wanted = PATTERNS[name]
    groups = check(cls(), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    pinned = {layer: groups[layer].reason for layer in wanted if layer in groups and groups[layer].reason}
    assert not pinned  # a layer that is no group of its own is tied to one that is
    assert all(group.reason for group in groups.values() if not group.prunable)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
        "densenet121",
        "regnet_y_400mf",
        "efficientnet_b0",
        "vgg11_bn",
        "googlenet",
        "inception_v3",
        "resnext50_32x4d",
    ],
)
def test_torchvision(name):
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    pixels = 96 if name == "inception_v3" else 64
    model = torchvision.models.get_model(name, **options)
    groups = check(model, torch.randn(1, 3, pixels, pixels, dtype=torch.float64))
    assert sum(group.prunable for group in groups.values()) > 0.8 * len(groups)
