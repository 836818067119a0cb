"""Plans the memory, work and communication of a step from its program, for this machine or for other chips."""
