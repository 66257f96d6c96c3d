"""Data sources: one file per kind of source, each with its facts and how it is loaded."""
