"""How long the steps of docs/lecture.md take, from a fresh clone of this repository's last commit.

    python benchmarks/lecture.py

The commands are read from the page and typed into one shell, step after step; what they print is printed, the last line is
JSON. Seconds are the commands' alone: reading and talking come on top. Step 1 installs, and packages come from wherever pip is
told to take them.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLOCK = "@@ seconds: "


def commands(page: str) -> dict[str, str]:
    """The indented lines under each heading of the page, by the heading."""
    steps = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    return {step.splitlines()[0]: "\n".join(re.findall(r"^ {4}(\S.*)", step, flags=re.MULTILINE)) for step in steps}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    steps = commands((HERE.parent / "docs" / "lecture.md").read_text())
    typed = "\n".join(f"echo '# {name}'\n{lines}\necho '{CLOCK}'$SECONDS" for name, lines in steps.items())
    times = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", HERE.parent, clone], check=True)
        shell = ["bash", "-e", "-c", typed]
        with subprocess.Popen(shell, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as lecture:
            for line in lecture.stdout:
                print(line, end="", flush=True)
                if line.startswith(CLOCK):
                    times.append(int(line.removeprefix(CLOCK)))
    if lecture.returncode:
        sys.exit(f"a command of step {len(times) + 1} of docs/lecture.md failed, see above")
    took = {name: end - begin for name, begin, end in zip(steps, [0, *times], times, strict=False)}
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"seconds": times[-1], "steps": took, **machine}))


if __name__ == "__main__":
    main()
