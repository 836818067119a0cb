"""The sides of a measured step, each in a process of its own, and what they read."""
