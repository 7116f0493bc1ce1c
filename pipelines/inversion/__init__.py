"""One file per inversion that adds something to the chain."""
