"""hwnas: search space + device + latency budget -> a trained, verified, measured ONNX model."""
