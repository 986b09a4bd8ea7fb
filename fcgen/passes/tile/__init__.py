"""Passes from tile IR to tile IR: algebra, bounds of positions, loops cut where masks change, the order of programs and dots."""
