"""The transform: evaluates a jaxpr with some weights replaced by weight plus low-rank update."""
