"""The median length of episodes."""

import numpy as np

from gtp_vision.evaluation.metrics import Metric

MEDIAN = Metric(
    "median_length", lambda episodes, env: {"median_length": float(np.median([episode.length for episode in episodes]))}
)
