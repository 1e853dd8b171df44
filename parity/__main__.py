"""``python -m parity ...``: the same as ``tf-d2 parity ...``, in a process of its own, since nothing here imports
tf_d2."""

import subprocess
import sys

if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "tf_d2.cli", "parity", *sys.argv[1:]]).returncode)
