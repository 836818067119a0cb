"""Converts rows to text: formats, the turns of a chat, and chat templates."""
