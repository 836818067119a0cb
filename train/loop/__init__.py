"""The optimisation: one step, and the loop around it."""
