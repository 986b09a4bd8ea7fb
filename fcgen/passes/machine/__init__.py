"""Passes that end in a kernel: the target's instructions, waits for what is in flight, bytes of shared memory, barriers."""
