"""Every inversion on the same edits of drawn scenes."""
