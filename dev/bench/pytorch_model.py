"""The benchmark model in plain PyTorch modules, and its fake quantization: one definition for all peers.

Imports torch, so only after pytorch_peer.prepare_environment.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

FUSED_ATTENTION = hasattr(F, "scaled_dot_product_attention")  # PyTorch 2


class FakeQuantize(torch.autograd.Function):
    """LSQ (3 bits and more), stretched elastic (1.58 and 2) or sign (1) with one learned scale per row."""

    @staticmethod
    def forward(ctx, weight, scale, bits):
        r = weight / scale
        if bits == 1:
            level, inside = torch.where(r >= 0, 1.0, -1.0), r.abs() <= 1
        else:
            shift = 0.5 if bits == 2 else 0.0
            half = {1.58: 1.5, 2: 2.0}.get(bits)
            low, high = (-0.99 * half, 0.99 * half) if half else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
            clamped = r.clamp(low, high)
            inside = clamped == r
            level = clamped.sub_(shift).round_().add_(shift)
        ctx.save_for_backward(r, level, inside)
        ctx.binary = bits == 1
        ctx.factor = 1 / math.sqrt(weight.numel() * (2 ** (bits - 1) - 1 if bits >= 3 else 1))
        return level * scale

    @staticmethod
    def backward(ctx, gradient):
        r, level, inside = ctx.saved_tensors
        gradient = gradient.float()
        d_weight = gradient * inside
        d_scale = (gradient * level).sum(-1, keepdim=True)
        if not ctx.binary:
            d_scale -= (d_weight * r).sum(-1, keepdim=True)
        return d_weight, d_scale.mul_(ctx.factor), None


def initial_scale(weight, bits):
    """(rows, 1): the scale of each row from its weights, before any step."""
    magnitude = weight.detach().abs()
    divisor = {1.58: 1.5, 2: 2.0}.get(bits, 2.0 ** (bits - 1) - 1)
    return magnitude.mean(-1, True) if bits == 1 else magnitude.amax(-1, True) / divisor


class QuantizedWeight(nn.Module):
    """A parametrization: the weight as every use of it reads it."""

    def __init__(self, weight, bits):
        super().__init__()
        self.bits, self.scale = bits, nn.Parameter(initial_scale(weight, bits))

    def forward(self, weight):
        return FakeQuantize.apply(weight, self.scale, self.bits)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.heads, self.dim = a.heads, a.width // a.heads
        self.qkv = nn.Linear(a.width, 3 * a.width, bias=False)
        self.out = nn.Linear(a.width, a.width, bias=False)

    def forward(self, x, cos, sin, mask):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        q, k = (t * cos + torch.cat((-t[..., self.dim // 2 :], t[..., : self.dim // 2]), -1) * sin for t in (q, k))
        if FUSED_ATTENTION:
            y = F.scaled_dot_product_attention(q.type_as(v), k.type_as(v), v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.dim) + mask
            y = torch.softmax(scores, -1) @ v
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(a.width), RMSNorm(a.width)
        self.attention = Attention(a)
        self.gate = nn.Linear(a.width, a.ffn, bias=False)
        self.up = nn.Linear(a.width, a.ffn, bias=False)
        self.down = nn.Linear(a.ffn, a.width, bias=False)

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(self.norm1(x), cos, sin, mask)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """forward(inputs, targets), both (B, T): the mean cross entropy. a: the arguments of pytorch_peer."""

    def __init__(self, a):
        super().__init__()
        self.embedding = nn.Embedding(a.vocabulary, a.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = RMSNorm(a.width)
        dim = a.width // a.heads
        angles = torch.arange(a.sequence)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1))
        self.register_buffer("sin", torch.cat((angles.sin(), angles.sin()), -1))
        self.register_buffer("mask", torch.full((a.sequence, a.sequence), -math.inf).triu(1))
        if a.qat:
            self.quantize(a.qat)

    def quantize(self, bits):
        """Every matrix through fake quantization; the embedding, read twice a step, at 4 bits at least."""
        for module in list(self.modules()):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                own = max(bits, 4) if module is self.embedding else bits
                parametrize.register_parametrization(module, "weight", QuantizedWeight(module.weight, own))

    def forward(self, inputs, targets):
        embedding = self.embedding.weight
        x = F.embedding(inputs, embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        logits = F.linear(self.norm(x), embedding)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
