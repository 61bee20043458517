#!/usr/bin/env python3
"""The peer as most people write it: the benchmark model in plain PyTorch modules, trained in fp32 or under bf16 autocast,
with --compile through torch.compile. Attention and optimizer are the fused ones where this PyTorch has them for CPUs.

    dev/bench/bench_pytorch_eager.py --mode bf16 --serve     one step per line `step` on stdin, answered with its milliseconds

dev/bench/bench_pytorch.py is the same model with hand-written backward passes and a flat optimizer; its environment (allocator,
OpenMP, BLAS) is used here as well, so the difference between the two is the formulation alone.
"""

import math
import sys
import time

from pytorch_peer import describe, parse_arguments, prepare_environment

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__)
    prepare_environment(ARGUMENTS)

import torch  # noqa: E402 (after the environment is right)
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


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
        if hasattr(F, "scaled_dot_product_attention"):
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

    def forward(self, inputs, targets):
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, self.mask)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def main():
    a = ARGUMENTS
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = Model(a)
    fused = {"fused": True} if hasattr(F, "scaled_dot_product_attention") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    forward = torch.compile(model) if a.compile else model
    inputs, targets = torch.randint(a.vocabulary, (2, a.batch, a.sequence))

    def step():
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=a.mode == "bf16"):
            loss = forward(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return (time.perf_counter() - start) * 1e3

    print(describe(torch), flush=True)
    for _ in range(a.warmup):
        step()
    if not a.serve:
        for _ in range(a.steps):
            print(f"{step():.2f} ms", flush=True)
        return
    for line in sys.stdin:
        if line.strip() != "step":
            break
        print(f"{step():.4f}", flush=True)


if __name__ == "__main__":
    main()
