"""python -m deep_gemm: the command line, see cli.py."""

import os
import sys

# Closed, as daemons have them: no file that is opened may get their numbers.
for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, name) is None:
        setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))

try:
    from deep_gemm.cli import main

    main(prog_name="python -m deep_gemm")
except KeyboardInterrupt:  # during the imports
    print("interrupted", file=sys.stderr)
    sys.exit(130)
finally:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as `head` does: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
