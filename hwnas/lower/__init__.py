"""One file per lowering: a plain function from an Arch to something else."""
