"""Edits of the embedded flow model and of the embedded UNet, with and without inversion."""
