"""Questions line by line on stdin, answers line by line on stdout: the child's end of `bench.children`."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

__all__ = ["converse"]


async def converse(answers: Mapping[str, Callable[..., Any]]) -> None:
    """Say READY, then answer each line by the function that its first word names, with the rest as its arguments.

    What a function returns goes out as JSON. Returns at the end of the questions.
    """
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    print("READY", flush=True)
    async for line in questions:
        what, *arguments = line.decode().split()
        print(msgspec.json.encode(answers[what](*arguments)).decode(), flush=True)
    pipe.close()
