"""Fused CPU kernels, each beside its PyTorch reference; pure functions of arrays."""
