"""What all kinds of training share around the loop: starting, resuming, finishing and reporting a run."""
