"""Timing, turns and processes that all measurements share."""
