"""The HTTP layer: OpenAI's routes, classification, administration, metrics and a chat page."""
