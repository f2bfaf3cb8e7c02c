"""Official FQL (github.com/seohongpark/fql) on OGBench data: one-step policy, distilled from a cloned flow."""

from __future__ import annotations

import argparse
from typing import Any

import driver


class Fql(driver.Peer):
    """`agents/fql.py`, with batches of `Dataset.sample`, as its main."""

    repository, commit = "seohongpark/fql", "719d04417cb0b206deddbc7d761b3e710c3d750c"
    agent = ("agents.fql", "FQLAgent")
    own_settings = ("alpha", "normalize_q_loss", "q_agg")

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Weight of the distillation, and of Q."""
        parser.add_argument("--alpha", type=float, default=10.0, help="weight of the distillation; 300 on cube-single")
        parser.add_argument("--normalize-q-loss", action="store_true", help="divide the Q term by its mean size")
        parser.add_argument("--q-agg", choices=("mean", "min"), default="mean")

    def label(self, options: argparse.Namespace) -> str:
        """`official-fql`."""
        return "official-fql"

    def example(self, data: Any) -> Any:
        """One transition."""
        return data.sample(1)

    def batch(self, data: Any, options: argparse.Namespace) -> dict[str, Any]:
        """Uniform transitions."""
        return data.sample(options.batch_size)

    def actions(self, agent: Any, observation: Any, key: Any) -> Any:
        """One action of the one-step policy."""
        return agent.sample_actions(observations=observation, seed=key, temperature=0)


if __name__ == "__main__":
    driver.main(Fql(), __doc__)
