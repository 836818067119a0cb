"""The schema of a run's config, and its validation."""
