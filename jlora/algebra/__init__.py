"""Adapters out of adapters: pure functions of trees."""
