"""Which axis of which leaf is on which devices."""
