"""How long `make demo` takes, from a fresh clone of this repository's last commit to the picture.

    python benchmarks/demo.py

Includes the installation; packages come from wherever pip is told to take them. The last line is JSON.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", HERE.parent, clone], check=True)
        begin = time.perf_counter()
        subprocess.run(["make", ".venv/installed"], cwd=clone, check=True, capture_output=True)
        installed = time.perf_counter()
        done = subprocess.run(["make", "demo"], cwd=clone, check=True, capture_output=True, text=True)
        end = time.perf_counter()
    stages = {name: int(seconds) for name, seconds in re.findall(r"/(\w+): made in (\d+) s", done.stdout)}
    parts = {"install": installed - begin, "demo": end - installed, "stages of prepare": stages}
    print(f"make demo: {end - begin:.0f} s, {installed - begin:.0f} of them installation")
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"seconds": end - begin, **parts, **machine}))


if __name__ == "__main__":
    main()
