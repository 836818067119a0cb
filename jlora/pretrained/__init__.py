"""Folders and files of pretrained models, in and out."""
