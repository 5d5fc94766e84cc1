"""Speed and memory, ours against the literal formulation and the bare backbone: `python -m benchmarks.run`."""
