"""One conversation of a teacher with the search environment, and what can be made of it.

The tool is called natively, or written and read as text where the endpoint takes none; what is kept has calls with ids of their
own, and each call's results together under its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from project.answers import cover_exact_match, exact_match, normalise_answer, token_f1
from project.dialects import Action, clean, get_dialect
from project.environment.search import EpisodeLimits, RetrieverTool, SearchEnvironment
from project.errors import RetrievalError
from project.records import Conversation, Episode, Message, Question, Row
from project.teacher.client import Failed, Refused, Reply, Sampling
from project.teacher.maker import LETTERS_A_TOKEN, Asker
from project.teacher.prompting import Prompt
from project.teacher.schemas import SchemaName, read_call, read_queries, search_tool
from project.traces.calls import split_calls

AGAIN = "The results do not say it, so I search again."
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Search(RetrieverTool):
    """The search tool of all attempts."""

    async def check(self) -> None:
        """Raise a `RetrievalError` where it is down."""
        await self.search(["test"], "check")


@dataclass(frozen=True)
class Acting:
    """How a teacher acts."""

    prompt: Prompt
    sampling: Sampling
    limits: EpisodeLimits
    tool: Search
    schema: SchemaName
    native: bool
    """Whether the endpoint takes tools and returns calls."""
    parallel: bool
    """Whether several calls of one turn stay together."""

    def told(self) -> Row:
        """Return what a manifest holds."""
        told: Row = {
            "schema": self.schema,
            "native_calls": self.native,
            "parallel_calls": self.parallel,
            "topk": self.tool.topk,
        }
        told |= {"max_turns": self.limits.max_turns, "result_tokens": self.limits.result_tokens, "prompt": self.prompt.told()}
        return told | self.sampling.told()


class Attempt:
    """One conversation of the teacher with the environment."""

    def __init__(self, how: Acting, question: Question, number: int, asker: Asker) -> None:
        self.how, self.question, self.number, self.asker = how, question, number, asker
        self.tools = (search_tool(how.schema),)
        dialect = get_dialect("tools")
        self.environment = SearchEnvironment(question, dialect, how.tool, how.limits, lambda text: len(text) // LETTERS_A_TOKEN)
        self.messages: list[Message] = []
        self.refused = ""
        """Why the endpoint took no request more: mostly one that is too long."""

    async def run(self) -> Attempt:
        """Let the teacher search until it answers, or may no more.

        Raises:
            Failed: the search tool failed.
        """
        state = self.environment
        _, asked = state.opening()
        self.messages = [Message("system", self._system_prompt()), asked]
        while state.finish is None:
            try:
                reply = await self._ask()
            except Refused as error:
                self.refused = str(error)
                return self
            message, action = self._read(reply)
            self.messages.append(message)
            following = await state.act(action, message, ended=reply.finish != "length")
            self.messages += self._answered(message, following)
        if state.finish.is_environment_failure:
            await self._check_tool()
        return self

    async def _check_tool(self) -> None:
        """Raise `Failed` where the tool is down; else this search alone has failed, and the attempt is what it is."""
        try:
            await self.how.tool.check()
        except RetrievalError as error:
            raise Failed(f"the search tool failed: {self.environment.error}") from error

    async def _ask(self) -> Reply:
        messages = self.messages if self.how.native else [in_text(message) for message in self.messages]
        told = [message.to_row() for message in messages]
        tools = self.tools if self.how.native else ()
        return await self.asker.ask(told, self.how.sampling, attempt=self.number, turn=self.environment.turns, tools=tools)

    def _system_prompt(self) -> str:
        if self.how.native:
            return self.how.prompt.text
        schema = json.dumps(self.tools[0]["function"])
        return (
            f"{self.how.prompt.text}\n\nThe tool: {schema}\nTo call it, write "
            '<tool_call>\n{"name": "search", "arguments": {…}}\n</tool_call> and nothing after it.'
        )

    def _read(self, reply: Reply) -> tuple[Message, Action]:
        """Return the teacher's message, its calls with ids that no other has, and what it does."""
        thought = reply.thoughts or self.environment.dialect.parse(reply.text).thought
        rows = [*reply.tool_calls, *map(_parsed, _CALL.findall(reply.text))]
        calls = [read_call(row, f"call_{self.environment.turns}_{i}") for i, row in enumerate(rows)]
        whole = [call for call in calls if call is not None and read_queries(call, self.how.schema)]
        text = _CALL.sub("", reply.text).strip()
        if reply.thoughts:
            text = f"<think>\n{clean(reply.thoughts)}\n</think>\n{text}".strip()
        if rows and len(whole) == len(rows):
            queries = tuple(query for call in whole for query in read_queries(call, self.how.schema))
            return Message("assistant", text, tuple(whole)), Action(thought, queries)
        written = "".join(f"\n<tool_call>\n{json.dumps(row)}\n</tool_call>" for row in rows)
        action = self.environment.dialect.parse(reply.text)
        return Message("assistant", text + written), Action(thought, (), None if rows else action.answer)

    def _answered(self, message: Message, following: Sequence[Message]) -> list[Message]:
        """Return what follows a turn, the results of each call together under its id."""
        if not message.tool_calls or not following:
            return [Message("user", one.content) for one in following]
        results, answered = [one.content for one in following], list[Message]()
        for call in message.tool_calls:
            count = len(read_queries(call, self.how.schema))
            answered.append(Message("tool", "\n\n".join(results[:count]), tool_call_id=call.id))
            del results[:count]
        return answered

    def can_follow(self, poor: Attempt) -> bool:
        """Whether it begins with a search that finds what another's first search, for something else, did not.

        Of answers that results never hold, such as yes and no, nothing can be said.
        """
        golds = [gold for gold in self.question.answers if normalise_answer(gold) not in ("yes", "no", "none")]
        mine, theirs = _first_search(self.messages), _first_search(poor.messages)
        if not golds or len(mine) < 2 or len(theirs) < 2 or not self.messages[2].tool_calls:
            return False
        if [call.arguments for call in mine[0].tool_calls] == [call.arguments for call in theirs[0].tool_calls]:
            return False
        found, missed = (any(cover_exact_match(m.content, golds) for m in shown[1:]) for shown in (mine, theirs))
        return found and not missed

    def after(self, poor: Attempt) -> Conversation:
        """Return the attempt as it would have gone after the first search of another, which found nothing of use."""
        first, *rest = self.messages[2:]
        thought, has_thought = first.content.removeprefix("<think>\n"), first.content.startswith("<think>\n")
        joint = " " if has_thought else "\n</think>\n"
        again = replace(first, content=f"<think>\n{AGAIN}{joint}{thought}".rstrip())
        messages = [*self.messages[:2], *_renamed(_first_search(poor.messages), "poor"), again, *rest]
        whole = self.conversation("")
        kept = messages if self.how.parallel else split_calls(messages)
        return replace(whole, messages=self._as_the_agents(kept), extra_info=whole.extra_info | {"retry": True})

    def conversation(self, reason: str) -> Conversation:
        """Return the attempt as a conversation, with what became of it."""
        state, question = self.environment, self.question
        info: Row = {"kind": question.kind, "evidence": list(question.evidence), "needs_search": question.needs_search}
        info |= {"attempt": self.number, "answer": state.answer, "searches": len(state.queries)}
        info |= {"em": exact_match(state.answer, question.answers), "f1": token_f1(state.answer, question.answers)}
        info |= {"reason": f"{reason}: {self.refused}" if self.refused else reason} if reason else {}
        messages = self.messages if self.how.parallel else split_calls(self.messages)
        said = self._as_the_agents(messages)
        return Conversation(question.id, said, self.tools, question.question, question.answers, question.group, info)

    def _as_the_agents(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return messages under the prompt that the agent will be asked with (trap 6), in place of the teacher's."""
        return (Message("system", self.environment.dialect.system_prompt()), *messages[1:])

    def episode(self) -> Episode:
        """Return the attempt as a judge takes it."""
        state = self.environment
        assert state.finish is not None
        return Episode(
            self.question, (), tuple(state.messages), state.finish, state.answer, tuple(state.queries), tuple(state.found)
        )


def _first_search(messages: Sequence[Message]) -> list[Message]:
    """Return the first turn that calls the tool, and its results; none where there is none."""
    number = next((i for i, message in enumerate(messages) if message.tool_calls), None)
    if number is None:
        return []
    return [messages[number], *takewhile(lambda message: message.role == "tool", messages[number + 1 :])]


def _renamed(messages: Sequence[Message], prefix: str) -> list[Message]:
    """Return messages whose calls have ids that begin with a prefix."""
    return [
        replace(
            message,
            tool_calls=tuple(replace(call, id=f"{prefix}_{call.id}") for call in message.tool_calls),
            tool_call_id=f"{prefix}_{message.tool_call_id}" if message.tool_call_id else "",
        )
        for message in messages
    ]


def in_text(message: Message) -> Message:
    """Return a message as a model without tools writes and reads it: calls in its text, results in the user's."""
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    calls = (json.dumps({"name": call.name, "arguments": call.arguments}) for call in message.tool_calls)
    text = "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)
    return replace(message, content=f"{message.content}{text}".strip(), tool_calls=())


def _parsed(text: str) -> Row:
    """Return a call that was written as text, or what can be said of one that is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"text": text.strip()}
