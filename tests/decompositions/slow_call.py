"""`milora decompose` with each decomposition taking longer than it would.

python slow_call.py SECONDS ARGUMENTS...
"""

import sys
import time


def main(seconds: str, *arguments: str) -> int:
    from milora.cli.app import main as milora
    from milora.decompositions import Part

    compute = Part.compute

    def slowly(self, W, strict=False):
        time.sleep(float(seconds))
        return compute(self, W, strict)

    Part.compute = slowly
    return milora(["decompose", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
