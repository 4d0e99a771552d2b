"""`python -m fastres.extension`: compile the native kernels now, showing the commands."""

from __future__ import annotations

import argparse
import sys

from fastres import extension


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastres.extension", description=__doc__)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the result")
    quiet = parser.parse_args().quiet
    try:
        paths = extension.build(verbose=not quiet)
    except extension.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
