"""Reads and writes files with limits on size, and atomically. Nothing here depends on models."""
