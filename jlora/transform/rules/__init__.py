"""Rules: how each primitive is applied to a weight that has an update."""
