#!/usr/bin/env python3
"""The peer benchmark: train_qat's model trained by PyTorch on the CPU, as fast as PyTorch 1.13 lets it.

    dev/bench/bench_pytorch.py --mode bf16 --steps 10            one JSON line per timed step: {"mode", "ms", "tokens_per_s"}
    dev/bench/bench_pytorch.py --mode fp32 --serve               runs one step per line `step` on stdin, until `quit`

--serve lets a driver alternate steps of this program and of another one, so that both see the same machine. The first
line printed says which PyTorch, BLAS and formulation were measured. A step is: forward, backward, gradient clipping,
AdamW, and with --qat the fake quantization of every matrix.

What makes it fast, each measured against the plain formulation: query, key and value in one matmul, gate and up in
another; attention by baddbmm, softmax and bmm with a ready causal mask (blocks of queries that skip the masked half
gain 1%: not worth their code); RMSNorm, RoPE and SwiGLU as autograd functions
with hand-written backward passes (eager PyTorch otherwise makes a pass over memory for each of their operations);
AdamW over one flat vector of all parameters; and glibc told to keep freed memory, because fresh pages halve the speed.
In bf16 the weights are bfloat16 copies of fp32 masters; --bf16 autocast lets PyTorch cast them and is as fast.
"""

import json
import math
import os
import sys
import time

from pytorch_peer import loaded_blas, parse_arguments, prepare_environment

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__)
    prepare_environment(ARGUMENTS)

import torch  # noqa: E402 (after the environment is right)
import torch.nn.functional as F  # noqa: E402

from pytorch_model import FakeQuantize, initial_scale  # noqa: E402


# ---- operations with hand-written backward passes -----------------------------------------------------------------


class RMSNorm(torch.autograd.Function):
    """y = x * rstd * weight in float32; `dtype` of y."""

    @staticmethod
    def forward(ctx, x, weight, epsilon, dtype):
        rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * rstd
        ctx.save_for_backward(normed, rstd, weight)
        return (normed * weight).to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        normed, rstd, weight = ctx.saved_tensors
        gradient = gradient.float()
        product = gradient * normed
        d_weight = product.sum(0)
        mean = (product @ weight).div_(weight.numel()).unsqueeze_(-1)
        return (gradient * weight).addcmul_(normed, mean, value=-1).mul_(rstd), d_weight, None, None


class RoPE(torch.autograd.Function):
    """Turns elements i and i + D/2 of x (B, T, heads, D) by the angle whose cos and sin are (T, 1, D/2)."""

    @staticmethod
    def turn(x, cos, sin, sign):
        first, second = x.chunk(2, dim=-1)
        y = torch.empty_like(x)
        y_first, y_second = y.chunk(2, dim=-1)
        torch.mul(first, cos, out=y_first).addcmul_(second, sin, value=-sign)
        torch.mul(second, cos, out=y_second).addcmul_(first, sin, value=sign)
        return y

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return RoPE.turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, gradient):
        return RoPE.turn(gradient, *ctx.saved_tensors, -1), None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of (M, 2F). Keeps sigmoid and silu: their exponentials are what costs."""

    @staticmethod
    def forward(ctx, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        ctx.save_for_backward(sigmoid, silu, up)
        return silu * up

    @staticmethod
    def backward(ctx, gradient):
        sigmoid, silu, up = ctx.saved_tensors
        result = gradient.new_empty(gradient.shape[0], 2 * gradient.shape[1])
        d_gate, d_up = result.chunk(2, dim=-1)
        torch.mul(silu, gradient, out=d_up)
        # silu' = sigmoid + silu (1 - sigmoid)
        slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
        torch.mul(slope.mul_(up), gradient, out=d_gate)
        return result


# ---- the model ----------------------------------------------------------------------------------------------------


class Model:
    """Parameters as views into one flat vector, so that clipping and AdamW are single operations on it."""

    def __init__(self, a):
        self.a, self.head_dim = a, a.width // a.heads
        self.autocast = a.mode == "bf16" and a.bf16 == "autocast"
        self.copies = a.mode == "bf16" and a.bf16 == "copies"
        self.dtype = torch.float32 if a.mode == "fp32" else torch.bfloat16
        qkv = (a.heads + 2 * a.kv_heads) * self.head_dim
        matrices = {"embedding": (a.vocabulary, a.width)}
        norms = {"norm": (a.width,)}
        for i in range(a.layers):
            matrices |= {f"qkv{i}": (qkv, a.width), f"out{i}": (a.width, a.heads * self.head_dim)}
            matrices |= {f"gate_up{i}": (2 * a.ffn, a.width), f"down{i}": (a.width, a.ffn)}
            norms |= {f"attention_norm{i}": (a.width,), f"feed_forward_norm{i}": (a.width,)}
        scales = {name: (shape[0], 1) for name, shape in matrices.items()} if a.qat else {}
        self.master = {}
        self._allocate(matrices, norms, {"scale_" + name: shape for name, shape in scales.items()})
        self._make_tables()
        if self.copies:
            self.weights = {n: self.master[n].detach().to(torch.bfloat16).requires_grad_() for n in matrices}

    def _allocate(self, matrices, norms, scales):
        shapes = matrices | norms | scales
        self.decayed = sum(math.prod(shape) for shape in matrices.values())
        self.flat = torch.zeros(sum(math.prod(shape) for shape in shapes.values()))
        self.flat_gradient = torch.zeros_like(self.flat)
        offset, self.matrix_names = 0, list(matrices)
        self.scales = self.flat[self.flat.numel() - sum(math.prod(shape) for shape in scales.values()) :]
        for name, shape in shapes.items():
            size = math.prod(shape)
            parameter = self.flat[offset : offset + size].view(shape)
            if name in matrices:
                parameter.normal_(std=0.02)
            elif name in norms:
                parameter.fill_(1)
            else:
                parameter.copy_(initial_scale(self.master[name.removeprefix("scale_")], self.a.qat))
            self.master[name] = parameter.detach().requires_grad_()
            self.master[name].grad = self.flat_gradient[offset : offset + size].view(shape)
            offset += size

    def _make_tables(self):
        a, half = self.a, self.head_dim // 2
        frequency = 10000.0 ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(a.sequence), frequency)
        self.cos, self.sin = (f(angle).view(a.sequence, 1, half).to(self.dtype) for f in (torch.cos, torch.sin))
        mask = torch.full((a.sequence, a.sequence), -math.inf).triu(1)
        self.mask = mask.to(self.dtype).unsqueeze(0)

    def used_weights(self):
        """The matrices as the matmuls of this step read them."""
        if not self.a.qat:
            return self.weights if self.copies else self.master
        used = {}
        for name in self.matrix_names:
            bits = max(self.a.qat, 4) if name == "embedding" else self.a.qat
            weight = FakeQuantize.apply(self.master[name], self.master["scale_" + name], bits)
            used[name] = weight.to(torch.bfloat16) if self.copies else weight
        return used

    def attention(self, x, weights, i):
        a, (B, T, D) = self.a, (self.a.batch, self.a.sequence, self.head_dim)
        qkv = F.linear(x, weights[f"qkv{i}"]).view(B, T, a.heads + 2 * a.kv_heads, D)
        rotated = RoPE.apply(qkv[:, :, : a.heads + a.kv_heads], self.cos, self.sin)
        query, key = rotated.split((a.heads, a.kv_heads), dim=2)
        value = qkv[:, :, a.heads + a.kv_heads :]
        if a.heads != a.kv_heads:
            key, value = (t.repeat_interleave(a.heads // a.kv_heads, dim=2) for t in (key, value))
        query, key, value = (t.transpose(1, 2).reshape(B * a.heads, T, D) for t in (query, key, value))
        score = torch.baddbmm(self.mask, query, key.transpose(1, 2), alpha=1 / math.sqrt(D))
        y = torch.bmm(score.softmax(-1), value)
        return F.linear(y.view(B, a.heads, T, D).transpose(1, 2).reshape(B * T, -1), weights[f"out{i}"])

    def loss(self, inputs, targets):
        weights, norms = self.used_weights(), self.master
        x = F.embedding(inputs.flatten(), weights["embedding"]).float()
        for i in range(self.a.layers):
            x = x + self.attention(RMSNorm.apply(x, norms[f"attention_norm{i}"], 1e-5, self.dtype), weights, i)
            h = RMSNorm.apply(x, norms[f"feed_forward_norm{i}"], 1e-5, self.dtype)
            x = x + F.linear(SwiGLU.apply(F.linear(h, weights[f"gate_up{i}"])), weights[f"down{i}"])
        logits = F.linear(RMSNorm.apply(x, norms["norm"], 1e-5, self.dtype), weights["embedding"])
        return F.cross_entropy(logits.float(), targets.flatten())


class Training:
    def __init__(self, arguments):
        self.a, self.model = arguments, Model(arguments)
        model = self.model
        decayed, rest = (torch.nn.Parameter(t) for t in model.flat.tensor_split([model.decayed]))
        decayed.grad, rest.grad = model.flat_gradient.tensor_split([model.decayed])
        self.optimizer = torch.optim.AdamW(
            [{"params": [decayed]}, {"params": [rest], "weight_decay": 0.0}],
            lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=False,
        )  # fmt: skip
        self.generator = torch.Generator().manual_seed(1)

    def step(self):
        """One optimizer step; returns its milliseconds and loss."""
        a, model = self.a, self.model
        tokens = torch.randint(a.vocabulary, (a.batch, a.sequence + 1), generator=self.generator)
        start = time.perf_counter()
        # Gradients of bfloat16 copies overwrite their part of the vector; all others are added to it.
        copies = model.copies and not a.qat
        model.flat_gradient[model.decayed if copies else 0 :].zero_()
        with torch.autocast("cpu", torch.bfloat16, enabled=model.autocast):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        if copies:
            for name, weight in model.weights.items():
                model.master[name].grad.copy_(weight.grad)
                weight.grad = None
        norm = model.flat_gradient.norm()
        model.flat_gradient.mul_((1.0 / norm).clamp_max(1.0))
        self.optimizer.step()
        model.scales.clamp_min_(1e-5)
        if copies:
            with torch.no_grad():
                for name, weight in model.weights.items():
                    weight.copy_(model.master[name])
        value = loss.item()
        return 1e3 * (time.perf_counter() - start), value


def report(arguments, training):
    milliseconds, loss = training.step()
    speed = arguments.batch * arguments.sequence / milliseconds * 1e3
    line = {"mode": arguments.mode, "ms": round(milliseconds, 2), "tokens_per_s": round(speed, 1)}
    print(json.dumps(line | {"loss": round(loss, 4)}), flush=True)


def serve(arguments, training):
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        if line.strip() != "step":
            sys.exit(f"bench_pytorch.py: error: {line.strip()!r} on stdin; expected `step` or `quit`")
        report(arguments, training)


def main(arguments):
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    blas = loaded_blas()
    fast = torch.backends.mkl.is_available() or any(name in os.path.realpath(blas) for name in ("openblas", "mkl", "blis"))
    if arguments.mode == "fp32" and not fast:
        sys.exit(
            f"bench_pytorch.py: error: PyTorch would use the reference BLAS ({blas}), an unfair peer in fp32: install "
            "libopenblas0-openmp or name the directory of its libblas.so.3 with --blas"
        )
    training = Training(arguments)
    print(json.dumps({
        "torch": torch.__version__, "threads": torch.get_num_threads(), "blas": os.path.realpath(blas),
        "bf16": arguments.bf16 if arguments.mode == "bf16" else None, "qat": arguments.qat,
        "parameters": training.model.flat.numel(),
    }), flush=True)  # fmt: skip
    for _ in range(arguments.warmup):
        training.step()
    if arguments.profile:
        with torch.profiler.profile() as profile:
            training.step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))
    elif arguments.serve:
        serve(arguments, training)
    else:
        for _ in range(arguments.steps):
            report(arguments, training)


if __name__ == "__main__":
    main(ARGUMENTS)
