"""Meshes, the one table of sharding rules, and the shardings of states and batches."""
