"""Whole models, found by their files: ``<name>.py`` beside ``<name>.npz``; see ``tests/golden/whole.py``."""
