"""These tests run ComfyUI's own code in this process, on the CPU where there is nothing better."""

from palimpsest.dev import use_comfy

use_comfy()
