"""Figures: maps, charts, and the choosers that notebooks show."""
