"""The HTTP front: OpenAI's routes, classification, administration, metrics and a page to talk to characters."""
