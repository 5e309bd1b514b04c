"""Building blocks: convolutional stem and decoder, token encoder, lead projection, calibration, residual.

B batch, T samples, C channels, N tokens, D width. Shapes are stated per class. Normalisation is per sample
(GroupNorm, LayerNorm): batch composition never changes a result.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.leads import DOWER
from ecggen.models import so3
from ecggen.models.layout import Conv1d, GroupNorm, added, doubled, halved, in_pieces, innermost
from ecggen.models.slots import SLOTS

GAUSSIAN_90 = 1.645  # standard deviations either side that hold 90 % of a Gaussian


def small_start(layer: nn.Module, std: float) -> None:
    """Start a last layer near zero, its bias at zero."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    nn.init.normal_(weight, std=std)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def kernel_of(level: int) -> int:
    """Samples that a convolution sees after so many halvings: 7, 5, then 3, which span more time each."""
    return max(3, 7 - 2 * level)


class ConvBlock(nn.Module):
    """[B, in, T] -> [B, out, T]: `layers` convolutions with GroupNorm and GELU, residual where it can be."""

    def __init__(self, inside: int, outside: int, layers: int = 2, kernel: int = 7) -> None:
        super().__init__()
        sizes = [inside] + [outside] * layers
        self.layers = nn.ModuleList(
            nn.Sequential(Conv1d(a, b, kernel, padding=kernel // 2, bias=False), GroupNorm(8, b), nn.GELU())
            for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """shift [B, out]: added after the first convolution, as constant channels of x would add it."""
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            convolution, norm, nonlinear = layer
            y = convolution(x)
            if shift is not None:
                y, shift = added(y, shift[..., None]), None
            y = nonlinear(norm(y))
            x = added(y, x) if x.shape == y.shape else y
        return x


class ConvStem(nn.Module):
    """[B, in, T] and what is known of the whole, [B, known] -> one feature map per level: [B, channels[i],
    T / 2**i]."""

    def __init__(self, inside: int, channels: list[int], known: int) -> None:
        super().__init__()
        self.width = channels[0]
        before = [inside, *channels[:-1]]
        self.levels = nn.ModuleList(
            ConvBlock(a, b, kernel=kernel_of(level))
            for level, (a, b) in enumerate(zip(before, channels, strict=True))
        )
        self.known = nn.Linear(known, channels[0], bias=False)

    def forward(self, x: Tensor, known: Tensor) -> list[Tensor]:
        return list(in_pieces(self.maps, self.width * x.shape[2], x, known))

    def maps(self, x: Tensor, known: Tensor) -> tuple[Tensor, ...]:
        """`forward` of a whole batch at once."""
        shift: Tensor | None = self.known(known)
        maps, x = [], innermost(x)
        for index, level in enumerate(self.levels):
            x = level(halved(x) if index else x, shift)
            shift = None
            maps.append(x)
        return tuple(maps)


class LocalDecoder(nn.Module):
    """Deep features [B, channels[-1], T / 2**(n-1)] and the stem's maps -> [B, channels[0], T].

    Every level is scaled and shifted by the state's code.
    """

    def __init__(self, channels: list[int], code: int) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(
            Conv1d(deep, shallow, 1) for shallow, deep in itertools.pairwise(channels)
        )
        self.blocks = nn.ModuleList(
            ConvBlock(c, c, layers=2 if level else 1, kernel=kernel_of(level))
            for level, c in enumerate(channels)
        )
        self.modulate = nn.ModuleList(nn.Linear(code, 2 * c) for c in channels)
        for layer in self.modulate:
            small_start(layer, 0.02)

    def forward(self, deep: Tensor, maps: list[Tensor], code: Tensor) -> Tensor:
        shallow = maps[0]
        return in_pieces(self.features, shallow.shape[1] * shallow.shape[2], deep, code, *maps)[0]

    def features(self, deep: Tensor, code: Tensor, *maps: Tensor) -> tuple[Tensor]:
        """`forward` of a whole batch at once."""
        x = innermost(deep)
        for level in reversed(range(len(self.blocks))):
            x = x + maps[level]
            scale, shift = self.modulate[level](code)[..., None].chunk(2, 1)
            x = self.blocks[level](x * (1 + scale) + shift)
            if level:
                x = doubled(self.narrow[level - 1](x))
        return (x,)


class TokenEncoder(nn.Module):
    """Bidirectional Transformer over beat tokens.

    Knows which slots are observed and remembered (`leads`, [B, known]), every token's start and duration in
    seconds, and the state's code, which stands as one more token. Invalid tokens are never attended to. No
    causal mask, no recurrence.
    """

    def __init__(
        self, inside: int, known: int, width: int, depth: int, heads: int, code: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inside, width)
        self.place = nn.Sequential(nn.Linear(2 * 8, width), nn.GELU(), nn.Linear(width, width))
        self.leads = nn.Linear(known, width)
        self.state = nn.Linear(code, width) if depth else None
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False) if depth else None
        self.norm = nn.LayerNorm(width)

    @staticmethod
    def _waves(seconds: Tensor) -> Tensor:
        frequency = 2.0 ** torch.arange(-3, 1, device=seconds.device, dtype=seconds.dtype)
        angle = 2 * torch.pi * seconds[..., None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)

    def forward(
        self, patches: Tensor, start_s: Tensor, duration_s: Tensor, valid: Tensor, leads: Tensor, code: Tensor
    ) -> Tensor:
        """Tokens [B, N, D] from patches [B, N, inside].

        start_s and duration_s [B, N] in seconds, valid [B, N] bool, leads [B, known], code [B, code].
        """
        batch, count = patches.shape[:2]
        assert start_s.shape == duration_s.shape == valid.shape == (batch, count), (
            start_s.shape,
            valid.shape,
        )
        place = torch.cat([self._waves(start_s), self._waves(duration_s)], -1)
        x = self.embed(patches) + self.place(place) + self.leads(leads)[:, None]
        if self.layers is None or self.state is None:
            return self.norm(x) * valid[..., None]
        x = torch.cat([self.state(code)[:, None], x], 1)
        hidden = torch.cat([torch.zeros_like(valid[:, :1]), ~valid], 1)
        x = self.layers(x, src_key_padding_mask=hidden)
        return self.norm(x[:, 1:]) * valid[..., None]


class AngleCalib(nn.Module):
    """Per-record rotation and gains of the lead field, both bounded.

    field [B, 8, 3], omega [B, 3] radians, log_gain [B, 8] -> [B, 8, 3]: diag(gain) field R(omega).
    """

    max_angle = 0.7  # radians, about 40 degrees
    max_log_gain = 0.7  # a factor of two

    def forward(self, field: Tensor, omega: Tensor, log_gain: Tensor) -> Tensor:
        angle, log_gain = self.bounded(omega, log_gain)
        return log_gain.exp()[..., None] * (field @ so3.exp(angle))

    def bounded(self, omega: Tensor, log_gain: Tensor) -> tuple[Tensor, Tensor]:
        """Rotation vector and logarithms of the gains within their bounds."""
        return (
            self.max_angle * torch.tanh(omega / self.max_angle),
            self.max_log_gain * torch.tanh(log_gain / self.max_log_gain),
        )


class LeadProjection(nn.Module):
    """The lead field: the eight independent leads from the dipole, starting at Dower's coefficients.

    The population's field is learned; a patient's deviation comes from the state.
    """

    def __init__(self, angle: bool = True) -> None:
        super().__init__()
        self.field = nn.Parameter(torch.tensor(DOWER, dtype=torch.float32))
        self.calib = AngleCalib() if angle else None

    def patient_field(self, deviation: Tensor, omega: Tensor, log_gain: Tensor) -> Tensor:
        """The patient's lead field [B, 8, 3]."""
        assert deviation.shape[1:] == (SLOTS, 3), deviation.shape
        field = self.field + deviation
        return self.calib(field, omega, log_gain) if self.calib is not None else field

    def forward(self, vcg: Tensor, field: Tensor) -> Tensor:
        """VCG [B, 3, T] through field [B, 8, 3] -> [B, 8, T], in the VCG's unit."""
        assert vcg.shape[1] == 3 and field.shape[1:] == (SLOTS, 3), (vcg.shape, field.shape)
        return field @ vcg


class ResidualHead(nn.Module):
    """What three dimensions cannot carry, starting near zero: [B, 8, T].

    A gated share of what W remembers of the leads beyond the lifted dipole, plus a pointwise reading of the
    local features.
    """

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Conv1d(channels, channels, 1), nn.GELU(), Conv1d(channels, SLOTS, 1))
        small_start(self.net[2], 1e-3)
        self.gate = nn.Linear(known, SLOTS)
        small_start(self.gate, 0.02)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, linear: Tensor, known: Tensor) -> Tensor:
        """features [B, C, T], linear [B, 8, T], known [B, known]: what decides how far to trust `linear`."""
        gate = torch.sigmoid(self.gate(known))
        return gate[..., None] * linear + self.net(features)


class SpreadHead(nn.Module):
    """How far off a rendering may be: log standard deviation of every lead at every sample, [B, 8, T].

    It reads the local features and what is known, and teaches them nothing: the rendering is the same with
    and without it.
    """

    low, high = -6.0, 2.0

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.features = Conv1d(channels, channels, 1)
        self.known = nn.Linear(known, channels, bias=False)
        self.out = Conv1d(channels, SLOTS, 1)
        small_start(self.out, 0.02)
        nn.init.constant_(self.out.bias, -1.0)  # type: ignore[arg-type]

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """features [B, C, T], known [B, known]; relative to the RMS of what was observed."""
        hidden = self.features(features.detach()) + self.known(known.detach())[..., None]
        return self.out(F.gelu(hidden)).clamp(self.low, self.high)
