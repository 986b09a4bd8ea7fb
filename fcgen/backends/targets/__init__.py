"""GPU families: limits, one record per instruction, rates."""
