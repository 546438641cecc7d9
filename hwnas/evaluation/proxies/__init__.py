"""One file per zero-cost proxy, each with a function `proxy(passes) -> float`; higher is better."""
