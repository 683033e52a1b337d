"""Which prompt a view gets: the configuration's, else that of the model's row, else the repository's own.

A model without any prompt, of which no row says more, gets raw text; everything else that is not said is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from encoders.errors import TaskError, UnsupportedModelError
from encoders.family import INSTRUCTION, Family, Prompt
from encoders.tasks import (
    STANDARD_TASKS,
    Role,
    View,
    canonical_task,
    prompt_names,
    type_prompt_names,
)

# An instruction for every view that takes one, or one by task, or by task and role.
Instruction = str | Mapping[str, str | Mapping[Any, str]]


@dataclass(frozen=True)
class Prompts:
    """Everything that is known of one model's prompts.

    Attributes:
        model: What errors call the model.
        use: `none` embeds raw text, on purpose.
        configured: {task: {role: prompt}} of the configuration.
        instruction: What the configuration puts in the place that a row's prompts have for it.
        family: The model's row.
        declared: The repository's own prompts by name.
        default_name: The declared prompt that applies where no other does.
    """

    model: str
    use: Literal["auto", "none"]
    configured: Mapping[str, Mapping[Any, str]]
    instruction: Instruction | None
    family: Family | None
    declared: Mapping[str, str]
    default_name: str | None

    def of(self, view: View) -> Prompt:
        """The prompt of a view, empty where the model wants none.

        Raises:
            TaskError: The model has no such task, or wants an instruction for it, and none was given.
        """
        if view.task in self.configured:
            return self._stripped(self._configured(view))
        row = self._of_row(view)
        own = self._own(view)
        if self.use == "none" and (row or own is not None or view.task in STANDARD_TASKS):
            return Prompt()  # on purpose; but not for a task that nobody knows, which is rather a slip
        if row:
            return self._stripped(self._filled(row, view))
        if own is None and self.family is None:
            own = self._without_own_name(view)
        if own is None:
            raise TaskError(self._says_nothing(view))
        return Prompt(own)

    def is_raw(self, view: View) -> bool:
        """Whether a view gets raw text for the sole reason that nobody says anything of prompts."""
        silent = self.family is None and not any(self.declared.values())
        return silent and self.use == "auto" and view.task not in self.configured

    def check_instruction(self) -> None:
        """Refuse an instruction for which the model's prompts have no place, and a place that nothing fills.

        Raises:
            TaskError: There is no such place, or one where it would stay as it is, or the instruction is empty.
        """
        self._check_places()
        if self.instruction is None:
            return
        if self.family is None or not self.family.takes_instruction:
            raise TaskError(
                f"{self.model} takes no instruction: its prompts have no place for one; leave encoder.instruction out, "
                "or give whole prompts (encoder.prompts)"
            )
        named = list(_named_views(self.instruction, self.family))
        for view in named:
            text = _instruction_for(self.instruction, view)
            row = self._of_row(view)
            if row is None or INSTRUCTION not in row.prefix:
                raise TaskError(
                    f"{self.model} takes no instruction for {view}; it takes them for "
                    f"{', '.join(map(str, _instructed_views(self.family)))}"
                )
            if text is not None and not text.strip():
                raise TaskError(f"the instruction for {view} is empty; leave it out or say what to look for")
        unused = [str(view) for view in named if view.task in self.configured]
        if len(unused) == len(named) or (unused and not isinstance(self.instruction, str)):
            raise TaskError(
                f"encoder.instruction is given for {', '.join(unused)}, and encoder.prompts gives whole prompts there, "
                "in which it would not be used; leave one of the two out"
            )

    def check_name(self, name: str, view: View) -> None:
        """Refuse a task by a name under which the repository declares another prompt than the task has here.

        mteb's task types are names of the tasks, but some models tell them apart: EmbeddingGemma has a prompt of its
        own for `Summarization`, which is `text-matching` for all others.

        Args:
            name: What the task was called.
            view: What was understood.

        Raises:
            TaskError: Both prompts are named.
        """
        if name == view.task or view.task in self.configured or self.use == "none":
            return
        own = next(
            (self.declared[one] for one in type_prompt_names(name, view) if one in self.declared), None
        )
        ours = self.of(view).prefix
        if own is not None and own != ours:
            raise TaskError(
                f"{self.model}: {name} is a name of the task {view.task} here, for which its prompt is {ours!r}, and "
                f"its own files say {own!r} for {name}; say which is meant: the task {view.task}, or "
                f"encoder.prompts={{{view.task}: {{{view.role}: {own!r}}}}}"
            )

    def _check_places(self) -> None:
        """An instruction goes into the prefix of a row's prompt; elsewhere its place would be embedded as it stands."""
        for task, texts in self.configured.items():
            for role, text in texts.items():
                if INSTRUCTION in text:
                    raise TaskError(
                        f"encoder.prompts: {INSTRUCTION} in the prompt for {task}/{role} is not filled; write the "
                        f"instruction out there, or give the row: encoder.protocol={{prompts: {{{task}: ...}}}}"
                    )
        if self.family is None:
            return
        for task, rows in self.family.prompts.items():
            for role, row in rows.items():
                if INSTRUCTION in row.suffix:
                    raise TaskError(
                        f"encoder.protocol: {INSTRUCTION} in the suffix for {task}/{role} is not filled, only in the "
                        "prefix; write it out there"
                    )
        instructed = {view.task for view in _instructed_views(self.family)}
        if unused := [task for task in self.family.instructions if task not in instructed]:
            raise TaskError(
                f"encoder.protocol: instructions are given for {', '.join(unused)}, whose prompts have no "
                f"{INSTRUCTION} in them; write it there, or leave them out"
            )

    def check_declared(self) -> None:
        """Refuse a repository whose prompts are not those of its row.

        Raises:
            UnsupportedModelError: Both are named.
        """
        if self.family is None or not any(self.declared.values()):
            return  # empty prompts are what libraries write when nobody said anything
        for task, roles in self.family.prompts.items():
            for role, row in roles.items():
                view = View(task, role)
                own = self._own(view)
                default = self.family.instructions.get(task)
                if own is None or task in self.configured or (INSTRUCTION in row.prefix and default is None):
                    continue
                said = row.prefix.replace(INSTRUCTION, default or "")
                if own != said:
                    raise UnsupportedModelError(
                        f"{self.model}: for {view} its own files say the prompt {own!r}, and the row of "
                        f"{self.family.name} says {said!r}; find out which is right, then say it: "
                        f"encoder.prompts={{{task}: {{{', '.join(f'{side}: ...' for side in Role)}}}}}"
                    )

    def _configured(self, view: View) -> Prompt:
        prompts = self.configured[view.task]
        if view.role not in prompts:
            raise TaskError(
                f"encoder.prompts names the task {view.task!r} with {', '.join(prompts) or 'no role'}, "
                f"but not its role '{view.role}'; give that too ('' for no prompt)"
            )
        row = self._of_row(view)
        if row and row.suffix:
            raise TaskError(
                f"encoder.prompts says what stands before a text, and {self.model} also wants {row.suffix!r} behind it "
                f"for {view}; write both out: "
                f"encoder.protocol={{prompts: {{{view.task}: {{prefix: ..., suffix: ...}}}}}}"
            )
        return Prompt(prompts[view.role])

    def _of_row(self, view: View) -> Prompt | None:
        return self.family.prompts.get(view.task, {}).get(view.role) if self.family else None

    def _own(self, view: View) -> str | None:
        return next((self.declared[name] for name in prompt_names(view) if name in self.declared), None)

    def _filled(self, row: Prompt, view: View) -> Prompt:
        if INSTRUCTION not in row.prefix:
            return row
        assert self.family is not None
        text = _instruction_for(self.instruction, view) or self.family.instructions.get(view.task)
        if text is None:
            raise TaskError(
                f"{self.model} wants an instruction for {view}, and has no default; say what the vectors are for: "
                f"encoder.instruction={{{view.task}: {{{view.role}: '...'}}}}; it goes into {row.prefix!r}"
            )
        return Prompt(row.prefix.replace(INSTRUCTION, text), row.suffix)

    def _stripped(self, prompt: Prompt) -> Prompt:
        if self.family is None or self.family.strip == "none":
            return prompt
        return Prompt(prompt.prefix.strip(), prompt.suffix)

    def _without_own_name(self, view: View) -> str | None:
        """What applies to a standard task of which the repository has no prompt by name."""
        if view.task not in STANDARD_TASKS:
            return None
        if not any(self.declared.values()):
            return ""  # a model without any prompt: raw text is its protocol
        other_side = [name for name in prompt_names(view.opposite) if name in self.declared]
        if view.task == "retrieval" and other_side:
            # Only queries carry a prompt (BGE, Arctic): documents are bare, and a default is not for them.
            return "" if view.role == Role.DOCUMENT else None
        return None if self.default_name is None else self.declared[self.default_name]

    def _says_nothing(self, view: View) -> str:
        names = ", ".join(map(repr, self.declared)) or "none"
        row = (
            f", and the row of {self.family.name} has {', '.join(self.family.prompts)}" if self.family else ""
        )
        return (
            f"{self.model} has no prompt for {view}; it declares {names}{row}. Choose a task that it has, or give "
            f"the prompt: encoder.prompts={{{view.task}: {{{view.role}: '...'}}}}, or embed raw text on purpose: "
            "encoder.prompt=none (standard tasks: " + ", ".join(STANDARD_TASKS) + ")"
        )


def _instruction_for(instruction: Instruction | None, view: View) -> str | None:
    if instruction is None or isinstance(instruction, str):
        return instruction
    of_task = next((text for task, text in instruction.items() if canonical_task(task) == view.task), None)
    return of_task.get(view.role) if isinstance(of_task, Mapping) else of_task


def _named_views(instruction: Instruction, family: Family) -> Iterable[View]:
    """The views that an instruction names: all that take one, all of a task that do, or exactly these."""
    if isinstance(instruction, str):
        return _instructed_views(family)
    views: list[View] = []
    for name, of_task in instruction.items():
        task = canonical_task(name)
        if isinstance(of_task, Mapping):
            views += [View(task, Role(role)) for role in of_task]
        else:
            taking = [view for view in _instructed_views(family) if view.task == task]
            views += taking or [View(task, Role.QUERY)]
    return views


def _instructed_views(family: Family) -> list[View]:
    return [
        View(task, role)
        for task, roles in family.prompts.items()
        for role, prompt in roles.items()
        if INSTRUCTION in prompt.prefix
    ]
