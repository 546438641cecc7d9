"""One file per command; each defines a function of its own name, found by that name."""
