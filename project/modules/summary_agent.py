"""`seeker test` of what a fold needs: writing a summary of what was read, and going on from one.

Each sample is a `summary_prefix` conversation (`seeker data phases`): what was said up to `<fold/>`, the reference summary,
and the expert's next turn. The model writes a summary of it, and three next turns: from its own summary (`own`), from the
reference (`given`), and from the whole context (`full`), whose difference is what folding costs.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from project.answers import exact_match, token_f1
from project.dialects import FOLD_REQUEST, Action, clean_summary
from project.environment.search import EpisodeLimits
from project.errors import InputError
from project.evaluation.summaries import score_summary
from project.modules.agent import SearchAgent
from project.modules.policy import AgentSettings
from project.ranks import gathered_or_raised, part_of, world
from project.records import Conversation, Message, Row
from project.rollouts.engines import EngineName
from project.rollouts.engines.protocol import Sampling
from project.rollouts.runner import together

FROM = ("own", "given", "full")
"""What a next turn is written from: the model's own summary, the reference, the whole context."""
SUMMARY_SCORES = (
    "summarised", "parts", "compression", "quoted", "unsupported", "answer_kept", "rouge_l",
    *(f"{start}_{metric}" for start in FROM for metric in ("em", "f1", "action", "tokens")), "own_lost_f1", "given_lost_f1",
)  # fmt: skip
"""The last two are what answering from a summary loses of the F1 from the whole context."""


@dataclass(frozen=True)
class Folded:
    """A `summary_prefix` conversation, taken apart."""

    conversation: Conversation
    opening: tuple[Message, ...]
    context: tuple[Message, ...]
    """The turns and results between the opening and `<fold/>`."""
    reference: str
    """The summary of the file."""
    target: Action
    """The expert's next turn."""


class SummaryAgent(SearchAgent):
    """Measures a model on `summary_prefix` conversations; its options are `SearchAgent`'s, without a search."""

    task = "summary"

    def __init__(
        self,
        model_path: str | None = None,
        settings: AgentSettings | None = None,
        engine: EngineName = "vllm",
        limits: EpisodeLimits = EpisodeLimits(max_turns=1, context_tokens=2048),  # noqa: B008 - frozen
        eval_temperature: float = 0.0,
        servers: list[str] | None = None,
        engine_memory: float | None = None,
    ) -> None:
        """Take what to run and how.

        Args:
            model_path: folder or hub id; the embedded SmolLM2-135M-Instruct by default.
            settings: dialect and history; those stored in the model folder by default.
            engine: `vllm` in process, `servers` of vLLM that run already, or `transformers`.
            limits: tokens of a summary, a turn and a context; of `max_turns` there is one.
            eval_temperature: of sampling; 0 = greedy.
            servers: addresses of vLLM servers for `engine: servers`.
            engine_memory: share of a GPU's memory that vLLM in process takes; by default vLLM's own, 0.9.
        """
        super().__init__(
            model_path,
            settings,
            engine=engine,
            limits=replace(limits, max_turns=1),
            eval_temperature=eval_temperature,
            servers=servers,
            engine_memory=engine_memory,
        )
        self.measure(SUMMARY_SCORES)

    def _episodes_at_once(self) -> int:
        """Return how many turns this rank writes at once, at most."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return len(FROM) * -(-int(data.eval_batch) // world()[1])

    def test_step(self, batch: list[Conversation], batch_idx: int) -> None:  # type: ignore[override]
        """Write the batch's summaries and next turns, each rank its part."""
        del batch_idx
        mine, rows = part_of(len(batch)), list[Row]()
        gathered_or_raised(lambda: rows.extend(self._written(batch[mine])))
        for row in rows:
            self.take(row, counts=not row["too_long"])
        self.write(rows)

    def _written(self, conversations: Sequence[Conversation]) -> list[Row]:
        async def all_of_them() -> list[Row]:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            samples = (self._sample(self._taken_apart(one)) for one in conversations)
            return await together(samples, -(-int(data.eval_batch) // world()[1]))

        return asyncio.run(all_of_them())

    def _taken_apart(self, conversation: Conversation) -> Folded:
        """Return the parts of a conversation.

        Raises:
            InputError: it is no `summary_prefix` conversation of this dialect.
        """
        messages = conversation.messages
        asks = next((i for i, m in enumerate(messages) if m.role == "user" and m.content == FOLD_REQUEST), None)
        start = len(self.dialect.opening(conversation.question))
        if asks is None or len(messages) != asks + 4 or asks <= start:
            raise InputError(
                f"conversation '{conversation.id}' is no summary_prefix sample (context, {FOLD_REQUEST}, summary, question, "
                "next turn); give a set summary_prefix of seeker data phases"
            )
        summary, target = (self._read(message) for message in (messages[asks + 1], messages[-1]))
        if summary.summary is None or target.is_malformed:
            raise InputError(f"conversation '{conversation.id}' is not of the dialect {self.settings.dialect}; prepare it so")
        return Folded(conversation, messages[:start], messages[start:asks], summary.summary, target)

    def _read(self, message: Message) -> Action:
        return self.dialect.parse(self.renderer.turn(message).text.removesuffix(self.renderer.end_text))

    async def _sample(self, folded: Folded) -> Row:
        """Return the texts and scores of one sample; all scores are NaN where the context leaves no room."""
        one, numbers = folded.conversation, count(_seed(folded.conversation.id))
        messages = [*folded.opening, *folded.context, Message("user", FOLD_REQUEST)]
        whole = self._prompt(messages)
        room = self.limits.context_tokens - max(self.limits.summary_tokens, self.limits.turn_tokens)
        if len(whole) > room:
            return _row(folded, messages, "", {}, dict.fromkeys(SUMMARY_SCORES, math.nan)) | {"too_long": True}
        said = await self._turn(whole, self.limits.summary_tokens, next(numbers))
        summary = clean_summary(self.dialect.parse(said).summary or "")
        starts = {
            "own": self.dialect.opening(one.question, summary) if summary else None,
            "given": self.dialect.opening(one.question, folded.reference),
            "full": [*folded.opening, *folded.context],
        }
        prompts = {name: self._prompt(messages) if messages else None for name, messages in starts.items()}
        fits = {name: prompt for name, prompt in prompts.items() if prompt and len(prompt) <= room}
        turns = await asyncio.gather(*(self._turn(p, self.limits.turn_tokens, next(numbers)) for p in fits.values()))
        texts = dict(zip(fits, turns, strict=True))
        context = [message.content for message in folded.context]
        tokens = len(self.renderer.encode(summary)), len(self.renderer.encode("\n".join(context)))
        scores = score_summary(summary, context, one.question, one.answers, folded.reference, tokens)
        for name in FROM:
            scores |= _score_turn(name, self.dialect.parse(texts.get(name, "")), folded)
        scores |= {f"{name}_tokens": float(len(p)) if p else math.nan for name, p in prompts.items()}
        scores |= {f"{name}_lost_f1": scores["full_f1"] - scores[f"{name}_f1"] for name in ("own", "given")}
        row = _row(folded, [*messages, Message("assistant", said)], said, texts, scores)
        return row | {"prediction": self.dialect.parse(texts.get("own", "")).answer}

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens before a turn, rendered as in training: earlier turns stand as they were written."""
        turn = Message("assistant", ".")
        pieces = self.renderer.chain(Conversation("", (*messages, turn), self.dialect.tools))
        return self.renderer.encode("".join(piece.text for piece in pieces[:-1]))

    async def _turn(self, prompt: list[int], tokens: int, seed: int) -> str:
        assert self._engine is not None
        sampling = Sampling(self.eval_temperature, tokens, (self.renderer.end_id,), seed % (1 << 62))
        return self.renderer.decode((await self._engine.generate(prompt, sampling)).ids)

    def on_test_epoch_end(self) -> None:
        """Log the means with intervals that resample questions, of which a trace gives several samples; keep every row.

        Raises:
            InputError: no context is short enough.
        """
        if not self.report("test", "too_long"):
            raise InputError(
                f"all contexts are longer than limits.context_tokens={self.limits.context_tokens} leaves room for; raise it"
            )


def _row(
    folded: Folded, messages: Sequence[Message], summary: str, turns: Mapping[str, str], scores: Mapping[str, float]
) -> Row:
    """Return a sample's row: what was said, up to the summary, the turns that followed, and the scores in one order."""
    one = folded.conversation
    return {
        "question_id": one.id,
        "group": one.group or one.id,
        "kind": "search" if folded.target.answer is None else "answer",
        "sample": 0,
        "question": one.question,
        "answers": list(one.answers),
        "prediction": None,
        "too_long": False,
        "messages": [message.to_row() for message in messages],
        "summary": summary,
        "reference": folded.reference,
        **{f"{name}_turn": turns.get(name, "") for name in FROM},
        **{name: scores[name] for name in SUMMARY_SCORES},
    }


def _score_turn(name: str, turn: Action, folded: Folded) -> dict[str, float]:
    """Return whether a turn does what the expert did, and where that was to answer, how right it is."""
    target, answers = folded.target, folded.conversation.answers
    is_last = target.answer is not None
    acts = turn.answer is not None if is_last else bool(turn.queries)
    return {
        f"{name}_action": float(acts),
        f"{name}_em": exact_match(turn.answer, answers) if is_last else math.nan,
        f"{name}_f1": token_f1(turn.answer, answers) if is_last else math.nan,
    }


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) * 16
