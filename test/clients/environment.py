"""The virtual environment of test/clients/: prints its Python; makes it where there is none, or one for other versions.

    test/clients/environment.py build/clients
"""
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "dev" / "bench"))

import newest_torch  # noqa: E402

REQUIREMENTS = HERE / "requirements.txt"


def python_of(environment):
    return newest_torch.python_with(environment, REQUIREMENTS)


if __name__ == "__main__":
    try:
        print(python_of(pathlib.Path(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        sys.exit(f"environment.py: error: {' '.join(map(str, error.cmd))}: {error.stderr.strip().splitlines()[-1]}")
