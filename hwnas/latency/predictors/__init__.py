"""One file per latency predictor, each with a class `Predictor`."""
