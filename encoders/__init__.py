"""Pixels (and, later, proprioception) in, features out."""
