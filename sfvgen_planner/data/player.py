"""Play the episodes of a data set."""

from dataclasses import dataclass

from sfvgen_policies import Policy, make_policy

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.errors import SfvgenError


@dataclass(frozen=True)
class EpisodeTask:
    """One episode to play."""

    source: EpisodeSource
    seed: int


class EpisodePlayer:
    """Plays episodes of one environment id; keeps the environment from one to the next."""

    def __init__(self, env_id: str, frame_skip: int = 1, image_size: int | None = None) -> None:
        """Set what all episodes have in common; environments are made when first needed."""
        self.env_id = env_id
        self.frame_skip = frame_skip
        self.image_size = image_size
        self._source: EpisodeSource | None = None
        self._env: Environment | None = None
        self._policy: Policy | None = None

    def prepare(self, source: EpisodeSource) -> tuple[Environment, Policy]:
        """Return the environment and the policy of a source.

        Raises:
            SfvgenError: One of them does not exist or cannot be made.
        """
        if self._env is None or self._policy is None or source != self._source:
            self.close()
            self._env = self.make_env(source)
            try:
                self._policy = self.make_policy(source, self._env)
            except (ValueError, TypeError) as error:
                raise SfvgenError(f"cannot make the policy {source.policy!r}: {error}") from error
            self._source = source
        return self._env, self._policy

    def make_env(self, source: EpisodeSource) -> Environment:
        """Make the environment of a source; `prepare` keeps it."""
        return make_env(self.env_id, source.env_kwargs, self.frame_skip)

    def make_policy(self, source: EpisodeSource, env: Environment) -> Policy:
        """Make the policy of a source; a ValueError or TypeError says why it cannot be."""
        return make_policy(source.policy, env, **source.policy_kwargs)

    def play(self, task: EpisodeTask) -> Episode:
        """Play one episode."""
        env, policy = self.prepare(task.source)
        try:
            return record_episode(env, policy, task.seed, task.source, self.image_size)
        except SfvgenError as error:
            raise SfvgenError(
                f"{self.env_id}, policy {task.source.policy!r}, seed {task.seed}: {error}"
            ) from error

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
        self._env = self._policy = self._source = None
