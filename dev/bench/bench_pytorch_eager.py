#!/usr/bin/env python3
"""The peer as most people write it: the benchmark model in plain PyTorch modules, trained in fp32 or under bf16 autocast,
with --compile through torch.compile, with --qat 4 fake-quantized, on a CPU or with --device cuda on a GPU. Attention and
optimizer are the fused ones where this PyTorch has them.

    dev/bench/bench_pytorch_eager.py --mode bf16 --serve     one step per line `step` on stdin, answered with its milliseconds

dev/bench/bench_pytorch.py is the same model with hand-written backward passes and a flat optimizer; its environment (allocator,
OpenMP, BLAS) is used here as well, so the difference between the two is the formulation alone.
"""

import sys
import time

from pytorch_peer import describe, describe_cuda, parse_arguments, prepare_environment

if __name__ == "__main__":
    ARGUMENTS = parse_arguments(__doc__)
    prepare_environment(ARGUMENTS)

import torch  # noqa: E402 (after the environment is right)

from pytorch_model import FUSED_ATTENTION, Model  # noqa: E402


def fail(text):
    print(f"bench_pytorch_eager.py: error: {text}", file=sys.stderr)
    sys.exit(2)


def prepare_cuda(attention):
    """Sets what PyTorch should use on a GPU. Ends the program where it can't."""
    if not torch.cuda.is_available():
        fail("--device cuda: this PyTorch finds no GPU; take --device cpu")
    torch.set_float32_matmul_precision("high")  # tensor cores, where autocast leaves something in float32
    if attention:
        backends = torch.backends.cuda
        if not hasattr(backends, "enable_cudnn_sdp"):
            fail(f"--attention: PyTorch {torch.__version__} can't choose between these kernels; take 2.5 or later")
        # What is left has to do it: attention fails where it can't, and is not quietly another kernel's.
        backends.enable_flash_sdp(attention == "flash")
        backends.enable_cudnn_sdp(attention == "cudnn")
        backends.enable_mem_efficient_sdp(False)
        backends.enable_math_sdp(False)


def main():
    a = ARGUMENTS
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    if a.device == "cuda":
        prepare_cuda(a.attention)
    model = Model(a).to(a.device)
    fused = {"fused": True} if FUSED_ATTENTION else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    forward = torch.compile(model) if a.compile else model
    inputs, targets = torch.randint(a.vocabulary, (2, a.batch, a.sequence)).to(a.device)

    def step():
        start = time.perf_counter()
        with torch.autocast(a.device, torch.bfloat16, enabled=a.mode == "bf16"):
            loss = forward(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # on a GPU it waits for all of the step
        return (time.perf_counter() - start) * 1e3

    print(describe_cuda(torch) if a.device == "cuda" else describe(torch), flush=True)
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
