"""The embedded model: its scenes, its training, its weights, and the run that shows them."""
