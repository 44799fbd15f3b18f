"""Run in a process of its own by `test_teacher_vllm.py`: vLLM as a teacher in process, printed as one JSON line."""

import asyncio
import json
import sys

from project.teacher.client import Request, Sampling, Teacher
from project.teacher.engines import VLLMTeacher

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}


def request(text, schema=None, **sampling):
    return Request("r", ({"role": "user", "content": text},), Sampling(**sampling), schema=schema)


async def main(folder):
    france = "What is the capital of France? Answer in one sentence."
    async with VLLMTeacher(Teacher(folder, engine="vllm", max_concurrent=4)) as teacher:
        greedy = request(france, temperature=0.0, max_tokens=24)
        drawn = request(france, temperature=1.0, top_p=0.9, repetition_penalty=1.1, max_tokens=24)
        told = await asyncio.gather(
            teacher.ask(greedy, 1),
            teacher.ask(drawn, 1),
            teacher.ask(drawn, 2),
            teacher.ask(request(france, temperature=0.0, max_tokens=24, stop=(" capital",)), 1),
            teacher.ask(request("Name a city as JSON.", SCHEMA, temperature=0.0, max_tokens=64), 1),
        )
        again = await teacher.ask(drawn, 1)
        rows = {name: reply.to_row() for name, reply in zip(("greedy", "one", "two", "stopped", "json"), told, strict=True)}
        print("RESULT " + json.dumps(rows | {"again": again.to_row(), "model": teacher.model}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
