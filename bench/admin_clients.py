"""Clients that keep an admin endpoint busy: each asks again as soon as it has its answer.

    python -m bench.admin_clients HOST:PORT

Questions on stdin, an answer each on stdout: ``start N PATH`` lets N clients ask for PATH, ``stop`` ends them and tells
how many answers there were. A client whose connection is closed connects again.
"""

import asyncio
import contextlib
import sys


class Clients:
    """The clients of one endpoint."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._tasks: list[asyncio.Task[None]] = []
        self.answers = 0

    def start(self, number: int, path: str) -> None:
        """Let *number* clients ask for *path*."""
        self.answers = 0
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._tasks = [asyncio.create_task(self._ask_on(request)) for _ in range(number)]

    async def stop(self) -> int:
        """End them; how many answers there were."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return self.answers

    async def _ask_on(self, request: bytes) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    while True:
                        writer.write(request)
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                        await reader.readexactly(int(length))
                        self.answers += head.startswith(b"HTTP/1.1 200 ")
                finally:
                    writer.close()


async def serve(address: str) -> None:
    """Answer questions until stdin ends."""
    clients = Clients(address)
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["start", number, path]:
                clients.start(int(number), path)
                print("started", flush=True)
            case ["stop"]:
                print(await clients.stop(), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
