"""Where the server listens: addresses, connections, and how it ends."""
