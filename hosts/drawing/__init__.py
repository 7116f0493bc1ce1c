"""Sheets and curves."""
