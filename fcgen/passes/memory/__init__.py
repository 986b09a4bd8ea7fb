"""Passes that move tiles: rings, channels and roles, operands made on their way, what is read ahead."""
