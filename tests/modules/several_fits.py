"""`seeker fit` several times in one process, or with `torchrun` in several: a start costs more than a training of the tests.

It takes a JSON list of command lines, and stops at the first that fails.
"""

import json
import sys

from project.cli import main

if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        status = main(["fit", *words])
        if status:
            sys.exit(status)
