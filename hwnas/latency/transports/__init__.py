"""One file per transport, each with a class `Transport`."""
