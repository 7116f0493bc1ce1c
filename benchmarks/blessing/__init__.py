"""The bounds of The Blessing of Randomness, on laws that are known."""
