"""Experiments with few-step policies on problems whose answers are known."""
