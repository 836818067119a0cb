"""The run folder: the files that a run writes while it trains."""
