from typing import Any

import numpy as np
import pytest
import torch
from running import Running
from small_policies import observations, untrained

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.serving.lerobot import LeRobotPolicy
from gtp_vision.serving.policy import Policy
from gtp_vision.serving.server import Server
from gtp_vision.serving.settings import Settings


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A camera and two states, plans of four actions, of which three are executed."""
    chunks = ("agent.action_chunk=4", "agent.acting.execute=3")
    return untrained("agent=gtp_bc", *chunks, states={"arm": 5, "gripper": 1})


def batch(*seen: dict[str, np.ndarray]) -> dict[str, Any]:
    """As LeRobot's `prepare_observation_for_inference` makes it of a robot's arrays."""
    frames = torch.from_numpy(np.stack([each["front"] for each in seen]))
    states = torch.from_numpy(np.stack([np.concatenate([each["arm"], each["gripper"]]) for each in seen]))
    images = (frames.type(torch.float32) / 255).permute(0, 3, 1, 2).contiguous()
    return {"observation.images.front": images, "observation.state": states, "task": "", "robot_type": ""}


def test_a_batch_is_acted_as_sessions_of_its_rows(policy: Policy) -> None:
    robots, sessions = LeRobotPolicy(policy, seed=3), [policy.session(3), policy.session(4)]
    seen = [observations(policy.schema, 5, seed) for seed in range(2)]
    for step, rows in enumerate(zip(*seen, strict=True)):
        if step == 3:
            robots.reset()
            for session in sessions:
                session.reset()
        wanted = [session.act(row) for session, row in zip(sessions, rows, strict=True)]
        np.testing.assert_array_equal(robots.select_action(batch(*rows)).numpy(), wanted)


def test_a_server_acts_as_the_policy_does(policy: Policy) -> None:
    running = Running(Server(policy, Settings(port=0)))
    session, seen = policy.session(7), observations(policy.schema, 9)
    try:
        robot = LeRobotPolicy(running.address, seed=7)
        plans = [session.plan(seen[0], executed=0), session.plan(seen[4], executed=4)]  # each is executed to its end
        for each, action in zip(seen, np.concatenate(plans), strict=False):
            np.testing.assert_array_equal(robot.select_action(batch(each)).numpy(), action[None])
        np.testing.assert_array_equal(robot.predict_action_chunk(batch(seen[8]))[0].numpy(), session.plan(seen[8]))
        with pytest.raises(GtpVisionError, match="one row of each to a server"):
            robot.select_action(batch(seen[0], seen[1]))
        robot.close()
    finally:
        running.end()


def test_states_are_found_by_their_names_or_split(policy: Policy) -> None:
    (seen,) = observations(policy.schema, 1)
    named = batch(seen) | {"observation.gripper": torch.from_numpy(seen["gripper"])[None]}
    named["observation.state"] = named["observation.state"][:, :5]  # the rest
    plan = policy.session().plan(seen)
    np.testing.assert_array_equal(LeRobotPolicy(policy).predict_action_chunk(named)[0].numpy(), plan)
    with pytest.raises(GtpVisionError, match=r"'observation.state' has 6 numbers, and the policy's states arm have 5"):
        LeRobotPolicy(policy).select_action(named | {"observation.state": batch(seen)["observation.state"]})
    with pytest.raises(GtpVisionError, match=r"'observation.images.front', the policy's front, is missing"):
        LeRobotPolicy(policy).select_action({"observation.state": named["observation.state"]})
