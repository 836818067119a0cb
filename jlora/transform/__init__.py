"""The transform: a jaxpr evaluated with weights that stand for weight plus update."""
