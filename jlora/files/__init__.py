"""Files on disk, bounded and atomic: nothing here knows of models."""
