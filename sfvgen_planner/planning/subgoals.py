"""Splitting a goal into instructions: a task's own list, or a language model."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.planning.chat_endpoint import ChatEndpoint, Message

logger = logging.getLogger(__name__)


class Subgoals(Protocol):
    """Splits a goal, in words, into instructions to follow one after another."""

    def __call__(self, goal: str, frame: np.ndarray | None = None) -> list[str]:
        """At least one instruction; ``frame`` ``(H, W, 3)`` uint8 shows the present moment."""


class ListedSubgoals:
    """The task's own list.

    Args:
        instructions: of each goal, in order.

    Raises:
        SfvgenError: a goal has no instructions or an empty one; or, when called, there is no such
            goal.

    Example:
        >>> subgoals = ListedSubgoals({"tidy up": ["close the box", "put the box on the shelf"]})
        >>> subgoals("tidy up")
        ['close the box', 'put the box on the shelf']
    """

    def __init__(self, instructions: Mapping[str, Sequence[str]]) -> None:
        for goal, listed in instructions.items():
            require(
                not isinstance(listed, str) and len(listed) > 0 and all(listed),
                f"the subgoals of {goal!r} must be a list of instructions, none of them empty, "
                f"got {listed!r}",
            )
        self.instructions = {goal: list(listed) for goal, listed in instructions.items()}

    def __call__(self, goal: str, frame: np.ndarray | None = None) -> list[str]:
        """The instructions of ``goal``."""
        if goal not in self.instructions:
            raise SfvgenError(
                f"there is no list of subgoals for {goal!r}; there are lists for "
                f"{sorted(self.instructions)}"
            )
        return list(self.instructions[goal])


@dataclass(frozen=True)
class LanguageModelConfig:
    """Settings of :class:`LanguageModelSubgoals`.

    Attributes:
        max_subgoals: the longest list that is taken.
        num_retries: how often the model is told what is wrong with its answer and asked again.
        show_frame: send the present frame as a picture, for models that see.
    """

    max_subgoals: int = 8
    num_retries: int = 2
    show_frame: bool = False

    def __post_init__(self) -> None:
        require_count("max_subgoals", self.max_subgoals)
        require_count("num_retries", self.num_retries, least=0)


class LanguageModelSubgoals:
    """A language model splits the goal (paper, section 3.4), and what it answers is checked.

    Args:
        endpoint: where the model answers.
        instructions: what the robot understands, sentence by sentence, or patterns with gaps in
            angle brackets, such as ``"put the <colour> cube on the <colour> pad"``; told to the
            model.
        is_allowed: whether an instruction is one that the robot understands; needed for patterns.
            By default it must be one of ``instructions``.
        config: limits.

    Raises:
        SfvgenError: nothing says what the robot understands; or, when called, the goal is empty,
            the endpoint fails (see :meth:`ChatEndpoint.ask`), or no answer was usable.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        instructions: Sequence[str],
        is_allowed: Callable[[str], bool] | None = None,
        config: LanguageModelConfig | None = None,
    ) -> None:
        require(
            not isinstance(instructions, str) and len(instructions) > 0 and all(instructions),
            "instructions must be a list of what the robot understands, none of it empty, "
            f"got {instructions!r}",
        )
        self.endpoint = endpoint
        self.instructions = list(instructions)
        self.is_allowed = is_allowed or frozenset(instructions).__contains__
        self.config = config or LanguageModelConfig()

    def __call__(self, goal: str, frame: np.ndarray | None = None) -> list[str]:
        """The model's instructions for ``goal``."""
        require(bool(goal.strip()), "a goal in words is needed to split it, got an empty one")
        conversation = self._question(goal, frame)
        complaint = ""
        for _ in range(1 + self.config.num_retries):
            answer = self.endpoint.ask(conversation)
            try:
                subgoals = self._checked(answer)
            except SfvgenError as error:
                complaint = str(error)
                logger.warning("%s: %s; %r", self.endpoint.model, complaint, answer[:200])
            else:
                logger.info("%r is split into %s", goal, subgoals)
                return subgoals
            conversation = [
                *conversation,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": f"Not usable: {complaint}. Answer again."},
            ]
        raise SfvgenError(
            f"the language model {self.endpoint.model} gave no usable subgoals for {goal!r} in "
            f"{1 + self.config.num_retries} answers, at last because {complaint}; reword the goal, "
            "or take a stronger model"
        )

    def _question(self, goal: str, frame: np.ndarray | None) -> list[Message]:
        understood = "\n".join(f"- {instruction}" for instruction in self.instructions)
        task = (
            "You split the goal of a robot into instructions that it follows one after another. "
            "It understands nothing but the following, with anything in <angle brackets> filled "
            f"in:\n{understood}\n"
            f"Answer with a JSON list of 1 to {self.config.max_subgoals} strings, the instructions "
            "in their order, and with nothing else."
        )
        content: str | list[Message] = f"Goal: {goal}"
        if self.config.show_frame and frame is not None:
            picture = {"type": "image_url", "image_url": {"url": _data_url(frame)}}
            content = [{"type": "text", "text": content}, picture]
        return [{"role": "system", "content": task}, {"role": "user", "content": content}]

    def _checked(self, answer: str) -> list[str]:
        """The instructions of an answer; raises what is wrong with it, as the model is told it."""
        fenced = re.fullmatch(r"\s*```(?:json)?\s(.*)```\s*", answer, re.DOTALL)
        try:
            subgoals = json.loads(fenced[1] if fenced else answer)
        except (ValueError, RecursionError):
            raise SfvgenError("the answer is not JSON alone") from None
        is_list = isinstance(subgoals, list) and all(isinstance(each, str) for each in subgoals)
        require(is_list, "the answer is not a JSON list of strings")
        subgoals = [each.strip() for each in subgoals]
        count, most = len(subgoals), self.config.max_subgoals
        require(1 <= count <= most, f"the list has {count} instructions, not 1 to {most}")
        require(all(subgoals), "an instruction is empty")
        unknown = [each for each in subgoals if not self.is_allowed(each)]
        require(not unknown, f"the robot does not understand {json.dumps(unknown)}")
        return subgoals


def _data_url(frame: np.ndarray) -> str:
    """A picture ``(H, W, 3)`` uint8 as the PNG of a ``data:`` address."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
