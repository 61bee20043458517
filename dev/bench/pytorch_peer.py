"""What the PyTorch peers of the benchmark share: arguments, and the environment in which PyTorch is at its best."""

import argparse
import glob
import os
import re
import sys

# Memory is kept once it is got, and OpenMP threads soon stop spinning: on a machine that is busy with something else,
# libgomp's default makes a step up to ten times slower (and a quiet machine's step no faster).
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "GOMP_SPINCOUNT": "20000",
}
OPENBLAS_DIRECTORIES = "/usr/lib/*/openblas-openmp", "/usr/lib/*/openblas-pthread"


def parse_arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--bf16", choices=("copies", "autocast"), default="copies", help="how --mode bf16 is done")
    for name, default in (
        ("layers", 6), ("width", 384), ("heads", 6), ("kv-heads", 6), ("ffn", 1024), ("vocabulary", 8192),
        ("sequence", 256), ("batch", 8), ("steps", 10), ("warmup", 2), ("threads", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--qat", type=float, metavar="BITS", help="fake quantization: 1, 1.58, 2 ... 8")
    parser.add_argument("--compile", action="store_true", help="by torch.compile; of the plain model only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the plain model only")
    parser.add_argument("--attention", choices=("flash", "cudnn"), help="CUDA kernels to use, not PyTorch's choice")
    parser.add_argument("--serve", action="store_true", help="wait for `step` or `quit` on stdin")
    parser.add_argument("--blas", metavar="DIRECTORY", help="where libblas.so.3 of a fast BLAS is; default: OpenBLAS")
    parser.add_argument("--profile", action="store_true", help="print the operators' times of one step and leave")
    arguments = parser.parse_args()
    if arguments.attention and arguments.device != "cuda":
        parser.error("--attention names CUDA kernels; give --device cuda too")
    return arguments


def prepare_environment(arguments):
    """Starts this script again with the settings that only count at the start of a process."""
    wanted = dict(ENVIRONMENT, OMP_NUM_THREADS=str(arguments.threads), OPENBLAS_NUM_THREADS=str(arguments.threads))
    blas = arguments.blas or next((d for p in OPENBLAS_DIRECTORIES for d in sorted(glob.glob(p))), None)
    path = os.environ.get("LD_LIBRARY_PATH", "")
    if blas and blas not in path.split(":"):
        wanted["LD_LIBRARY_PATH"] = ":".join(filter(None, (blas, path)))
    # A forced kernel is rarely the best one: let OpenBLAS look at the processor.
    if any(os.environ.get(k) != v for k, v in wanted.items()) or "OPENBLAS_CORETYPE" in os.environ:
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment | wanted)


def loaded_blas():
    """The file of the BLAS that this process has loaded."""
    with open("/proc/self/maps") as maps:
        names = {line.split()[-1] for line in maps if ".so" in line}
    found = [name for name in sorted(names) if "openblas" in name or "libblas" in name or "libmkl" in name]
    return next((name for name in found if "openblas" in os.path.realpath(name)), found[0] if found else "none")


def describe(torch):
    """Versions of PyTorch and of what multiplies its matrices, on one line."""
    text = torch.__config__.show()
    patterns = r"Math Kernel Library Version ([\d.]+)", r"MKL-DNN v(\S+)|oneDNN v(\S+)"
    found = [re.search(pattern, text) for pattern in patterns]
    mkl, onednn = (next(filter(None, match.groups())) if match else None for match in found)
    path = os.path.realpath(loaded_blas())
    blas = f"MKL {mkl}" if mkl else "OpenBLAS" if "openblas" in path else path
    return f"torch {torch.__version__}, oneDNN {onednn}, {blas}, Python {sys.version.split()[0]}"


def describe_cuda(torch):
    """The same of a GPU's peer."""
    cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
    return f"torch {torch.__version__}, CUDA {cuda}, cuDNN {cudnn}, Python {sys.version.split()[0]}"
