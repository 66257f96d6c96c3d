"""Where the curves of a run go beside its metrics.csv: one file a logger."""
