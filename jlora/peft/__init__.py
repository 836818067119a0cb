"""Reads and writes PEFT's adapter folders."""
