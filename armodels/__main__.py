"""``python -m armodels``: what torchrun calls."""

import contextlib
import os
import sys

with contextlib.suppress(OSError):  # a folder that is gone has no name
    if sys.path[0] in ("", os.getcwd()):  # no file in the shell's folder shadows a package
        del sys.path[0]

# DDP looks for weights that a step leaves out, and warns where there are none. What C++ logs is
# set before PyTorch is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from armodels.cli import main  # noqa: E402

main()
