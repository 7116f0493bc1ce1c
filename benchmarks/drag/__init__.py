"""How few steps SDE-Drag needs."""
