"""Measure how long a server holds connections that keep it waiting, and whether it answers others meanwhile.

    python benchmarks/slow_clients.py http://127.0.0.1:8000 --pid PID --token-file token --each 100 --seconds 90

The address may be that of `cskt serve`, of its app under another ASGI server, or of a reverse proxy in front of either.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

PIPELINED = 500
KINDS = {
    "says nothing": (b"", b""),
    "drips a head": (b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a"),
    "drips a body": (b"POST /api/search HTTP/1.1\r\n{common}Content-Length: 9999\r\n\r\n", b" "),
    "drips a refused body": (b"POST /nothing HTTP/1.1\r\n{common}Content-Length: 9999\r\n\r\n", b" "),
    "asks once and stays": (b"GET /healthz HTTP/1.1\r\n{common}\r\n", b""),
    "takes no answer": (PIPELINED * b"GET /page/style.css HTTP/1.1\r\n{common}\r\n", b""),
}
"""Kind of client -> what it sends first, and then every second."""


def connect(address: tuple[str, int], *, reads: bool = True) -> socket.socket:
    """Return a connection, whose system buffer is small if the client is not going to read."""
    client = socket.socket()
    if not reads:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(address)
    return client


def held_ports(pid: int) -> set[int]:
    """Return the clients' ports of the connections that a server and its workers hold."""
    server = psutil.Process(pid)
    processes = [server, *server.children(recursive=True)]
    found = [connection for process in processes for connection in process.net_connections("tcp")]
    return {connection.raddr.port for connection in found if connection.raddr}


def ask(address: tuple[str, int], request: bytes) -> tuple[str, float]:
    """Return the status of one honest request on a connection of its own, and the seconds that it took."""
    begun = time.monotonic()
    try:
        with connect(address) as client:
            client.sendall(request)
            line = client.makefile("rb").readline().decode().split()
        return (line[1] if line else "closed"), time.monotonic() - begun
    except OSError as error:
        return type(error).__name__, time.monotonic() - begun


def main() -> None:
    """Print, for each kind of client, how many connections were held to the end and when the first was closed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--pid", type=int, required=True, help="process of the server")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--each", type=int, default=100, help="connections of each kind")
    parser.add_argument("--seconds", type=int, default=90, help="how long they are watched")
    parser.add_argument("--only", choices=KINDS, help="one kind instead of all at once")
    flags = parser.parse_args()
    url = urlsplit(flags.address)
    address = url.hostname or "127.0.0.1", url.port or 80
    common = f"Host: {url.netloc}\r\nContent-Type: application/json\r\n"
    if flags.token_file:
        common += f"Authorization: Bearer {flags.token_file.read_text().strip()}\r\n"
    honest = f"GET /api/gallery HTTP/1.1\r\n{common}Connection: close\r\n\r\n".encode()
    kinds = {flags.only: KINDS[flags.only]} if flags.only else KINDS
    held: dict[str, set[socket.socket]] = {kind: set() for kind in kinds}
    refused: Counter[str] = Counter()
    closed: dict[str, list[float]] = {kind: [] for kind in kinds}
    accepted: set[socket.socket] = set()
    answers: Counter[str] = Counter()
    slowest, begun = 0.0, time.monotonic()
    for kind, (first, _) in kinds.items():
        for _ in range(flags.each):
            try:
                client = connect(address, reads=kind != "takes no answer")
                client.setblocking(False)
                client.send(first.replace(b"{common}", common.encode()))
                held[kind].add(client)
            except OSError:
                refused[kind] += 1
    while (now := time.monotonic() - begun) < flags.seconds:
        ports = held_ports(flags.pid)
        for kind, (_, drip) in kinds.items():
            for client in list(held[kind]):
                if client.getsockname()[1] in ports:
                    accepted.add(client)
                elif client in accepted:
                    closed[kind].append(now)
                    held[kind].discard(client)
                    client.close()
                    continue
                if drip:
                    with suppress(OSError):
                        client.send(drip)
        status, seconds = ask(address, honest)
        answers[status] += 1
        slowest = max(slowest, seconds)
        time.sleep(max(0.0, 1 - seconds))
    for kind in kinds:
        when = f"closed after {closed[kind][0]:.0f} to {closed[kind][-1]:.0f} s" if closed[kind] else "none closed"
        num_held = len(held[kind] & accepted)
        never = flags.each - refused[kind] - len(closed[kind]) - num_held
        print(f"{kind:22} {num_held:4} of {flags.each} held to the end; {when}; {refused[kind] + never} not accepted")
    print(f"honest requests meanwhile: {dict(answers)}, the slowest {slowest:.2f} s")


if __name__ == "__main__":
    main()
