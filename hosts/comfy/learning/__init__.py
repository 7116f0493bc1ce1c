"""What learns through a loaded model."""
