"""Spatial scenes in DEAR's layout: rooms, speech and backgrounds, with labels measured from what was generated."""
