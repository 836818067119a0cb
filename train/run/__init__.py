"""The run folder: what a run leaves on disk while it trains."""
