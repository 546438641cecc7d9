"""One file per gradient strategy on the supernet, each with a class `Gradient`."""
