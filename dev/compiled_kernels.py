"""Kernels as nvcc compiles them, for ptxas_table.py and sass_check.py: which files, for which target, and what their
kernels are called. Needs CUDA's toolkit, no GPU."""
import os
import re
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CUDA = os.path.join(ROOT, "kernels", "cuda")
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT}"]
HOST_ONLY = {"runtime.cu", "cublaslt_matmul.cu", "nccl_communicator.cu"}  # no kernels to speak of


class Failure(Exception):
    """What the user is told in place of a result: one line, or nvcc's own words behind one."""


def find_tool(name):
    """Its path, from PATH or from where CUDA is installed; None without it."""
    places = [os.path.join(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    found = (shutil.which(name, path=place) for place in [*places, None, "/usr/local/cuda/bin"])
    return next(filter(None, found), None)


def find_nvcc():
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise Failure("no nvcc found; install the CUDA toolkit or put it into PATH")
    return nvcc


def for_hopper(source):
    """Whether a file is compiled for sm_90a, and for no other target."""
    return os.path.basename(source).startswith("hopper_")


def kernel_files(directory=CUDA):
    paths = (os.path.join(room, name) for room, _, names in os.walk(directory) for name in names)
    return sorted(path for path in paths if path.endswith(".cu") and os.path.basename(path) not in HOST_ONLY)


def compile_to(nvcc, source, target, kind, output):
    """Compiles a .cu or .ptx file to `kind`, ptx or cubin, for sm_`target`. The compiler's messages."""
    command = [nvcc, *FLAGS, f"-arch=sm_{target}", f"-{kind}", "-o", output, source]
    if kind == "cubin":
        command += ["-Xptxas", "-v"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise Failure(f"{source} does not compile:\n{result.stderr}")
    return result.stderr


def waiting_wgmma(messages):
    """What ptxas says when it makes products by warpgroups wait for each other, or None."""
    found = re.search(r".*\(C75\d\d\).*", messages)
    return found and found[0]


def demangle(names):
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def shorten(name):
    """Without namespaces and parameters: what a reader of the file calls it."""
    name = re.sub(r"\(anonymous namespace\)::|train_qat::(cuda_device::)?|^void ", "", name)
    name = name.replace("(int)", "").replace("(bool)1", "true").replace("(bool)0", "false").replace("(bool)", "")
    name = re.sub(r"\(Grid\)(\d+)", r"Grid \1", name)
    depth = 0
    for position, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:position]
    return name
