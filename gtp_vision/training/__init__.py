"""Trainer, runs, engines, checkpoints, resuming, and steps that are not finite."""
