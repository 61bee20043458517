"""A virtual environment with the newest PyTorch of PyPI, for peers that run on the CPU.

PyPI's wheel for Linux is built with CUDA: with all that it asks for it is 3.0 GB to download, of which a CPU needs
0.55. So it is installed without its CUDA libraries but for the small ones that run code when they are loaded. The
loader still wants the others by name: empty ones stand in for them, in which every symbol is a zero. Nothing on the CPU
calls them; torch.cuda.is_available() is False.
"""

import pathlib
import re
import subprocess
import sys

# What PyTorch imports on the CPU, and the CUDA libraries (2.3, 1.4 and 12 MB) that stay real.
PACKAGES = "numpy filelock typing-extensions setuptools sympy networkx jinja2 fsspec".split()
SMALL_LIBRARIES = "nvidia-cuda-runtime nvidia-cufile nvidia-cuda-cupti".split()
CUDA_NAMES = r"(lib)?(cu|nv|nccl)"  # of the libraries, and of what they export
SYMBOLS = "libcuda_stand_in.so"


def output(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def write_stand_ins(environment):
    """Beside PyTorch's own libraries, where these look first."""
    (directory,) = environment.glob("lib/python3*/site-packages/torch/lib")
    files = sorted(directory.glob("*.so*"))
    present = {path.name for path in environment.rglob("*.so*")}
    wanted = {name for file in files for name in re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", file))}

    def symbols(kind):
        lines = (line for file in files for line in output("nm", "-D", kind, file).splitlines())
        return {line.split()[-1].split("@")[0] for line in lines}

    names = sorted(name for name in symbols("--undefined-only") - symbols("--defined-only")
                   if re.match(CUDA_NAMES, name))  # fmt: skip
    text = ".data\n" + "".join(f".globl {name}\n{name}: .quad 0\n" for name in names)
    # The symbols are in a library of their own: of one whose name it knows the loader asks for versions too.
    link(directory, SYMBOLS, text)
    for library in sorted(wanted - present):
        if re.match(CUDA_NAMES, library):
            link(directory, library, "", "-Wl,--no-as-needed", f"-L{directory}", f"-l:{SYMBOLS}")


def link(directory, name, text, *options):
    command = ["g++", "-shared", "-nostdlib", "-x", "assembler", "-", "-x", "none", f"-Wl,-soname,{name}", *options]
    subprocess.run([*command, "-o", directory / name], input=text, text=True, check=True)


def python_of(environment):
    """Its Python; makes the environment where there is none, or one that was left half made. Raises
    subprocess.CalledProcessError, whose stderr says why, when it can't be made."""
    python, made = environment / "bin" / "python", environment / "complete"
    if not made.exists():
        print(f"installing the newest PyTorch of PyPI into {environment}: 0.55 GB, once", file=sys.stderr, flush=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        output(sys.executable, "-m", "venv", "--clear", environment)
        output(*pip, "--no-deps", "torch")
        output(*pip, *PACKAGES, *SMALL_LIBRARIES)
        write_stand_ins(environment)
        output(python, "-c", "import torch; torch.ones(1)")
        made.touch()
    return python


def python_with(environment, requirements):
    """The Python of an environment that has these pinned packages too. requirements: a file for pip."""
    python, made = python_of(environment), environment / "requirements.txt"
    wanted = requirements.read_text()
    if not made.exists() or made.read_text() != wanted:
        print(f"installing {requirements} into {environment}, once", file=sys.stderr, flush=True)
        output(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements)
        made.write_text(wanted)
    return python


if __name__ == "__main__":  # newest_torch.py ENVIRONMENT [REQUIREMENTS]
    try:
        environment, *requirements = map(pathlib.Path, sys.argv[1:])
        print(python_with(environment, *requirements) if requirements else python_of(environment))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["failed"])[-1]
        sys.exit(f"newest_torch.py: error: {' '.join(map(str, error.cmd))}: {reason}")
