"""`seeker data distill`: questions to multi-turn conversations in which a teacher searches, by rejection sampling.

The teacher acts in the environment that agents are trained in (`environment/search.py`), the search tool called natively or
written as `<tool_call>`. Of several attempts at a question those are kept that answer it; the others go into a file of their
own, each with the reason: an answer that is wrong, none, a call that cannot be read. With `retry_share` some conversations
begin with the search of a failed attempt that found nothing of use, so that a model learns to search again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from project.answers import cover_exact_match, exact_match, token_f1
from project.corpus.engines.http import TOKEN, HttpRetriever
from project.corpus.index import MANIFEST
from project.corpus.serving.handle import ServerHandle
from project.environment.search import EpisodeLimits
from project.errors import InputError
from project.files import file_digest
from project.records import FinishReason, Question, Row
from project.rewards.judge import Judge
from project.streams import Made, as_paths
from project.teacher.attempts import Acting, Attempt, Search
from project.teacher.client import Sampling, Teacher
from project.teacher.jobs import do
from project.teacher.journal import key_of
from project.teacher.maker import Asker, Job, Maker
from project.teacher.prompting import PROMPTS, Prompt
from project.teacher.schemas import SchemaName
from project.writing import path_beside

Keep = Literal["em", "f1", "cover_em", "judge", "any"]
RETRIES = "retries"
"""What could stand in a conversation's place; never written as it is."""


@dataclass(frozen=True)
class Distilling:
    """How conversations are made and kept."""

    acting: Acting
    attempts: int
    keep: Keep
    most: int
    least_f1: float
    judge: Judge | None
    retry_share: float

    def told(self) -> Row:
        """Return what a manifest holds."""
        told = {name: getattr(self, name) for name in ("attempts", "keep", "most", "least_f1", "retry_share")}
        if self.judge is not None:
            judged = (self.judge.model, self.judge.base_url, self.judge.max_words, self.judge.max_tokens)
            told |= {"judge": [*judged, file_digest(self.judge.prompt_file)]}
        return told | self.acting.told()


def distill(
    input_file: list[Path] | Path,
    output_file: Path,
    retrieval_url: str | None = None,
    index: Path | None = None,
    teacher: Teacher = Teacher(),  # noqa: B008 - frozen
    vllm_url: str | None = None,
    max_assistant_turns: int = 3,
    max_samples: int = -1,
    batch_size: int | None = None,
    temperature: float = 0.7,
    max_tokens: int = 2048,
    top_p: float = 1.0,
    topk: int = 3,
    result_tokens: int = 1200,
    attempts: int = 1,
    keep: Keep = "em",
    most: int = 1,
    least_f1: float = 0.6,
    schema: SchemaName = "query",
    native_calls: bool = True,
    parallel_calls: bool = True,
    judge: Judge | None = None,
    retry_share: float = 0.0,
    prompt_file: Path = PROMPTS / "distill.txt",
    seed: int = 0,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Have a teacher answer questions with the search tool, and keep the conversations that answer them.

    Args:
        input_file: one or several question files, or files in verl's layout (prompt, reward_model.ground_truth.target).
        output_file: the conversations to write (.jsonl, .jsonl.gz or .parquet); beside it NAME_failed gets the others, and
            NAME_questions the questions with a kept one, for reinforcement learning.
        retrieval_url: address of a running seeker serve retrieval, or another that speaks so.
        index: a folder of seeker index build to search in, instead of retrieval_url.
        teacher: whom to ask, and how fast.
        vllm_url: address of a vLLM server; the same as teacher.base_url.
        max_assistant_turns: turns of the teacher in a conversation, the answer included.
        max_samples: use only so many questions, from the first on; -1 uses all.
        batch_size: requests in flight; the same as teacher.max_concurrent.
        temperature: of sampling; 0 = greedy.
        max_tokens: tokens of one turn.
        top_p: of sampling.
        topk: documents a search returns, at most.
        result_tokens: tokens of results that a turn is shown, counted as four letters each.
        attempts: tries at each question, until `most` are kept.
        keep: what an answer must do to be kept: em, cover_em, f1 (at least least_f1), judge, or any to be one at all.
        most: conversations kept of a question, at most.
        least_f1: the F1 from which an answer is kept.
        schema: the tool's argument: query (one), query_list, or queries (several under the name query).
        native_calls: the endpoint takes tools and returns calls; false has the teacher write <tool_call> in its text.
        parallel_calls: keep several calls of one turn together; false puts each into a turn of its own.
        judge: a model that says which answers are right, for --keep judge.
        retry_share: share of the kept conversations that are to begin with a failed attempt's search, where there are so many;
            it wants several attempts.
        prompt_file: the teacher's system prompt; conversations are kept under the one that agents are asked with.
        seed: of the teacher's sampling.
        strict: stop at the first row that is no question, instead of listing it in OUTPUT.rejected.jsonl.
        force: replace outputs that were made otherwise.
        dry_run: show the first request and what the job may cost, and ask nothing.
        yes: begin though it may cost more than teacher.most_price.
    """
    if (retrieval_url is None) == (index is None):
        raise InputError("give one of --retrieval_url, a running server, and --index, a folder of seeker index build")
    if (keep == "judge") != (judge is not None):
        raise InputError(f"--keep is {keep}, and --judge is {'given' if judge else 'missing'}; give both or neither")
    if attempts < 1 or most < 1:
        raise InputError(f"--attempts is {attempts} and --most {most}; give at least 1")
    if not 0 <= retry_share <= 1 or (retry_share and attempts == 1):
        raise InputError(
            f"--retry_share is {retry_share} and --attempts {attempts}; give a share from 0 to 1, and several attempts"
        )
    teacher = _named(teacher, vllm_url, batch_size)
    limits = EpisodeLimits(max_turns=max_assistant_turns, result_tokens=result_tokens)
    prompt = Prompt.read(prompt_file)
    sampling = Sampling(temperature, max_tokens, top_p)
    beside = {name: path_beside(output_file, name) for name in ("failed", "questions")}
    outputs = {"conversations": output_file, **beside}
    if retrieval_url is not None and "@" in retrieval_url:
        raise InputError(f"--retrieval_url holds a name or a key, which manifests would show; give {TOKEN} in the environment")
    with _retrieval(retrieval_url, index, dry_run=dry_run) as url:
        acting = Acting(prompt, sampling, limits, Search(HttpRetriever(url), topk), schema, native_calls, parallel_calls)
        how = Distilling(acting, attempts, keep, most, least_f1, judge, retry_share)
        searched = retrieval_url or f"{index}@{file_digest(Path(str(index)) / MANIFEST)}"
        settle = partial(mix_retries, retry_share, seed) if retry_share else None
        parameters = how.told() | {"retrieval": searched}
        maker = Maker("seeker data distill", 1, partial(_distill, how), parameters, settle, acting.tool)
        rows = None if max_samples < 0 else max_samples
        do(maker, Job(as_paths(input_file), outputs, teacher, seed, strict, force, dry_run, yes, most_rows=rows))


def _named(teacher: Teacher, vllm_url: str | None, batch_size: int | None) -> Teacher:
    """Return the teacher with what was told by other names."""
    if vllm_url is not None:
        address = vllm_url.rstrip("/")
        teacher = replace(teacher, base_url=address if address.endswith("/v1") else f"{address}/v1")
    return teacher if batch_size is None else replace(teacher, max_concurrent=batch_size)


@contextmanager
def _retrieval(url: str | None, index: Path | None, *, dry_run: bool) -> Iterator[str]:
    if index is None or dry_run:
        yield url or "http://127.0.0.1"
        return
    with ServerHandle(index) as server:
        yield server.url


# --- one question ------------------------------------------------------------------------------------------------------


def read_question(row: Row) -> Question:
    """Read a question row, or one in verl's layout."""
    if "reward_model" not in row:
        return Question.from_row(row)
    info = row.get("extra_info") or {}
    target = row["reward_model"]["ground_truth"]["target"]
    said = next(message["content"] for message in reversed(row["prompt"]) if message["role"] == "user")
    question = str(info.get("question") or said.removeprefix("Question:").strip())
    ident = f"{row.get('data_source') or 'row'}/{info.get('split') or ''}/{info.get('index', question)}"
    return Question(ident, question, tuple([target] if isinstance(target, str) else target))


async def _distill(how: Distilling, row: Row, asker: Asker, made: Made) -> None:
    question = read_question(row)
    seen, failed, kept = set[str](), list[Attempt](), list[Attempt]()
    for number in range(how.attempts):
        attempt = await Attempt(how.acting, question, number, asker).run()
        reason = await _why_not(how, attempt)
        said = json.dumps([message.to_row() for message in attempt.messages[2:]])
        if said in seen:
            made.counts["attempts that say what one before them said"] += 1
            continue
        seen.add(said)
        made.counts[f"attempts: {reason or 'kept'}"] += 1
        made.put("failed" if reason else "conversations", attempt.conversation(reason).to_row(), same_id="rename")
        (failed if reason else kept).append(attempt)
        if len(kept) == how.most:
            break
    made.counts["questions answered" if kept else "questions without a kept conversation"] += 1
    if kept:
        made.put("questions", question.to_row(), same_id="rename")
    poor = next((attempt for attempt in failed if kept and kept[0].can_follow(attempt)), None)
    if how.retry_share and poor is not None:
        made.put(RETRIES, kept[0].after(poor).to_row())


def mix_retries(share: float, seed: int, made: Iterable[Made]) -> Callable[[Made], Made]:
    """Return a function that puts retries in the place of conversations, drawn by the seed, until they are `share` of all."""
    kept, found = 0, set[str]()
    for one in made:
        kept += len(one.rows.get("conversations", ()))
        found |= {str(row["id"]) for row in one.rows.get(RETRIES, ())}
    wanted, able = round(share * kept), sorted(found, key=lambda ident: key_of(seed, ident))
    chosen = set(able[:wanted])

    def mix(one: Made) -> Made:
        [retry] = one.rows.pop(RETRIES, [None])
        one.marks.pop(RETRIES, None)
        if retry is not None and retry["id"] in chosen:
            one.rows["conversations"][0] = retry
            one.counts["conversations that search again after a poor result"] += 1
        return one

    return mix


async def _why_not(how: Distilling, attempt: Attempt) -> str:
    """Return why an attempt is not kept; empty where it is."""
    state, golds = attempt.environment, attempt.question.answers
    if attempt.refused:
        return "the request was refused"
    if state.finish is not FinishReason.ANSWER or state.answer is None:
        return str(state.finish)
    if state.malformed:
        return "a turn that could not be read"
    if how.keep == "f1":
        right = token_f1(state.answer, golds) >= how.least_f1
    elif how.keep == "judge":
        assert how.judge is not None
        [judged] = await asyncio.to_thread(how.judge.judged, [attempt.episode()])
        right = judged.verdict == 1.0
    else:
        right = how.keep == "any" or bool({"em": exact_match, "cover_em": cover_exact_match}[how.keep](state.answer, golds))
    return "" if right else "wrong answer"
