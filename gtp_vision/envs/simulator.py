"""The interface of simulators, their registry, and the specification of an environment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.framing import Framing
from gtp_vision.core.registry import Registry
from gtp_vision.envs.rendering import Rendering, choose_backend, frames_checked
from gtp_vision.envs.tasks import Instructed, InTurns
from gtp_vision.envs.units import ActionUnits, with_policy_actions


@dataclass(frozen=True)
class EnvSpec:
    """Everything that is needed to make an environment, in this process or in another.

    Attributes:
        name: D4RL's, Gymnasium's (`Hopper-v4`, `gymnasium/MODULE:ID`), OGBench's, `robosuite` with or without `/NAME`,
            or of a simulator that a plug-in adds.
        rendering: quality of the frames.
        pixels: False makes the task with state observations (nothing is rendered).
        max_episode_steps: time limit; None takes the environment's own.
        collecting: the environment as OGBench's data were collected in: it never ends at a goal, and manipulation has
            one target after another.
        goals: the goal is observed (see `ogbench.GoalTasks`).
        env_args: the attribute of a robomimic file; robosuite's environment is made from it.
        shown: names and shapes of the data set's observations; an environment that has more shows only these.
        units: of the data set's actions; None: -1 and 1 are the environment's own bounds.
        frames: how the data set's frames were cropped and resized; the environment renders as it recorded them.
        success_reward: a step's reward that counts as success; None: success is what the environment's info says.
        camera: of OGBench's manipulation, which renders the frames; None is its own for pixels.
        instructions: text to vector (D,) of the tasks that a policy knows; None shows none.
    """

    name: str
    rendering: Rendering = field(default_factory=Rendering)
    pixels: bool = True
    max_episode_steps: int | None = None
    collecting: bool = False
    goals: bool = False
    env_args: Mapping[str, Any] | None = None
    shown: Mapping[str, tuple[int, ...]] | None = None
    units: ActionUnits | None = None
    frames: Framing | None = None
    success_reward: float | None = None
    camera: str | None = None
    instructions: Mapping[str, np.ndarray] | None = None

    @property
    def each(self) -> list[EnvSpec]:
        """The environments that take turns: of names with `+` between them, and of one that stands for several."""
        parts = [replace(self, name=name) for name in self.name.split("+")]
        return [replace(part, name=name) for part in parts for name in part.simulator.tasks(part.name) or [part.name]]

    @property
    def simulator(self) -> Simulator:
        """The simulator that makes environments of this name, or that has the most similar names."""
        simulators = SIMULATORS.values()
        matching = (simulator for simulator in simulators if simulator.matches(self.name))
        similar = (simulator for simulator in simulators if simulator.resembles(self.name))
        return next(matching, None) or next(similar)

    def make(self) -> gymnasium.Env:
        """Make one environment in this process, with actions in [-1, 1] (see `units`).

        Raises:
            GtpVisionError: an unknown name, a missing package, or a setting that the simulator does not have; actions
                that are not bounded real numbers, or in other units than the data set's.
        """
        for each in self.each:
            if self.goals and not each.simulator.has_goals:
                raise GtpVisionError(f"{each.name} has no observation of a goal; set task.goals=null")
        backend = choose_backend(required=False)
        with frames_checked():
            envs = {each.name: each.simulator.make(each) for each in self.each}
            env = InTurns(envs) if len(envs) > 1 else next(iter(envs.values()))
            if self.frames is not None:
                env = FramedObservations(env, self.frames)
            if self.instructions is not None:
                env = Instructed(env, self.name, self.instructions)
            if backend and "mujoco" in sys.modules and _shows_images(env.observation_space):
                choose_backend()  # its faults are found here, not at the first frame
        return with_policy_actions(env, self.units, self.name)


class FramedObservations(gymnasium.ObservationWrapper):
    """Crops and resizes the frames of an environment, also of the goal in the info of a reset."""

    def __init__(self, env: gymnasium.Env, framing: Framing) -> None:
        super().__init__(env)
        self._framing = framing
        spaces = env.observation_space
        if isinstance(spaces, gymnasium.spaces.Dict):
            self.observation_space = gymnasium.spaces.Dict({name: self._space(name, x) for name, x in spaces.items()})
        else:
            self.observation_space = self._space("camera", spaces)

    def observation(self, observation: Any) -> Any:
        """The observation, whose images are uint8 (H, W, C)."""
        if isinstance(observation, Mapping):
            return {name: self._shown(name, x) for name, x in observation.items()}
        return self._shown("camera", observation)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As of any environment."""
        observation, info = super().reset(**arguments)
        return observation, info | ({"goal": self.observation(info["goal"])} if "goal" in info else {})

    def _shown(self, name: str, value: Any) -> Any:
        return self._framing(name, value) if np.ndim(value) == 3 else value

    def _space(self, name: str, space: gymnasium.Space) -> gymnasium.Space:
        shape = space.shape or ()
        return gymnasium.spaces.Box(0, 255, self._framing.shape(name, shape), np.uint8) if len(shape) == 3 else space


def _shows_images(space: gymnasium.Space) -> bool:
    spaces = space.values() if isinstance(space, gymnasium.spaces.Dict) else (space,)
    return any(len(shown.shape or ()) == 3 for shown in spaces)


@dataclass(frozen=True)
class Simulator:
    """A simulator that the registry finds at the top of a file.

    Attributes:
        name: unique; without `is_own`, its environments are called `NAME` or `NAME/...`.
        make: specification to an environment with a time limit, whose actions are bounded real numbers in its own
            units. An episode depends on the seed of its reset alone. The info of a step has one of `core.success.KEYS`
            where success is defined.
        is_own: whether an environment's name belongs to this simulator.
        resembles: whether a name that belongs to no simulator is likely a mistyped one of this, whose `make` then says
            which names are similar.
        has_goals: whether `make` knows `EnvSpec.goals`.
        tasks: the names of the environments that a name stands for, such as those of a benchmark; none of other names.
        prepare: called in the main process before others make environments: what is missing is reported there.
        packages: distributions whose versions are recorded with results.
        elsewhere: returns versions of distributions in another Python that runs the simulator.
        state: (environment) to the simulator's state by name, all that later steps depend on; None: it has none.
        restore: (environment, recorded arrays of one row by name) puts an environment, after a reset, into a recorded
            state. The arrays are those that a data set holds of the simulator and the states that a policy sees, and
            may be more than are needed; for robosuite also `model`, the XML. Raises KeyError: one is missing.
    """

    name: str
    make: Callable[[EnvSpec], gymnasium.Env]
    is_own: Callable[[str], bool] | None = None
    resembles: Callable[[str], bool] = lambda name: False
    has_goals: bool = False
    tasks: Callable[[str], Sequence[str]] = lambda name: ()
    prepare: Callable[[EnvSpec], Any] = lambda spec: None
    packages: tuple[str, ...] = ()
    elsewhere: Callable[[], Mapping[str, str]] = dict
    state: Callable[[gymnasium.Env], dict[str, np.ndarray]] | None = None
    restore: Callable[[gymnasium.Env, Mapping[str, Any]], None] | None = None

    def matches(self, name: str) -> bool:
        """Whether an environment's name belongs to this simulator."""
        return self.is_own(name) if self.is_own else name.partition("/")[0] == self.name


SIMULATORS: Registry[Simulator] = Registry("gtp_vision.envs", "gtp_vision.envs", Simulator)
