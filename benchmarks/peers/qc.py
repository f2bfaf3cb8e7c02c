"""Official Q-chunking (github.com/ColinQiyangLi/qc) on OGBench data.

QC acts by the best of N chunks of a cloned flow; QC-FQL learns a one-step policy of chunks.
"""

from __future__ import annotations

import argparse
from typing import Any

import driver


class Qc(driver.Peer):
    """`agents/acfql.py`, with batches of `Dataset.sample_sequence`, as its main."""

    repository, commit = "ColinQiyangLi/qc", "48283b4f662bd1c127ec9fa80647b49759f10653"
    agent = ("agents.acfql", "ACFQLAgent")
    own_settings = ("horizon_length", "actor_type", "actor_num_samples", "num_qs", "alpha")

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Chunk, and type of actor."""
        add = parser.add_argument
        add("--actor-type", choices=("best-of-n", "distill-ddpg"), default="best-of-n", help="QC, or QC-FQL")
        add("--horizon-length", type=int, default=5, help="actions of a chunk; default %(default)s")
        add("--actor-num-samples", type=int, default=32, help="N of best-of-n; default %(default)s")
        add("--num-qs", type=int, default=2, help="critics; default %(default)s")
        add("--alpha", type=float, default=100.0, help="weight of the distillation (distill-ddpg); 300 on cube-single")

    def label(self, options: argparse.Namespace) -> str:
        """`official-qc` or `official-qc-fql`."""
        return "official-qc" if options.actor_type == "best-of-n" else "official-qc-fql"

    def example(self, data: Any) -> Any:
        """One transition, without an axis for the batch."""
        return data.sample(())

    def batch(self, data: Any, options: argparse.Namespace) -> dict[str, Any]:
        """Uniform sequences."""
        return data.sample_sequence(
            options.batch_size, sequence_length=options.horizon_length, discount=options.discount
        )

    def actions(self, agent: Any, observation: Any, key: Any) -> Any:
        """A chunk, all of which is executed, as in its evaluation."""
        return agent.sample_actions(observations=observation, rng=key)


if __name__ == "__main__":
    driver.main(Qc(), __doc__)
