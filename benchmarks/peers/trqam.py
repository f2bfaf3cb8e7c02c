"""Official TRQAM (github.com/yonghdong/trqam) on OGBench data.

A flow is cloned first, then improved by adjoint matching in a trust region around it.
"""

from __future__ import annotations

import argparse
from typing import Any

import driver
from qc import Qc


class Trqam(Qc):
    """`agents/trqam.py`: two of its runs in one, the first with `bc_only`, whose flow the second loads."""

    repository, commit = "yonghdong/trqam", "02599ce32dc9343f723b1cc52dabe06c5e9c1ed5"
    agent = ("agents.trqam", "TRQAMAgent")
    own_settings = ("horizon_length", "num_qs", "rho", "kl_budget", "best_of_n")

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Length of cloning, pessimism and trust region."""
        add = parser.add_argument
        add("--bc-steps", type=driver.count, help="of --steps that clone; default 3/13, the share in the paper")
        add("--horizon-length", type=int, default=5, help="actions of a chunk; default %(default)s")
        add("--num-qs", type=int, default=10, help="critics; default %(default)s")
        add(
            "--rho",
            type=float,
            default=0.5,
            help="deviations of the critics off a target; default %(default)s",
        )
        add("--kl-budget", type=float, default=1.0, help="of the trust region, per task; default %(default)s")
        add("--best-of-n", type=int, default=1, help="candidates; default %(default)s")

    def label(self, options: argparse.Namespace) -> str:
        """`official-trqam`."""
        return "official-trqam"

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """Chunks, and the length of cloning."""
        return super().settings(options) | {"action_chunking": True, "bc_steps": self._bc_steps(options)}

    def create(self, options: argparse.Namespace, data: Any, step: int) -> Any:
        """An agent that clones, for the first steps, or improves."""
        agent = super().create(options, data, step)
        return agent.replace(config=agent.config.copy({"bc_only": step < self._bc_steps(options)}))

    def next_stage(self, agent: Any, options: argparse.Namespace, data: Any, step: int) -> Any:
        """A new agent with the cloned flow after the last step that clones."""
        if step != self._bc_steps(options):
            return agent
        return _with_flow(self.create(options, data, step), agent)

    def acting(self, agent: Any, options: argparse.Namespace, data: Any, step: int) -> Any:
        """While cloning, the flow that is cloned; the agent acts by the improved one."""
        return _with_flow(agent, agent) if step <= self._bc_steps(options) else agent

    @staticmethod
    def _bc_steps(options: argparse.Namespace) -> int:
        return options.steps * 3 // 13 if options.bc_steps is None else options.bc_steps


def _with_flow(agent: Any, cloned: Any) -> Any:
    """`agent` with the cloned flow in all its actors, as its main loads `--pretrained_actor_path`."""
    flow = cloned.network.params["modules_actor_slow"]
    actors = [f"modules_{target}actor_{kind}" for target in ("", "target_") for kind in ("slow", "fast")]
    params = dict(agent.network.params) | dict.fromkeys(actors, flow)
    return agent.replace(network=agent.network.replace(params=params))


if __name__ == "__main__":
    driver.main(Trqam(), __doc__)
