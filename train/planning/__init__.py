"""What a step will hold, compute and send, read from its program: on this machine, or on chips that are not here."""
