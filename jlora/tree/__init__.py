"""Parameter trees: paths and names of leaves, and quantized leaves."""
