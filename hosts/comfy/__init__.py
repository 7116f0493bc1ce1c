"""Inside ComfyUI: its MODEL, CONDITIONING, LATENT and files."""
