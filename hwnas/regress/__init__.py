"""Regression: arrays in, arrays out. Knows nothing of networks or devices."""
