"""The same without ComfyUI, on a diffusers model folder."""
