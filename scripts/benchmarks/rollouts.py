"""Rollouts against vLLM with nothing but the same prompts, and what vLLM, its prefix cache and concurrency each give.

    python scripts/benchmarks/rollouts.py --model lightning_logs/runs/learning-sft/merged --index data/learning/index \
        --questions data/learning/facts/questions_train.jsonl --output_file rollouts.json

Ways, each in a process of its own, its figure the median of `--rounds`:

- `seeker`: all episodes at once on vLLM in process, against a live retrieval server;
- `plain`: in the same process and rounds, `LLM.generate` of as many tokens from the same prompts (those of all turns at once),
  with no environment: the most that the engine gives;
- `no-cache`: `seeker` without vLLM's prefix cache; `one-by-one`: `seeker`, an episode at a time;
- `generate`: transformers' `generate` on all episodes together, turn by turn, each turn waiting for the slowest.

A rate is of generated tokens. `idle` is the share of the time in which no turn was being written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from project.runtime import prepare_process, start_with_tcmalloc

if __name__ == "__main__":
    start_with_tcmalloc()
prepare_process()

from project.corpus.engines.http import HttpRetriever  # noqa: E402
from project.corpus.serving.handle import ServerHandle  # noqa: E402
from project.environment.search import EpisodeLimits, RetrieverTool, SearchEnvironment  # noqa: E402
from project.files import read_records  # noqa: E402
from project.modules.policy import AgentSettings, load_tokenizer  # noqa: E402
from project.modules.ppo_health import generating_seconds  # noqa: E402
from project.records import Episode, Question  # noqa: E402
from project.rendering import Renderer  # noqa: E402
from project.rollouts.engines.vllm import VLLMEngine  # noqa: E402
from project.rollouts.runner import LEAST_TOKENS, EpisodeRunner  # noqa: E402

WAYS = ("seeker", "no-cache", "one-by-one", "generate")
LIMITS = EpisodeLimits()
Figures = dict[str, float]


def figures(tokens: int, seconds: float, **more: float) -> Figures:
    """Return a round's figures."""
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, **more}


def rolled_out(runner: EpisodeRunner, questions: Sequence[Question], seed: int, at_once: int) -> tuple[list[Episode], Figures]:
    """Run an episode a question, so many at once."""
    started, episodes = time.perf_counter(), list[Episode]()
    for start in range(0, len(questions), at_once):
        part = questions[start : start + at_once]
        runner.tool = RetrieverTool(HttpRetriever(URL), 3)
        episodes += runner.run(part, range(seed + start, seed + start + len(part)))
    seconds = time.perf_counter() - started
    if failed := [e for e in episodes if e.finish.is_environment_failure]:
        sys.exit(f"{len(failed)} episodes failed: {failed[0].error}")
    turns = sum(len(e.turns) for e in episodes) / len(episodes)
    idle = 1 - generating_seconds(episodes) / seconds
    return episodes, figures(sum(e.generated_tokens for e in episodes), seconds, idle=idle, turns=turns)


def plain(engine: Any, episodes: Sequence[Episode], seed: int) -> Figures:  # noqa: ANN401 - a VLLMEngine's own LLM
    """Have vLLM write as many tokens from the prompts of all turns."""
    from vllm import SamplingParams, TokensPrompt

    prompts, parameters = [], []
    for episode in episodes:
        context: list[int] = []
        for turn in episode.turns:
            context = [*([] if turn.fresh else context), *turn.context_ids]
            prompts.append(TokensPrompt(prompt_token_ids=list(context)))
            count = len(turn.ids)
            parameters.append(SamplingParams(max_tokens=count, ignore_eos=True, seed=seed, logprobs=0, detokenize=False))
            context = [*context, *turn.ids]
    started = time.perf_counter()
    outputs = engine._llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - started
    return figures(sum(len(output.outputs[0].token_ids) for output in outputs), seconds)


def generated(model: str, renderer: Renderer, questions: Sequence[Question]) -> Figures:
    """Run the episodes by transformers' `generate`, all of them turn by turn."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    tool = RetrieverTool(HttpRetriever(URL), 3)
    environments = [
        SearchEnvironment(q, renderer.dialect, tool, LIMITS, lambda text: len(renderer.encode(text))) for q in questions
    ]
    contexts = [renderer.encode(renderer.prompt(e.opening(), renderer.dialect.tools).text) for e in environments]

    def write(alive: list[int]) -> list[list[int]]:
        width, end = max(len(contexts[i]) for i in alive), renderer.end_id
        ids = torch.tensor([[end] * (width - len(contexts[i])) + contexts[i] for i in alive])
        mask = torch.tensor([[0] * (width - len(contexts[i])) + [1] * len(contexts[i]) for i in alive])
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": LIMITS.turn_tokens}
        rows = policy.generate(ids, attention_mask=mask, eos_token_id=end, pad_token_id=end, **sampling)[:, width:].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    async def turns() -> int:
        tokens = 0
        while alive := [
            i
            for i, e in enumerate(environments)
            if e.finish is None and len(contexts[i]) + LEAST_TOKENS <= LIMITS.context_tokens
        ]:
            rows = write(alive)
            steps = [
                environments[i].step(renderer.decode(row), ended=row[-1] == renderer.end_id)
                for i, row in zip(alive, rows, strict=True)
            ]
            for i, row, following in zip(alive, rows, await asyncio.gather(*steps), strict=True):
                tokens += len(row)
                contexts[i] += row + (renderer.encode(renderer.between(following).text) if following else [])
        await tool.aclose()
        return tokens

    started = time.perf_counter()
    return figures(asyncio.run(turns()), time.perf_counter() - started)


def measure(way: str, arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """Return the figures of each round, by way."""
    dialect = (AgentSettings.load(Path(arguments.model)) or AgentSettings()).make_dialect()
    tokenizer, _ = load_tokenizer(arguments.model, dialect)
    renderer = Renderer(tokenizer, dialect)
    questions = read_records(Path(arguments.questions), Question.from_row)[: arguments.episodes]
    if way == "generate":
        return {way: [generated(arguments.model, renderer, questions) for _ in range(arguments.rounds)]}
    if way == "no-cache":
        import vllm

        whole = vllm.LLM
        vllm.LLM = lambda **options: whole(**{**options, "enable_prefix_caching": False})  # type: ignore[misc,assignment]
    runner = EpisodeRunner(VLLMEngine(arguments.model, LIMITS.context_tokens), renderer, None, LIMITS)
    found: dict[str, list[Figures]] = {way: []}
    for number in range(arguments.rounds + 1):
        runner.engine._llm.reset_prefix_cache()  # type: ignore[attr-defined]
        at_once = 1 if way == "one-by-one" else len(questions)
        part = questions[: len(questions) // 4] if way == "one-by-one" else questions
        episodes, of_round = rolled_out(runner, part, number * 1000, at_once)
        found[way] += [of_round] if number else []  # the first warms up
        if way == "seeker":
            runner.engine._llm.reset_prefix_cache()  # type: ignore[attr-defined]
            alone = plain(runner.engine, episodes, number)
            found.setdefault("plain", []).extend([alone] if number else [])
    return found


def main() -> None:
    """Measure all ways and write their figures."""
    global URL
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output_file", type=Path)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url:
        URL = arguments.url
        found = measure(arguments.ways[0], arguments)
        arguments.output_file.write_text(json.dumps(found))
        return
    rounds: dict[str, list[Figures]] = {}
    with ServerHandle(arguments.index) as server:
        for way in arguments.ways:
            part = arguments.output_file.with_suffix(f".{way}.json")
            words = [*("--model", arguments.model, "--questions", arguments.questions, "--ways", way, "--url", server.url)]
            numbers = ["--episodes", str(arguments.episodes), "--rounds", str(arguments.rounds), "--output_file", str(part)]
            subprocess.run([sys.executable, __file__, *words, *numbers], check=True)
            rounds |= json.loads(part.read_text())
            part.unlink()
    medians = {
        way: {name: statistics.median(of_round[name] for of_round in found) for name in found[0]}
        for way, found in rounds.items()
    }
    pairs = zip(rounds.get("seeker", []), rounds.get("plain", []), strict=True)
    shares = [mine["tokens_per_s"] / theirs["tokens_per_s"] for mine, theirs in pairs]
    found = {"episodes": arguments.episodes, "share_of_plain": shares, "ways": medians, "rounds": rounds}
    arguments.output_file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"share_of_plain": shares, "ways": medians}, indent=1))


if __name__ == "__main__":
    URL = ""
    main()
