"""``python -m armodels``: what torchrun calls."""

import contextlib
import os
import sys

with contextlib.suppress(OSError):  # a folder that is gone has no name
    if sys.path[0] in ("", os.getcwd()):  # no file in the shell's folder shadows a package
        del sys.path[0]

from armodels.cli import main  # noqa: E402

main()
