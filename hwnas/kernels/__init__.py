"""One file per native kernel: its wrapper, its plain PyTorch reference, its fake and its autograd. Knows nothing of NAS."""
