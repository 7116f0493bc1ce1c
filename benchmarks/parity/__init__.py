"""Our edits beside the published code's stored results."""
