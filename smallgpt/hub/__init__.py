"""Downloading what others published, and publishing."""
