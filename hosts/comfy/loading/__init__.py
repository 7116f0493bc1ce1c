"""A diffusers model folder as MODEL, CLIP and VAE."""
