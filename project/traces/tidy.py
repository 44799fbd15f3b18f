"""Make every trace uniform, whichever reader it came from.

- An environment's verdict on the answer ("Episode finished, reward = 1", "Answer is INCORRECT") is never a step: it sets
  `correct` and is dropped, or the label leaks into the training text.
- The tags of the dialects are removed from thoughts, queries, answers and documents, so that none can speak as another.
- The results of one call are one step, and so are the thoughts before one action.
- A malformed step stays as `other`, with its raw text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from project.dialects import clean
from project.records import Document, Step, Trace
from project.traces.readers.observations import join_results

VERDICT = re.compile(
    r"^[ \t]*(?:Observation ?\d*: ?)?(?:Episode finished, reward = (?P<reward>True|False|[-+\d.eE]+)"
    r"|Answer is (?P<word>CORRECT|INCORRECT))\.?[ \t]*(?:\nCorrect answer: .*)?$",
    re.MULTILINE,
)


def tidy(trace: Trace) -> Trace:
    """Return the trace without verdicts and tags, with one step per call's results. Doing it twice changes nothing."""
    correct = next((v for v in map(_verdict, _texts(trace.steps)) if v is not None), trace.correct)
    steps = tuple(_merge(_join_calls(list(_cleaned(trace.steps)))))
    question = re.sub(r"^\s*Question:\s*", "", clean(trace.question)).strip()
    return replace(trace, question=question, steps=steps, correct=correct)


def _texts(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        yield from (step.content, step.error, *(document.content for document in step.documents))


def _verdict(text: str) -> bool | None:
    """Return what a text says of the answer. A reward of 1 is right; a part of it, as for one of two answers, is not."""
    match = VERDICT.search(text)
    if not match:
        return None
    if match["word"]:
        return match["word"] == "CORRECT"
    if match["reward"] in ("True", "False"):
        return match["reward"] == "True"
    try:
        return float(match["reward"]) >= 1.0
    except ValueError:
        return None


def _strip(text: str) -> str:
    return VERDICT.sub("", text).strip() if VERDICT.search(text) else text


def _cleaned(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps without verdicts and tags, but for those of which nothing is left."""
    for step in steps:
        if step.type == "search_result":
            found = [(document, _strip(document.content)) for document in step.documents]
            documents = tuple(
                replace(document, content=clean(text).strip(), title=clean(document.title).strip())
                for document, text in found
                if text or not document.content
            )
            error = clean(_strip(step.error)).strip()
            if documents or error or not (step.documents or step.error):
                yield replace(step, documents=documents, error=error)
        elif step.type == "search":
            queries = tuple(query for query in (clean(q).strip() for q in step.queries) if query)
            yield replace(step, tool=step.tool or "search", queries=queries) if queries else Step("other", str(step.queries))
        else:
            text = _strip(step.content)
            text = text if step.type == "other" else clean(text).strip()
            if step.type == "reasoning" and text.endswith('"') and text.count('"') % 2:
                text = text[:-1].rstrip()  # the quote that a query closed: `The query to search for is "<search>…`
            if text:
                yield replace(step, content=text)


def _join_calls(steps: list[Step]) -> list[Step]:
    """Join k searches of one tool followed by k results (parallel calls): one call, one result."""
    joined: list[Step] = []
    runs = _runs(steps)
    for position, run in enumerate(runs):
        after = runs[position + 1] if position + 1 < len(runs) else []
        before = runs[position - 1] if position else []
        if _parallel(run, after):
            joined.append(replace(run[0], queries=tuple(q for step in run for q in step.queries)))
        elif _parallel(before, run):
            joined.append(join_results(run))
        else:
            joined += run
    return joined


def _parallel(calls: list[Step], results: list[Step]) -> bool:
    return (
        len(calls) == len(results) > 1
        and all(step.type == "search" and len(step.queries) == 1 for step in calls)
        and len({step.tool for step in calls}) == 1
        and results[0].type == "search_result"
    )


def _runs(steps: list[Step]) -> list[list[Step]]:
    """Return the steps in runs of one type."""
    runs: list[list[Step]] = []
    for step in steps:
        if runs and runs[-1][0].type == step.type:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _merge(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps, consecutive thoughts as one and consecutive results as one."""
    for run in _runs(list(steps)):
        if run[0].type == "reasoning":
            yield Step("reasoning", "\n\n".join(step.content for step in run))
        elif run[0].type == "search_result":
            documents: tuple[Document, ...] = tuple(document for step in run for document in step.documents)
            yield Step("search_result", documents=documents, error="; ".join(step.error for step in run if step.error))
        else:
            yield from run
