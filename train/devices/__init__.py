"""Processes, devices and compiled programs of a run."""
