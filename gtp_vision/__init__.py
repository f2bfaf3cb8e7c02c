"""Offline reinforcement learning and imitation from cameras with generative trajectory policies."""

__version__ = "0.1.0"
