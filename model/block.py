"""One layer of one level: token shift and attention, token shift and feed-forward, and what they keep to generate."""

from collections import OrderedDict
from math import pi

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attend import Attend
from model.config import LevelConfig, ModelConfig

XPOS_SCALE_BASE = 512  # distance over which xpos fades by one power of its per-channel scale


class Cache(dict):
    """State after `length` bytes of each row of a batch: each module keeps its own. The first pass is ordinary, and
    leaves it behind. Each later one brings one byte, at which a level computes only when its stride comes round: in
    between, its last output stands in. `position` is the length, or a tensor (1) of it, read where it lies."""

    length: int = 0
    position: int | Tensor = 0


def after_past(t: Tensor, reach: int, cache: Cache | None, key) -> Tensor:
    """Tokens t (b n d) behind the `reach` tokens before them, zeros before the first one: (b reach+n d)."""
    past = cache.get(key) if cache is not None else None
    t = F.pad(t, (0, 0, reach, 0)) if past is None else torch.cat((past, t), dim=1)
    if cache is not None:
        cache[key] = t[:, t.shape[1] - reach :]
    return t


def token_shift(x: Tensor, chains: int, cache: Cache | None = None, key=None) -> Tensor:
    """The second half of x's channels (b n d) from the token before in the same chain (RWKV, arXiv 2305.13048)."""
    here, before = x.chunk(2, dim=-1)
    return torch.cat((here, after_past(before, chains, cache, key)[:, : x.shape[1]]), dim=-1)


class Block(nn.Module):
    """One layer of one level over x (b n d) -> (b n d), pre-norm and residual, with attention or without."""

    def __init__(self, level: LevelConfig, config: ModelConfig, attends: bool):
        super().__init__()
        self.chains, inner = level.chains, max(1, int(level.dim * level.ff_mult))
        self.attn = Attention(level, config.use_flash_attn, config.qk_norm) if attends else None
        up, down = nn.Linear(level.dim, inner, bias=False), nn.Linear(inner, level.dim, bias=False)
        self.ff = nn.Sequential(OrderedDict(norm=nn.RMSNorm(level.dim), to_hidden=up, gelu=nn.GELU(), to_out=down))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor, cache: Cache | None = None) -> Tensor:
        if self.attn is not None:
            x = x + self.dropout(self.attn(token_shift(x, self.chains, cache, (self, "attn")), rotary, cache))
        return x + self.dropout(self.ff(token_shift(x, self.chains, cache, (self, "ff"))))


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions over x (b n d) -> (b n d). Where the stride is below the
    compression it is axial: tokens of the same residue modulo c/s form a chain, and chains do not see one another."""

    def __init__(self, level: LevelConfig, use_flash_attn: bool, qk_norm: bool):
        super().__init__()
        self.heads, self.kv_heads, self.window, self.chains = level.heads, level.kv_heads, level.window, level.chains
        self.stride, turned = level.stride, level.heads + level.kv_heads
        self.norm = nn.RMSNorm(level.dim)
        self.to_qkv = nn.Linear(level.dim, (turned + level.kv_heads) * level.dim_head, bias=False)
        self.qk_gain = nn.Parameter(torch.ones(turned, 1, level.dim_head)) if qk_norm else None
        self.attend = Attend(causal=True, use_flash_attn=use_flash_attn, window_size=level.window)
        self.to_out = nn.Linear(level.heads * level.dim_head, level.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, cache: Cache | None = None) -> Tensor:
        qkv = rearrange(self.to_qkv(self.norm(x)), "b n (h d) -> b h n d", h=self.heads + 2 * self.kv_heads)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.qk_gain is not None:
            qk = (F.rms_norm(qk.float(), qk.shape[-1:]) * self.qk_gain).type_as(qk)
        q, k = rotate(qk, rotary).split((self.heads, self.kv_heads), dim=1)
        if cache is not None and self in cache:
            ring = cache[self][cache.length // self.stride % self.chains]
            age = cache.position // self.stride // self.chains
            out = self.attend(q, *append(ring, torch.stack((k, v)), age))
        else:
            out = self.attend_chains(q, k, v)
            if cache is not None:
                cache[self] = rings_of(torch.stack((k, v)), self.window, self.chains)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))

    def attend_chains(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within each chain: q, k, v (b h n d) -> (b h n d)."""
        if self.chains == 1:
            return self.attend(q, k, v)
        n = q.shape[-2]
        padded = (F.pad(t, (0, 0, 0, -n % self.chains)) for t in (q, k, v))
        q, k, v = (rearrange(t, "b h (n chain) d -> (b chain) h n d", chain=self.chains) for t in padded)
        return rearrange(self.attend(q, k, v), "(b chain) h n d -> b h (n chain) d", chain=self.chains)[:, :, :n]


def rings_of(kv: Tensor, window: int, chains: int) -> tuple[Tensor, ...]:
    """Rotated keys and values of the last `window` outputs of each chain, out of all n so far (2 b h n d): for each a
    ring (2 b h window d) with output k in slot ⌊k/chains⌋ modulo the window, because their order does not matter."""
    kept = torch.arange(kv.shape[-2], device=kv.device)[-window * chains :]
    rings = kv.new_zeros(*kv.shape[:3], chains, window, kv.shape[-1])
    rings[..., kept % chains, kept // chains % window, :] = kv[..., kept, :]
    return tuple(ring.contiguous() for ring in rings.unbind(dim=3))


def append(ring: Tensor, kv: Tensor, age: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keep an output (2 b h 1 d), of this age in its chain; returns keys, values (b h j d) and which it sees (1 j)."""
    if isinstance(age, Tensor):
        ring.index_copy_(-2, age % ring.shape[-2], kv)
        return *ring, torch.arange(ring.shape[-2], device=kv.device) <= age[:, None]
    ring[..., age % ring.shape[-2], :] = kv[..., 0, :]
    return *ring[..., : age + 1, :], None


class Rotary(nn.Module):
    """Turns pairs of channels, (i, i + d/2), by angles that grow with position (RoPE, arXiv 2104.09864).

    Serves the heads of queries and those of keys together, queries first. With `xpos` queries are also scaled up and
    keys down with position, so that scores fade with distance (arXiv 2212.10554). Only differences of positions count.
    """

    def __init__(self, heads: int, kv_heads: int, dim_head: int, xpos: bool = False, theta: float = 10_000.0):
        super().__init__()
        self.xpos, pair = xpos, torch.arange(0, dim_head, 2, dtype=torch.float32).repeat(2)
        turn = torch.tensor([[0.0, 0.0], [pi / 2, -pi / 2]]).repeat_interleave(dim_head // 2, dim=1)
        power = torch.tensor([1.0] * heads + [-1.0] * kv_heads) / XPOS_SCALE_BASE
        self.register_buffer("freqs", theta ** (-pair / dim_head), persistent=False)
        self.register_buffer("turn", rearrange(turn, "t d -> t 1 1 d"), persistent=False)
        self.register_buffer("scale", (pair + 0.4 * dim_head) / (1.4 * dim_head), persistent=False)
        self.register_buffer("power", rearrange(power, "h -> h 1 1"), persistent=False)

    def forward(self, positions: Tensor, origin: int = 0) -> Tensor:
        """Factors of t and of its swapped halves at `positions` (n): (2 1 n d), or (2 heads n d) with xpos, whose scale
        is one at `origin`. Cosines, and -sines and sines, a quarter turn away."""
        positions = rearrange(positions, "n -> n 1")
        wide = torch.float32 if positions.device.type == "mps" else torch.float64  # for long texts; MPS has none
        table = (positions * self.freqs.to(wide) + self.turn).cos().to(self.freqs)
        return table * self.scale ** (self.power * (positions - origin)) if self.xpos else table


def rotate(t: Tensor, table: Tensor) -> Tensor:
    """Turn t (b h n d) by a table of `Rotary`, in the dtype of t."""
    cos, sin = table.to(t.dtype)
    return torch.addcmul(t * cos, t.roll(t.shape[-1] // 2, dims=-1), sin)
