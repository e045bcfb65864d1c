"""Widgets for the notebooks, and the pure functions that they show."""
