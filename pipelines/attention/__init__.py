"""Attention controls: each rewrites attention as a sum of fused attentions, never as maps."""
