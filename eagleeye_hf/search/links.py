"""Messages between the main process of a search and each other one."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from accelerate import Accelerator

from eagleeye_hf.processes import make_in_main
from eagleeye_hf.search.pool import Inbox

LOCAL = ("127.0.0.1", "localhost", "::1")


class Lost:
    """In place of a message: the other side is gone."""


class Links:
    """A connection from the main process to each other process; each message that comes goes into `inbox`.

    Collective operations would make all wait for the slowest; a connection hands out work as it is asked for, and a
    process that ends is noticed at once.
    """

    def __init__(self, accelerator: Accelerator, inbox: Inbox) -> None:
        self._of_rank = _connect(accelerator)
        for rank, connection in self._of_rank.items():
            _set_no_delay(connection)
            threading.Thread(target=_receive, args=(rank, connection, inbox), daemon=True).start()

    @property
    def ranks(self) -> list[int]:
        """Of the other sides."""
        return sorted(self._of_rank)

    def send(self, rank: int, message: object) -> None:
        """One that is gone is told by its `Lost` in the inbox."""
        with suppress(OSError):
            self._of_rank[rank].send(message)

    def send_all(self, message: object) -> None:
        for rank in self.ranks:
            self.send(rank, message)

    def close(self) -> None:
        for connection in self._of_rank.values():
            connection.close()


def _connect(accelerator: Accelerator) -> dict[int, Connection]:
    size, rank = accelerator.num_processes, accelerator.process_index
    if size == 1:
        return {}
    host = os.environ.get("MASTER_ADDR", LOCAL[0])
    listeners = []

    def listen() -> tuple[int, bytes]:
        key = secrets.token_bytes(32)
        where = (LOCAL[0] if host in LOCAL else "", 0)
        listeners.append(Listener(where, "AF_INET", backlog=size, authkey=key))
        return listeners[0].address[1], key

    port, key = make_in_main(accelerator, listen)
    if not listeners:
        connection = Client((LOCAL[0] if host in LOCAL else host, port), "AF_INET", authkey=key)
        connection.send(rank)
        return {0: connection}
    connections: dict[int, Connection] = {}
    with listeners[0] as listener:
        while len(connections) < size - 1:
            try:
                connection = listener.accept()
            except AuthenticationError:  # somebody else
                continue
            connections[connection.recv()] = connection
    return connections


def _set_no_delay(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(rank: int, connection: Connection, inbox: Inbox) -> None:
    try:
        while True:
            inbox.put((rank, connection.recv()))
    except (EOFError, OSError):
        inbox.put((rank, Lost()))
