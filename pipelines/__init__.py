"""The algorithms: torch and the standard library only, readable as the papers are."""
