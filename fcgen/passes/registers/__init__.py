"""Passes from tile IR to placed machine IR: where every tile lives, and what lanes hold of it through a loop."""
