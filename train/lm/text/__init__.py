"""Rows as text: their format, turns of a chat, and the templates that write these out."""
