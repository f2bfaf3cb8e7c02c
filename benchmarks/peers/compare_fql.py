"""Compare this project's FQL with the official one: the same weights, batch and noise, then losses, Q and gradients.

Run it in gtp-vision's environment; it starts the official half with the Python of the peers' environment:

    python benchmarks/peers/compare_fql.py --checkout ../fql --python ../peers-env/bin/python
      --data data --env cube-single-play-singletask-task2-v0

Trailing settings (agent.critic.norm_after=false, ...) override ours, to see what a difference is worth.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

OFFICIAL_NETWORKS = (
    *("encoder=state", "encoder.standardize=none", "agent.policy.activation=gelu_tanh", "agent.policy.input_gain=1"),
    *("agent.critic.activation=gelu_tanh", "agent.critic.norm_after=true"),
)
"""The settings that make ours the official networks."""
_NETWORKS = ("critic", "target_critic", "actor_bc_flow", "actor_onestep_flow")
_TOLERANCE = 1e-5  # relative, where a value is larger than 1


def official(options: argparse.Namespace) -> None:
    """Train the official agent for some steps, and write weights, a batch, its noise and their results."""
    import driver
    import fql

    sys.path.insert(0, str(options.checkout.resolve()))
    sys.dont_write_bytecode = True
    import jax
    from flax.traverse_util import flatten_dict
    from utils.datasets import Dataset  # type: ignore[import-not-found]

    options.__dict__.update(learning_rate=3e-4, tau=0.005, q_agg="mean", normalize_q_loss=False)
    peer = fql.Fql()
    _, arrays = driver.load(options.env, driver.data_file(options.data, options.env))
    data = Dataset.create(**arrays)
    np.random.seed(options.seed)
    agent = peer.create(options, data, 0)
    for _ in range(options.updates):
        agent, _ = agent.update(peer.batch(data, options))
    batch, rng, params = peer.batch(data, options), jax.random.PRNGKey(options.seed + 1), agent.network.params

    def loss(params: Any) -> Any:
        return agent.total_loss(batch, params, rng=rng)

    gradient, info = jax.grad(loss, has_aux=True)(params)
    # The keys as `total_loss`, `critic_loss`, `actor_loss` and `sample_actions` split them.
    _, actor, critic = jax.random.split(rng, 3)
    following = jax.random.split(jax.random.split(critic)[1])[0]
    rest, start, time = jax.random.split(actor, 3)
    shape = batch["actions"].shape
    noise = {
        "next": jax.random.normal(following, shape),
        "flow": jax.random.normal(start, shape),
        "time": jax.random.uniform(time, (len(batch["actions"]), 1)),
        "distill": jax.random.normal(jax.random.split(rest)[1], shape),
    }
    q = agent.network.select("critic")(batch["observations"], actions=batch["actions"])
    found = {f"batch/{key}": value for key, value in batch.items()} | {f"noise/{k}": v for k, v in noise.items()}
    found |= {f"info/{key}": value for key, value in info.items()} | {"q": q}
    for name in _NETWORKS:
        found |= {f"{name}/{k}": v for k, v in flatten_dict(params[f"modules_{name}"], sep="/").items()}
        found |= {f"gradient/{name}/{k}": v for k, v in flatten_dict(gradient[f"modules_{name}"], sep="/").items()}
    np.savez(options.reference, **{key: np.asarray(value) for key, value in found.items()})


def ours(found: dict[str, Any], options: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """Quantity to its official and our value, from the official weights, batch and noise."""
    import torch

    from gtp_vision import agents
    from gtp_vision.config.compose import from_command_line
    from gtp_vision.core.random import NoiseRecorder, NoiseTape, RandomStream
    from gtp_vision.datasets.batch import Batch

    hidden = f"[{','.join(map(str, options.hidden))}]"
    config = from_command_line(
        [
            *(
                "task=own",
                "task.name=compare",
                "task.dataset=unused",
                "run_dir=unused",
                "agent=fql",
                *OFFICIAL_NETWORKS,
            ),
            *(f"agent.policy.hidden={hidden}", f"agent.critic.hidden={hidden}"),
            *(f"agent.improvement.distill_weight={options.alpha}", *options.settings),
        ]
    )
    x = {key: torch.from_numpy(value.astype(np.float32)) for key, value in found.items()}
    rows, dimensions = x["batch/actions"].shape
    agent = agents.create({"state": (1, x["batch/observations"].shape[1])}, dimensions, config.agent, config.encoder)
    for name, critic in (("critic", agent.critic), ("target_critic", agent.critic_target)):
        load_critic(critic, {key.removeprefix(f"{name}/"): value for key, value in x.items() if key.startswith(name)})
    load_actor(agent.policy, x, "actor_bc_flow", config.agent.policy.input_gain)
    load_actor(agent.improvement.one_step, x, "actor_onestep_flow", config.agent.policy.input_gain)
    batch = Batch(
        observation={"state": x["batch/observations"][:, None]},
        next_observation={"state": x["batch/next_observations"][:, None]},
        actions=x["batch/actions"][:, None],
        action_mask=torch.ones(rows, 1, dtype=torch.bool),
        reward=x["batch/rewards"],
        discount=options.discount * x["batch/masks"],
    )
    recorder = NoiseRecorder(RandomStream(0, 0))
    agent(batch, recorder, 0)
    drawn = NoiseTape.draw(recorder.draws, RandomStream(0, 0))  # the first ones, of shifts that states do not have
    # Theirs goes from noise at 0 to the action at 1, ours the other way.
    drawn[-4:] = [x["noise/next"], 1 - x["noise/time"][:, 0], x["noise/flow"], x["noise/distill"]]
    loss, metrics = agent(batch, NoiseTape(recorder.draws, drawn), 0)
    loss.backward()
    dense = "Dense_1/kernel"  # a layer that both have alike
    gradients = {
        "critic": agent.critic.q.layers[_linear(agent.critic.q.layers)[1]].weight.grad,
        "actor_bc_flow": agent.policy.network[1][0].weight.grad.T,
        "actor_onestep_flow": agent.improvement.one_step.network[1][0].weight.grad.T,
    }
    prefix = {"critic": "value_net", "actor_bc_flow": "mlp", "actor_onestep_flow": "mlp"}
    flow = metrics["actor/loss"] - options.alpha * metrics["actor/distill_loss"] - metrics["actor/q_term"]
    with torch.no_grad():
        q = agent.critic(x["batch/observations"], x["batch/actions"])
    pairs = {
        "critic loss": (x["info/critic/critic_loss"], metrics["critic/loss"]),
        "Q of the batch": (x["q"], q),
        "flow loss": (x["info/actor/bc_flow_loss"], flow),
        "distillation loss": (x["info/actor/distill_loss"], metrics["actor/distill_loss"]),
        "Q term": (x["info/actor/q_loss"], metrics["actor/q_term"]),
        "actor loss": (x["info/actor/actor_loss"], metrics["actor/loss"]),
    }
    pairs |= {f"gradient of {k}": (x[f"gradient/{k}/{prefix[k]}/{dense}"], own) for k, own in gradients.items()}
    return {name: (theirs.numpy(), own.detach().numpy()) for name, (theirs, own) in pairs.items()}


def load_critic(critic: Any, weights: dict[str, Any]) -> None:
    """Fill the ensemble with the official critic's weights."""
    layers = critic.q.layers
    norms = [index for index, layer in enumerate(layers) if hasattr(layer, "shift")]
    for number, index in enumerate(_linear(layers)):
        _fill(layers[index].weight, weights[f"value_net/Dense_{number}/kernel"])
        _fill(layers[index].bias, weights[f"value_net/Dense_{number}/bias"][:, None])
    for number, index in enumerate(norms):
        _fill(layers[index].scale, weights[f"value_net/LayerNorm_{number}/scale"][:, None])
        _fill(layers[index].shift, weights[f"value_net/LayerNorm_{number}/bias"][:, None])


def load_actor(policy: Any, weights: dict[str, Any], name: str, gain: float) -> None:
    """Fill a policy with an official actor's weights: the flow's time is 1 - ours, and its velocity minus ours."""
    first, bias = weights[f"{name}/mlp/Dense_0/kernel"].T, weights[f"{name}/mlp/Dense_0/bias"]
    features, actions = policy.observe.in_features, policy.actions
    time = first[:, features + actions :]  # (H, 1) of the flow, (H, 0) of the one-step policy
    sign = -1 if time.shape[1] else 1
    locate = policy.locate.weight.new_zeros(policy.locate.weight.shape)  # sines and cosines of the time count for 0
    locate[:, :actions] = first[:, features : features + actions] / gain
    locate[:, actions : actions + time.shape[1]] = -time
    _fill(policy.observe.weight, first[:, :features])
    _fill(policy.observe.bias, bias + time.sum(1))
    _fill(policy.locate.weight, locate)
    layers = [layer for layer in policy.network[1] if hasattr(layer, "weight")]
    for number, layer in enumerate(layers, 1):
        factor = sign if layer is layers[-1] else 1
        _fill(layer.weight, factor * weights[f"{name}/mlp/Dense_{number}/kernel"].T)
        _fill(layer.bias, factor * weights[f"{name}/mlp/Dense_{number}/bias"])


def _linear(layers: Any) -> list[int]:
    return [index for index, layer in enumerate(layers) if hasattr(layer, "weight")]


def _fill(parameter: Any, value: Any) -> None:
    assert parameter.shape == value.shape, (parameter.shape, value.shape)
    parameter.data.copy_(value)


def main() -> int:
    """Run both halves and print a table; 1 if a difference is above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkout", type=Path, required=True, help="of github.com/seohongpark/fql")
    add("--data", type=Path, required=True, help="as the drivers'")
    add("--env", required=True, help="as the drivers'")
    add("--python", type=Path, required=True, help="of the peers' environment")
    add("--hidden", type=lambda text: [int(word) for word in text.split(",")], default=[256, 256, 256])
    add("--batch-size", type=int, default=256)
    add("--alpha", type=float, default=300.0)
    add("--discount", type=float, default=0.99)
    add("--updates", type=int, default=50, help="official steps before the comparison; default %(default)s")
    add("--seed", type=int, default=0)
    add("--reference", type=Path, help=argparse.SUPPRESS)  # set in the official half
    add("settings", nargs="*", help="of ours, e.g. agent.critic.norm_after=false")
    options = parser.parse_args()
    if options.reference:
        official(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "official.npz"
        words = [word for word in sys.argv[1:] if word not in options.settings]
        done = subprocess.run([options.python, __file__, *words, "--reference", reference], check=False)
        if done.returncode:
            return done.returncode
        with np.load(reference) as file:
            pairs = ours(dict(file), options)
    print(f"{'':<32}{'official':>14}{'ours':>14}{'difference':>14}")
    worst = 0.0
    for name, (theirs, own) in pairs.items():
        difference = float(np.abs(theirs - own).max())
        worst = max(worst, difference / max(1.0, float(np.abs(theirs).max())))
        print(f"{name:<32}{theirs.mean():>14.6f}{own.mean():>14.6f}{difference:>14.1e}")
    print(f"largest difference, relative to values above 1: {worst:.1e} (at most {_TOLERANCE:g} expected)")
    return int(worst > _TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
