import pytest
import torch
from small import AIMED, JUDGED, NAMES, PIXELS, STATE, aimed, make, observation, owner, preset, states_of
from small_runs import composed, other_value
from stores import make_store

from gtp_vision.agents import AGENTS, IMPROVEMENTS, actions_needed, label, unused_settings
from gtp_vision.agents.base import Agent
from gtp_vision.core.random import RandomStream
from gtp_vision.core.settings import settings_of
from gtp_vision.datasets.batch import Batch
from gtp_vision.datasets.sampler import Sampler
from gtp_vision.models import Policy
from gtp_vision.models.policy import Losses, Rows

CERTAIN = [name for name in AIMED if AGENTS[name].family == "deterministic"]
STAGES = [(name, 0) for name in NAMES] + [("bdm", step) for step in (1, 2, 3)]  # pretrain_steps is 2


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_its_recipe_says(name: str) -> None:
    config, recipe = composed("task=demo", f"agent={name}").agent, AGENTS[name]
    assert config.name == recipe.name == name
    assert config.policy.family == recipe.family
    assert config.critic.backup == recipe.backup
    assert config.improvement.name == recipe.improvement
    assert (config.acting.candidates > 1) == recipe.chooses
    assert recipe.paper
    assert label(config) == name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["agent=gtp", "improvement=q_gradient", "acting=softmax"], "gtp+q+n"),
        (["agent=gtp", "improvement=distillation"], "gtp+d"),
        (["agent=gtp", "improvement=guidance"], "gtp+e"),
        (["agent=gtp", "improvement=none"], "gtp+bc"),
        (["agent=idql", "acting=single"], "idql"),
        (["agent=gtp", "acting=beam"], "gtp+b"),
        (["agent=consistency_ac", "acting=beam"], "consistency_ac"),
        (["agent=gtp_bc", "agent.policy.family=shortcut"], "gtp_bc-shortcut"),
        (["agent=bdm", "agent.improvement.name=advantage"], "bdm+a"),
        (["agent=rebrac", "improvement=q_gradient"], "rebrac"),
    ],
)
def test_a_label_marks_differences_from_the_published_system(overrides: list[str], expected: str) -> None:
    config = composed("task=demo", *overrides)
    assert label(config.agent) == expected
    assert f"/{expected}-" in config.run_dir


def test_a_batch_holds_the_actions_that_an_agent_needs() -> None:
    assert actions_needed(preset("gtp"), 3) == 1
    assert actions_needed(preset("gtp", "agent.action_chunk=5"), 3) == 5
    assert actions_needed(preset("rebrac"), 3) == 4


@pytest.mark.parametrize("name", ["gtp", "gtp_bc", "iql", "gcivl", "qgpo", "hiql", "crl", "qrl"])  # each kind of critic
def test_settings_without_effect_change_no_step(batch: Batch, name: str) -> None:
    values = {key: value for key, value, _ in settings_of(preset(name), "agent.")}

    def loss(*overrides: str) -> torch.Tensor:
        learner = make(name, *overrides)
        step_of(learner, states_of(batch), 0)
        optimizer = torch.optim.SGD([p for p in learner.parameters() if p.grad is not None], 0.1)
        optimizer.step()
        seen = aimed(states_of(batch)) if name in AIMED else states_of(batch)
        return learner(seen, RandomStream(0, 1), 1)[0]

    unused = unused_settings(preset(name))
    assert unused
    for key, because in unused.items():
        part, _, setting = key.removeprefix("agent.").partition(".")
        other = other_value(getattr(preset(name), part), setting, values[key])
        if setting in ("next_penalty", "chunk"):
            continue  # refused here
        assert torch.equal(loss(), loss(f"{key}={other}")), f"{key} has an effect with {because}"


def step_of(learner: Agent, batch: Batch, step: int) -> dict[str, torch.Tensor]:
    """Gradients and metrics of a training step."""
    batch = aimed(batch) if learner.config.name in AIMED else batch
    learner.begin(step)
    loss, metrics = learner(batch, RandomStream(0, 0), step)
    loss.backward()
    assert {metric.shape for metric in metrics.values()} == {torch.Size()}
    assert all(bool(metric.isfinite()) and not metric.requires_grad for metric in metrics.values())
    return metrics


@pytest.mark.parametrize(
    ("name", "step", "seeing"),
    [(name, step, seeing) for name, step in STAGES for seeing in ("state", "separate", "shared")[: 1 if step else 3]],
)
def test_gradients_of_a_step_reach_exactly_what_is_trained(batch: Batch, name: str, step: int, seeing: str) -> None:
    sees_pixels = seeing != "state"
    learner = make(name, share=seeing == "shared", shapes=PIXELS if sees_pixels else STATE)
    metrics = step_of(learner, batch if sees_pixels else states_of(batch), step)
    frozen = {"policy_target", "critic_target", "actor_encoder_target", "critic_encoder_target"}
    learns: dict[str, bool] = {}
    for key, parameter in learner.named_parameters():
        is_frozen = owner(key) in frozen or key.startswith(("improvement.behaviour", "improvement.high_target"))
        assert parameter.requires_grad != is_frozen, key
        assert (parameter.grad is None) == is_frozen, f"{key}: each process of several waits for all gradients"
        if parameter.grad is not None:
            assert bool(parameter.grad.isfinite().all()), key
            learns[owner(key)] = learns.get(owner(key), False) or bool(parameter.grad.any())
    expected = {"policy"} | ({"critic"} if name in JUDGED else set())
    expected |= {"actor_encoder"} if sees_pixels else set()
    expected |= {"critic_encoder"} if seeing == "separate" and name in JUDGED else set()
    expected |= {"improvement"} if name in ("fql", "qgpo", "hiql", "gtp_hiql") else set()
    assert learns == dict.fromkeys(expected, True)
    assert {"loss", "actor/loss"} <= set(metrics)
    assert ("critic/loss" in metrics) == (name in JUDGED)
    losses = [float(value) for key, value in metrics.items() if key in ("actor/loss", "critic/loss", "critic/v_loss")]
    assert float(metrics["loss"]) == pytest.approx(sum(losses), rel=1e-5)
    if "weight/effective_share" in metrics:
        assert 0 < float(metrics["weight/effective_share"]) <= 1 + 1e-6


@pytest.mark.parametrize("name", [name for name in JUDGED if not name.endswith("hiql")])  # which refuses to
def test_cloning_first_is_the_policys_own_loss_and_leaves_the_critic_alone(
    batch: Batch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make(name, "agent.clone_steps=2", shapes=PIXELS)
    own: list[torch.Tensor] = []
    loss_of = learner.policy.loss

    def noted(rows: Rows) -> Losses:
        losses, metrics = loss_of(rows)
        own.append(losses.detach().mean())
        return losses, metrics

    monkeypatch.setattr(learner.policy, "loss", noted)
    metrics = step_of(learner, batch, 1)
    assert float(metrics["weight/effective_share"]) == pytest.approx(1)
    assert not any(key.startswith("critic/") for key in metrics)
    assert {owner(key) for key, x in learner.named_parameters() if x.grad is not None} == {"policy", "actor_encoder"}
    dimensions = 2 if learner.improvement.is_per_dimension else 1
    torch.testing.assert_close(metrics["loss"], own[0] / dimensions)
    slow = {key: x.clone() for key, x in learner.state_dict().items() if key.startswith("critic_")}
    learner.update_targets()
    assert all(torch.equal(x, learner.state_dict()[key]) for key, x in slow.items())
    assert learner.stage(0) == learner.stage(1) != learner.stage(2)
    assert "critic/loss" in step_of(learner, batch, 2)


@pytest.mark.parametrize(("name", "step"), STAGES)
def test_a_loss_is_a_function_of_the_batch_and_the_noise(batch: Batch, name: str, step: int) -> None:
    learner = make(name)
    learner.begin(step)
    with torch.no_grad():  # a policy that is its own behaviour has one loss, whatever the noise
        for parameter in learner.policy.parameters():
            parameter.mul_(1.1)
    seen = states_of(aimed(batch) if name in AIMED else batch)
    first, again, other = (learner(seen, RandomStream(0, seed), step)[0].item() for seed in (0, 0, 1))
    assert first == again
    if name not in ("gaussian_bc", "iql", *CERTAIN):  # those draw nothing
        assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_row_is_enough(name: str) -> None:
    store = make_store((9, 11))
    step_of(make(name), Sampler(store, 1, 0, frame_stack=2, action_chunk=2).gather(store.transitions[:1]), 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [False, True])
def test_updating_the_targets_is_exactly_polyaks_step(name: str, share: bool) -> None:
    learner = make(name, "agent.tau=0.1", "agent.policy_tau=0.02", shapes=PIXELS, share=share)
    begun = learner.state_dict()
    assert all(torch.equal(x, begun[key.replace("_target", "")]) for key, x in begun.items()), "targets begin as copies"
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    learner.update_targets()
    moved = set()
    for key, value in learner.named_parameters():
        part = key.partition(".")[0]
        if "_target." in key:
            policys = {"policy_target", "improvement"} | (
                set() if share else {"actor_encoder_target"}
            )  # and its inputs
            rate = 0.02 if part in policys else 0.1
            online = before[key.replace("_target", "")]
            torch.testing.assert_close(value, before[key] + rate * (online - before[key]), rtol=1e-6, atol=1e-6)
            assert not torch.equal(value, before[key])
            moved.add(part)  # and of HIQL the high policy's
        else:
            assert torch.equal(value, before[key]), f"{key} is not a target"
    critics = {"critic_target", "actor_encoder_target"} | (set() if share else {"critic_encoder_target"})
    expected = {"policy_target"} | (critics if name in JUDGED else set())
    assert moved == expected | ({"improvement"} if name.endswith("hiql") else set())


@pytest.mark.parametrize("name", NAMES)
def test_acting_is_a_function_of_observation_and_noise_within_the_unit_box(name: str) -> None:
    learner = make(name, shapes=PIXELS, shift=3, shift_probability=1.0)
    seen = observation(PIXELS, batch=32)
    action = learner.act(seen, RandomStream(0, 0))
    assert action.shape == (32, 2)
    assert float(action.abs().max()) <= 1
    assert not action.requires_grad
    assert torch.equal(learner.act(seen, RandomStream(0, 0)), action)
    assert not torch.equal(learner.act(observation(PIXELS, 32, seed=1), RandomStream(0, 0)), action)
    drawn = not torch.equal(learner.act(seen, RandomStream(3, 3)), action)
    assert drawn == (name not in ("gaussian_bc", "iql", "td3_bc", "rebrac", "gtp_ql", *CERTAIN)), "or without noise"


CHUNKED = [name for name in NAMES if name != "rebrac"]  # its penalty takes single actions


@pytest.mark.parametrize(
    ("name", "whole"),
    [(n, whole) for n in CHUNKED for whole in (False, True) if (n in JUDGED and n not in AIMED) or not whole],
)
def test_action_chunks_of_three(name: str, whole: bool) -> None:
    changed = ["agent.action_chunk=3", "agent.acting.execute=2"]
    changed += ["agent.critic.chunk=true", "task.n_step=3"] if whole else []
    learner = make(name, *changed)
    store = make_store((9, 11), terminals={19})
    batch = Sampler(store, 12, 0, frame_stack=2, n_step=3, action_chunk=3).gather(store.transitions[-12:])
    for step in (0, 2):
        step_of(learner, batch, step)
    plan = learner.plan(observation(), RandomStream(0, 0))
    assert plan.shape == (4, 3, 2)
    assert float(plan.abs().max()) <= 1
    if name in JUDGED and name not in AIMED:
        width = learner.actor_encoder.width
        assert bool(learner.critic.q(torch.zeros(1, width + (6 if whole else 2))).isfinite().all())


@pytest.mark.parametrize("backup", ["expectile", "max agent.critic.next_actions=3"])
@pytest.mark.parametrize(
    "improvement", [name for name in IMPROVEMENTS if name != "hierarchy"]
)  # has a critic of its own
def test_a_pessimistic_ensemble_of_chunks_fits_every_improvement(improvement: str, backup: str) -> None:
    ensemble = "agent.critic.members=4 agent.critic.aggregate=mean agent.critic.rho=0.5 agent.critic.next_steps=1"
    chunks = f"agent.action_chunk=3 agent.critic.chunk=true task.n_step=3 agent.critic.backup={backup}"
    name = next((n for n in ("gtp", "bdm") if AGENTS[n].improvement == improvement), "gtp")
    learner = make(name, f"improvement={improvement}", *ensemble.split(), *chunks.split())
    store = make_store((9, 11), terminals={19})
    batch = Sampler(store, 12, 0, frame_stack=2, n_step=3, action_chunk=3).gather(store.transitions[-12:])
    for step in (0, 2):
        assert ("critic/v_loss" in step_of(learner, batch, step)) == (backup == "expectile")
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in learner.critic.parameters())
    assert learner.plan(observation(), RandomStream(0, 0)).shape == (4, 3, 2)


@pytest.mark.parametrize("held", [pytest.param([0.25], id="one"), pytest.param([0.25, -1.0], id="all")])
@pytest.mark.parametrize("name", NAMES)
def test_dimensions_that_the_data_hold_constant_are_acted_as_their_constant(
    batch: Batch, name: str, held: list[float]
) -> None:
    chunk = 1 if name in JUDGED else 2
    learner = make(name, f"agent.action_chunk={chunk}")
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    bounds[:, : len(held)] = torch.tensor(held)
    for policy in learner.modules():
        if isinstance(policy, Policy):
            policy.hold(bounds)
    plan = learner.plan(observation(), RandomStream(0, 0))
    assert torch.equal(plan[..., : len(held)], torch.tensor(held).expand(4, chunk, -1))
    assert (plan[..., 1].std() > 0) == (len(held) < 2)
    if name in JUDGED and name not in AIMED:  # the critic is asked about such actions only
        features = torch.zeros(4, learner.actor_encoder.width)
        asked = learner.improvement.next_action(learner, features, 2, RandomStream(0, 0), 3)
        assert torch.equal(asked[:, : len(held)], torch.tensor(held).expand(12, -1))
    step_of(learner, states_of(batch), 0)
    assert all(bool(x.grad.isfinite().all()) for x in learner.parameters() if x.grad is not None)
