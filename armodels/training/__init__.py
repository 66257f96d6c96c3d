"""Training, by objects alone: nothing here knows a config."""
