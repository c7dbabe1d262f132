"""Whole models, made of blocks of mixers."""
