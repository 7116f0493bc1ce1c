"""One node per inversion: swap one for another, and nothing else in the graph changes."""
