"""Measurements of speed and memory; each module runs alone and prints JSON."""
