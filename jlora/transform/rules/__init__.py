"""What each kind of primitive does with a weight that has an update."""
