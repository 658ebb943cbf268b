"""The `data:` section of a recipe: which episodes a model is trained on."""

import json
import os
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.errors import SfvgenError

Model = TypeVar("Model")


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The sections of a YAML recipe.

    Raises:
        SfvgenError: The file cannot be read, or is no YAML with sections.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SfvgenError(f"cannot read the recipe {path}: {error}") from error
    values = parsed_yaml(text, f"cannot read the recipe {path}")
    if not isinstance(values, dict):
        raise SfvgenError(f"the recipe {path} has no sections; see recipes/ for examples")
    return values


def parsed_yaml(text: str, wrong: str) -> Any:
    """The value of a YAML text; where it is none, the refusal begins with `wrong`."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML lets pass whatever Python makes of a thirteenth month or of `!!int x`.
        raise SfvgenError(f"{wrong}: {' '.join(str(error).split())}") from error


def validated(model: type[Model], values: object, where: str) -> Model:
    """Check `values` and make a `model` of them.

    Args:
        model: A pydantic model, or a dataclass.
        values: Parsed YAML, or keyword arguments.
        where: What an error message names as the place of the mistake.

    Raises:
        SfvgenError: A value is missing, unknown or out of range.
    """
    try:
        return TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise SfvgenError(f"{place}: {first['msg']}") from error


class DataSource(BaseModel):
    """A number of episodes of one policy in one environment; episode i has seed `seed + i`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env_id: str
    policy: str
    episodes: Annotated[int, Field(ge=1, le=10_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)

    def episode_source(self) -> EpisodeSource:
        """Return what each episode of this source is stored with."""
        return EpisodeSource(self.policy, self.policy_kwargs, self.env_kwargs)

    @property
    def seeds(self) -> range:
        """The seeds of its episodes."""
        return range(self.seed, self.seed + self.episodes)

    @field_validator("env_kwargs", "policy_kwargs")
    @classmethod
    def _as_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Bring the values to the form in which the store gives them back."""
        try:
            return cast(dict[str, Any], json.loads(json.dumps(value)))
        except TypeError as error:
            raise ValueError(f"only JSON values can be stored, but {error}") from error


class DataRecipe(BaseModel):
    """All that `sfvgen collect` needs to know; the sources follow each other in the store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[list[DataSource], Field(min_length=1)]
    frame_skip: Annotated[int, Field(ge=1)] = 1
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None

    @model_validator(mode="after")
    def _one_env(self) -> Self:
        env_ids = sorted({source.env_id for source in self.sources})
        if len(env_ids) > 1:
            raise ValueError(f"all sources must have the same env_id, but they have {env_ids}")
        return self

    @model_validator(mode="after")
    def _no_episode_twice(self) -> Self:
        for (i, one), (j, other) in combinations(enumerate(self.sources), 2):
            overlap = range(max(one.seed, other.seed), min(one.seeds.stop, other.seeds.stop))
            if overlap and one.episode_source() == other.episode_source():
                raise ValueError(
                    f"sources {i} and {j} have the same episodes, of the seeds {overlap.start} to "
                    f"{overlap.stop - 1}; give the second another seed"
                )
        return self

    @property
    def env_id(self) -> str:
        """The Gymnasium id of all sources."""
        return self.sources[0].env_id

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the section `data` of a YAML recipe.

        Raises:
            SfvgenError: The file cannot be read, is no YAML, or its section `data` is wrong.
        """
        values = read_recipe(path)
        if "data" not in values:
            raise SfvgenError(f"the recipe {path} has no section `data:` with a list of sources")
        return validated(cls, values["data"], f"{path}: data")
