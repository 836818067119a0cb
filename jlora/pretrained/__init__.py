"""Reads and writes pretrained models."""
