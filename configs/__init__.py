"""Hydra configs, shipped inside the wheel as ``armodels.configs``."""
