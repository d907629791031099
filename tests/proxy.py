"""A small real TCP proxy in front of a broker: it can cut, swallow and delay."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time

from mqlab.settings import Settings


class Proxy:
    """Forwards a free port on 127.0.0.1 to a broker. ``settings`` points at the proxy."""

    def __init__(self, target: Settings) -> None:
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.settings = dataclasses.replace(target, port=self._listener.getsockname()[1])
        self.swallow = False  # what both sides say; connections stay open
        self.swallow_answers = False  # what the broker says
        self.delay_s = 0.0
        self.cuts = self.accepted = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):  # close alone does not wake a thread in accept
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """End every connection with a reset, as a network does; return how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    # linger 0: close sends RST instead of FIN
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self.cuts += bool(pairs)
        return len(pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):  # or small confirms wait for the delayed ACK of TCP
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((client, server))
            for ends in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not (self.swallow or (answers and self.swallow_answers)):
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
