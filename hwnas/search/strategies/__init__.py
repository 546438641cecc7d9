"""One file per search strategy, each with a class `Strategy`."""
