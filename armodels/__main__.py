"""``python -m armodels``: what torchrun calls."""

from armodels.cli import main

main()
