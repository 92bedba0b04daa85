"""Limits: what one caller may ask of a hub, and how often."""
