#!/usr/bin/env python3
"""Tokens per second of generation on the CPU: train_qat -sample and llama.cpp, on the same weights, in turn.

    python dev/bench/bench_generation.py -e out/mine --gguf out/mine_gguf/model.gguf --tokenizer data/cache/mine.model

The Python needs llama-cpp-python (test/clients/environment.py makes one that has it); the GGUF file is that of
scripts/export.py --to gguf. Both generate greedily from the same prompt, one sequence, after a run that does not count;
llama.cpp by llama_decode in a loop, the largest logit found by numpy. Each run is a process of its own. What counts is the
median over the rounds, and of the ratios of ours to llama.cpp's in the same round: others may use the machine too. The fastest
round of each is what comes nearest to a machine of one's own.
"""
import argparse
import ctypes
import os
import re
import statistics
import subprocess
import sys
import time

PROMPT = "It is a truth"
LEAST_TOKENS = 100


def llama_tokens_per_second(path, prompt_text, count, threads):
    """Of `count` tokens behind the prompt, by the clock and by the time of all processors."""
    import llama_cpp
    import numpy as np

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    tokens = (llama_cpp.llama_token * 512)()
    text = prompt_text.encode()
    length = llama_cpp.llama_tokenize(vocabulary, text, len(text), tokens, 512, True, False)

    def read(first, number):
        batch = llama_cpp.llama_batch_get_one(ctypes.cast(ctypes.byref(tokens, first * 4), ctypes.POINTER(llama_cpp.llama_token)), number)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,))
        return int(logits.argmax())

    for _ in range(2):  # the first time does not count
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens[length] = read(0, length)
        begin, begin_of_processors = time.perf_counter(), time.process_time()
        for place in range(length, length + count - 1):
            tokens[place + 1] = read(place, 1)
        seconds, processor_seconds = time.perf_counter() - begin, time.process_time() - begin_of_processors
    return (count - 1) / seconds, (count - 1) / processor_seconds


def peer_run(arguments, threads):
    """The same, in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), "--peer", str(threads), "--gguf", arguments.gguf, "--tokens", str(arguments.tokens)]
    return tuple(map(float, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()))


def own_run(arguments, threads):
    """(tokens per second, what memory allows)"""
    command = [arguments.program, "-sample", PROMPT, "-e", arguments.e, "-tokenizer", arguments.tokenizer, "-temperature", "0",
               "-sample_tokens", str(arguments.tokens), "-device", "cpu", "-threads", str(threads)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    speed, allowed = re.search(r"generation (\d+) tokens/s, memory allows (\d+)", printed).groups()
    return float(speed), float(allowed)


def compare(arguments):
    import llama_cpp
    print(f"train_qat -sample and llama.cpp (llama-cpp-python {llama_cpp.__version__}), {os.path.basename(arguments.gguf)} of "
          f"{os.path.getsize(arguments.gguf) / 1e6:.1f} MB, {arguments.tokens} tokens, {arguments.rounds} rounds in turn\n")
    print("| threads | train_qat, tokens/s: median (fastest) | llama.cpp | ratio: median (of the fastest) | memory allows |")
    print("|---|---|---|---|---|")
    for threads in arguments.threads:
        rounds = [(*own_run(arguments, threads), *peer_run(arguments, threads)) for _ in range(arguments.rounds)]
        own, allowed, peer, of_processors = zip(*rounds)
        ratio = statistics.median(ours / other for ours, other in zip(own, peer))
        print(f"| {threads} | {statistics.median(own):.0f} ({max(own):.0f}) | {statistics.median(peer):.0f} ({max(peer):.0f}) | "
              f"{ratio:.2f} ({max(own) / max(peer):.2f}) | {max(allowed):.0f} |", flush=True)
        if threads == 1:
            undisturbed = max(of_processors)
    if 1 in arguments.threads:
        print(f"\nllama.cpp by the time of its one processor, as if nobody else had used it: {undisturbed:.0f} tokens/s at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-e", help="checkpoint, or directory of a run")
    parser.add_argument("--gguf", required=True, help="the same weights as a GGUF file")
    parser.add_argument("--tokenizer", help="of the checkpoint's shards")
    parser.add_argument("--program", default="./train_qat")
    parser.add_argument("--tokens", type=int, default=240, help="to generate; prompt and tokens must fit the context (240)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tokens < LEAST_TOKENS:
        parser.error(f"--tokens: at least {LEAST_TOKENS}, for a time that can be measured")
    if arguments.peer:
        print(*llama_tokens_per_second(arguments.gguf, PROMPT, arguments.tokens, arguments.peer))
        return
    if not arguments.e or not arguments.tokenizer:
        parser.error("give -e and --tokenizer")
    compare(arguments)


if __name__ == "__main__":
    main()
