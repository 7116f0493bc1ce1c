"""One file per inversion, and what they leave on the wires."""
