"""A policy in a simulator: vectorised episodes, their videos, and what moves the action in them."""
