"""Names that several packages share."""

__version__ = "0.1.0"

GOAL = "goal/"
"""Prefix of observations of the goal: `goal/front` has the shape of `front`."""

SALIENCY = "_saliency"
"""Suffix of videos that show which pixels change the action."""

INSTRUCTION = "instruction"
"""Observation of what is to be done: a vector (D,) of each task, see `datasets.instructions`."""

ANSWERS = "answers"
"""Attribute of recordings whose actions are a policy's, and the group of a recording that holds its answers."""
