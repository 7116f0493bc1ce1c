"""The two worlds that can run a pipeline: ComfyUI, and diffusers without it."""
