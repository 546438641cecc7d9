"""hwnas: search space + device + latency budget -> a trained, verified, measured ONNX model."""

import os

# Torch's OpenMP threads spin at the end of every small op. Where a neighbour holds the other core that wait is long: training
# a small network beside two busy processes took 9 times as long with the default as with this. Torch must load after it.
os.environ.setdefault("GOMP_SPINCOUNT", "100")
