"""Both IRs without a GPU: the tile interpreter and the machine simulator."""
