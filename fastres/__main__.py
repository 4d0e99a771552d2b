"""`python -m fastres` is the `fastres` command."""

import os
import sys

from fastres.cli import main

if __name__ == "__main__":
    code = main()
    if sys.argv[1:2] == ["train"] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # threads of gloo's outlive their group and now and then abort a process on its usual way
        # out (seen with torch 2.15), which torchrun takes for the failure of a run that is done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
