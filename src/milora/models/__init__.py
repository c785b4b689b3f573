"""Checkpoints: how they are read, checked, named by their content, and written whole or not at all."""
