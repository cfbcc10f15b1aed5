"""Runs the README's Python snippet as it stands and checks that its answer was streamed.

The snippet is the first ```python block of README.md that asks for `stream=True`. It gets OPENAI_BASE_URL and
OPENAI_API_KEY from the environment, as a reader's would, and nothing else is changed.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Pieces in which the text must come at least, and the time between the first and the last, in seconds.
PIECES_MIN = 3
SPREAD_MIN = 0.1


def snippet(readme):
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    for block in blocks:
        if "stream=True" in block:
            return block
    sys.exit("README.md has no ```python block with stream=True")


def run(code):
    """The pieces that the snippet printed, each with the moment it came."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pieces = []
    while data := os.read(child.stdout.fileno(), 65536):
        pieces.append((time.monotonic(), data))
    if child.wait() != 0:
        sys.exit(f"the snippet failed with status {child.returncode}")
    return pieces


def main():
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        if not os.environ.get(name):
            sys.exit(f"{name} is not set")
    readme = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "README.md"
    pieces = run(snippet(readme.read_text(encoding="utf-8")))
    text = b"".join(data for _, data in pieces).decode()
    if not text.strip():
        sys.exit("the snippet printed nothing")
    spread = pieces[-1][0] - pieces[0][0]
    if len(pieces) < PIECES_MIN or spread < SPREAD_MIN:
        sys.exit(f"the text was not streamed: {len(pieces)} pieces in {spread:.3f} s")
    print(f"snippet: {len(text)} characters in {len(pieces)} pieces over {spread:.2f} s")


if __name__ == "__main__":
    main()
