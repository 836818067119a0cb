"""Every way to start an adapter."""
