"""The model, the fake quantization and the optimizer of train_qat, written again in PyTorch to be read and compared.

Everything runs in the dtype of the weights that it is given: float64 makes it a reference whose own rounding does not
count. Only the quantizer decides in float32 whatever that dtype is, because its rounding and clipping are steps: the
last bit of w/s can move a weight by a whole level.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

SMALLEST_SCALE = 1e-5
FLOAT16_MAXIMUM = 65504.0


# ---- fake quantization --------------------------------------------------------------------------------------------
# A grid maps r = w/s (float32) to the level that replaces it, to whether the straight-through estimator passes the
# gradient, and to dŵ/ds of the element (float64: from here on rounding is no decision any more).


def binary_grid(r):
    """ParetoQ, 1 bit: sign with sign(0) = +1; the scale's gradient is the sign itself, also inside."""
    level = torch.where(r >= 0, 1.0, -1.0)
    return level, r.abs() <= 1, level.double()


def elastic_grid(r, n, shift):
    """ParetoQ's stretched elastic quantization of w with alpha = n*s: levels centred on 0 whatever their number."""
    clip = float(np.float32(0.99) * np.float32(n))
    level = torch.round(r.clamp(-clip, clip) - shift) + shift
    inside = (r >= -clip) & (r <= clip)
    return level, inside, level.double() - torch.where(inside, r, 0.0).double()


def integer_grid(r, bits):
    """LSQ: the integers of two's complement."""
    lowest, highest = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    level = torch.round(r).clamp(lowest, highest)
    inside = (r >= lowest) & (r <= highest)
    return level, inside, level.double() - torch.where(inside, r, 0.0).double()


def grid(r, bits):
    if bits == 1:
        return binary_grid(r)
    if bits == 1.58:
        return elastic_grid(r, 1.5, 0.0)
    if bits == 2:
        return elastic_grid(r, 2.0, 0.5)
    return integer_grid(r, int(bits))


def positive_levels(bits):
    """Q_p of LSQ's gradient factor g = 1/sqrt(n Q_p)."""
    return 2 ** (int(bits) - 1) - 1 if bits >= 3 else 1


def effective_scale(scale):
    """The scale of the forward pass, float32: floored, then rounded to float16, which an export can store."""
    return scale.float().clamp(SMALLEST_SCALE, FLOAT16_MAXIMUM).to(torch.float16).float()


def initial_scale(weight, bits, groups):
    """(rows, groups): mean |w| for one bit, otherwise max |w| over the level that it shall reach."""
    size = weight.abs().reshape(weight.shape[0], groups, -1)
    if bits == 1:
        scale = size.mean(-1)
    else:
        scale = size.amax(-1) / {1.58: 1.5, 2: 2.0}.get(bits, 2.0 ** (int(bits) - 1) - 1)
    return scale.clamp_min(SMALLEST_SCALE)


class FakeQuantize(torch.autograd.Function):
    """ŵ = s * level(w/s) with the straight-through estimator for w and LSQ's gradient for s.

    weight: (rows, columns); scale: (rows, groups), the raw learned one, whose flooring and rounding the gradient
    passes straight.
    """

    @staticmethod
    def forward(ctx, weight, scale, bits):
        rows, groups = scale.shape
        s = effective_scale(scale).unsqueeze(-1)
        level, inside, scale_gradient = grid(weight.float().reshape(rows, groups, -1) / s, bits)
        ctx.save_for_backward(inside, scale_gradient)
        ctx.factor = 1 / math.sqrt(weight.numel() * positive_levels(bits))
        return (s.to(weight.dtype) * level.to(weight.dtype)).reshape(weight.shape)

    @staticmethod
    def backward(ctx, gradient):
        inside, scale_gradient = ctx.saved_tensors
        grouped = gradient.reshape(inside.shape)
        d_scale = ctx.factor * (grouped * scale_gradient.to(gradient.dtype)).sum(-1)
        return (grouped * inside).reshape(gradient.shape), d_scale, None


def fake_quantize(weights, scales, config):
    """The weights of the forward pass: every tensor that has a scale is quantized."""
    return {
        name: FakeQuantize.apply(weight, scales[name], config.weight_bits(name)) if name in scales else weight
        for name, weight in weights.items()
    }


# ---- the model ----------------------------------------------------------------------------------------------------


def rounding_to(dtype):
    """Rounds a value on the way forward and its gradient on the way back: stands for storing both in `dtype`."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.to(dtype).to(x.dtype)

        @staticmethod
        def backward(ctx, gradient):
            return gradient.to(dtype).to(gradient.dtype)

    return Round.apply


round_to_bfloat16, round_to_float32 = rounding_to(torch.bfloat16), rounding_to(torch.float32)


def exact(x):
    return x


def rms_norm(x, weight, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def stretched(frequency, scaling):
    """Llama 3's: long waves are stretched by the factor, short ones are not, those between by a share of it."""
    factor, low, high, positions = scaling
    if positions == 0:
        return frequency
    wave = 2 * math.pi / frequency
    share = (positions / wave - low) / (high - low)
    between = (1 - share) * frequency / factor + share * frequency
    return torch.where(wave > positions / low, frequency / factor, torch.where(wave < positions / high, frequency, between))


def rope(x, config):
    """x: (B, heads, T, D). Elements i and i + D/2 turn by t * theta^(-2i/D)."""
    length, size = x.shape[-2:]
    frequency = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    frequency = stretched(frequency, config.rope_scaling)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency).repeat(1, 2)
    return x * angle.cos().to(x.dtype) + rotate_half(x) * angle.sin().to(x.dtype)


def attention(x, weights, prefix, config, compute):
    """x: (B, T, C). Causal attention; query head h reads key/value head h / (H/G)."""
    B, T, _ = x.shape

    def project(name):
        y = compute(F.linear(x, weights[prefix + name + "_proj.weight"]))
        if config.attention_biases:
            y = compute(y + weights[prefix + name + "_proj.bias"])
        y = y.reshape(B, T, -1, config.head_dim).transpose(1, 2)
        if config.head_norms and name != "v":
            y = compute(rms_norm(y, weights[prefix + name + "_norm.weight"], config.norm_epsilon))
        return y

    repeats = config.heads // config.kv_heads
    query = compute(rope(project("q"), config))
    key = compute(rope(project("k"), config)).repeat_interleave(repeats, dim=1)
    value = project("v").repeat_interleave(repeats, dim=1)
    score = query @ key.transpose(-1, -2) / math.sqrt(config.head_dim)
    score = score.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    y = compute((score.softmax(-1) @ value).transpose(1, 2).reshape(B, T, -1))
    return compute(F.linear(y, weights[prefix + "o_proj.weight"]))


def feed_forward(x, weights, prefix, compute):
    gate = compute(F.linear(x, weights[prefix + "gate_proj.weight"]))
    up = compute(F.linear(x, weights[prefix + "up_proj.weight"]))
    return compute(F.linear(compute(F.silu(gate) * up), weights[prefix + "down_proj.weight"]))


def forward(weights, tokens, config, compute=exact):
    """Logits (B, T, V) of tokens (B, T). `weights` are those of the forward pass, fake-quantized or not.

    compute: what storing an activation in the compute type does to it.
    """
    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        normed = compute(rms_norm(x, weights[prefix + "input_layernorm.weight"], config.norm_epsilon))
        x = x + attention(normed, weights, prefix + "self_attn.", config, compute)
        normed = compute(rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], config.norm_epsilon))
        x = x + feed_forward(normed, weights, prefix + "mlp.", compute)
    x = compute(rms_norm(x, weights["model.norm.weight"], config.norm_epsilon))
    return F.linear(x, weights["model.embed_tokens.weight" if config.tied else "lm_head.weight"])


# ---- one step of training -----------------------------------------------------------------------------------------


def loss_and_gradients(weights, scales, inputs, targets, config, compute=exact):
    """Mean loss over all micro-batches, its gradients, and the logits of the first micro-batch.

    weights, scales: {name: tensor}, scales empty in full precision; inputs, targets: (micro-batches, B, T).
    Returns loss (float), {name: gradient}, {name: gradient of the scale}, logits (B*T, V).
    """
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    scales = {name: scale.detach().requires_grad_() for name, scale in scales.items()}
    used = fake_quantize(weights, scales, config)
    if compute is round_to_bfloat16:
        # The levels of a quantized matrix are exact in bfloat16, other matrices are rounded; norms stay float32.
        # Gradients of weights are float32: only the forward pass rounds.
        for name, w in used.items():
            if name not in scales and w.dim() > 1:
                used[name] = w + (w.to(torch.bfloat16).to(w.dtype) - w).detach()
    total, first_logits = 0.0, None
    for tokens, labels in zip(inputs, targets):
        logits = forward(used, tokens, config, compute).flatten(0, 1)
        total = total + F.cross_entropy(logits, labels.flatten()) / len(inputs)
        first_logits = logits.detach() if first_logits is None else first_logits
    total.backward()
    gradients = {name: weight.grad for name, weight in weights.items()}
    return total.item(), gradients, {name: scale.grad for name, scale in scales.items()}, first_logits


def global_norm(*gradients):
    """Euclidean norm over all tensors of the given dictionaries."""
    return math.sqrt(sum(g.double().square().sum().item() for group in gradients for g in group.values()))


class AdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101) and clipping by the global norm, written out.

    Matrices decay, norm weights and scales do not. Scales start at the switch: their moments are zero then and their
    bias correction counts from there. Constants are rounded to float32 first: that is what the trainer computes with.
    """

    def __init__(self, config):
        self.config = config
        self.moments = {}  # (kind, name) -> [steps taken, first moment, second moment]

    def _updated(self, kind, name, parameter, gradient, learning_rate, decay):
        beta1, beta2 = float(np.float32(self.config.beta1)), float(np.float32(self.config.beta2))
        zero = torch.zeros_like(gradient)
        t, first, second = self.moments.get((kind, name), (0, zero, zero))
        t += 1
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.square()
        self.moments[kind, name] = t, first, second
        epsilon = float(np.float32(self.config.epsilon))
        direction = (first / (1 - beta1**t)) / ((second / (1 - beta2**t)).sqrt() + epsilon)
        if kind == "scale":  # a scale moves by a fraction of itself
            direction = direction * parameter
        return parameter - float(np.float32(learning_rate)) * (direction + decay * parameter)

    def step(self, step, weights, scales, gradients, scale_gradients):
        """The weights and scales after step number `step`, and the gradients' norm before clipping."""
        norm = global_norm(gradients, scale_gradients)
        clip = float(np.float32(self.config.clip_norm))
        factor = min(1.0, clip / norm) if clip > 0 and norm > 0 else 1.0
        rate, scale_rate = self.config.learning_rates[step], self.config.scale_learning_rates[step]
        decay = float(np.float32(self.config.weight_decay))
        new_weights = {
            name: self._updated("weight", name, w, factor * gradients[name], rate, decay if w.dim() > 1 else 0.0)
            for name, w in weights.items()
        }
        new_scales = {
            name: self._updated("scale", name, s, factor * scale_gradients[name], scale_rate, 0.0)
            for name, s in scales.items()
        }
        return new_weights, {name: s.clamp_min(SMALLEST_SCALE) for name, s in new_scales.items()}, norm


def initial_scales(weights, config):
    """The scales at the switch: {name: (rows, groups)}."""
    return {
        name: initial_scale(weights[name], config.weight_bits(name), groups)
        for name, (_, groups) in config.scale_shapes().items()
    }


def train(config, weights, tokens, compute=exact, start=lambda step, weights, scales: (weights, scales)):
    """The whole run: full-precision steps, then QAT steps. tokens(step) gives inputs and targets of a step.

    start(step, weights, scales) may move the state from which a step starts.

    Yields after every step a dictionary: weights and scales before it, loss, gradients, scale_gradients, logits,
    norm, and next_weights, next_scales after it.
    """
    optimizer, scales = AdamW(config), {}
    for step in range(config.steps):
        if config.is_qat(step) and step == config.fp_steps:
            scales = initial_scales(weights, config)
        weights, scales = start(step, weights, scales)
        loss, gradients, scale_gradients, logits = loss_and_gradients(weights, scales, *tokens(step), config, compute)
        next_weights, next_scales, norm = optimizer.step(step, weights, scales, gradients, scale_gradients)
        yield {
            "weight": weights, "scale": scales, "loss": loss, "gradient": gradients, "logits": logits, "norm": norm,
            "scale_gradient": scale_gradients, "next_weight": next_weights, "next_scale": next_scales,
        }  # fmt: skip
        weights, scales = next_weights, next_scales
