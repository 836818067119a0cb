"""A tree of parameters: the paths and names of its leaves, and leaves that are quantized."""
