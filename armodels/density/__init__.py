"""Density models: exact log-probabilities, the one walk that draws, and completion."""
