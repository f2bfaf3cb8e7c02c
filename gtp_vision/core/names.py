"""Names that several rooms must spell alike."""

__version__ = "0.1.0"

GOAL = "goal/"
"""Begins the name of an observation that is to be reached: `goal/front` is seen as `front` is."""

SALIENCY = "_saliency"
"""Ends the names of videos that show what moves the action."""
