"""Engines without a model, a server in a thread, and a browser."""
