"""Decides how the axes of leaves are split over devices."""
