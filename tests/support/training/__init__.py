"""Configs, data, models and folders of tiny runs."""
