"""A TCP proxy before a store that can refuse, stall, cut answers short, flip bytes, be shut off and brought back."""

import socket
import threading
import time
from contextlib import suppress

CHUNK = 1 << 16
BODY = 2_000  # a piece of an answer that is longer has bytes of a file at its end


class StoreProxy:
    """Forwards connections to a port of this machine, with the faults that a test asks for.

    `fault` is "" (none), "stall", "cut", "flip" or an answer in bytes that is sent in place of the store's. It
    happens to pieces of answers, for the next `times` of them, or always where that is None.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.fault: str | bytes = ""
        self.times: int | None = None
        self.faults = self.bytes = 0
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.on()

    def on(self) -> None:
        """Take connections, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    def off(self) -> None:
        """Take no connections and end those there are."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self.connections):
            self._end(connection)

    def set(self, fault: str | bytes, times: int | None = None) -> None:
        """From now on."""
        self.fault, self.times, self.faults = fault, times, 0

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self.connections |= {client, server}
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, sink, answers), name="proxy", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(CHUNK):
                fault = self._next_fault(piece) if answers else ""
                if fault == "stall":
                    while self.fault == "stall" and source in self.connections:
                        time.sleep(0.01)
                    break
                if fault == "cut":
                    sink.sendall(piece[: len(piece) // 2])
                    break
                if isinstance(fault, bytes):
                    sink.sendall(fault)
                    break
                sink.sendall(piece[:-1] + bytes([piece[-1] ^ 1]) if fault == "flip" else piece)
                self.bytes += len(piece)
        self._end(source)
        self._end(sink)

    def _next_fault(self, piece: bytes) -> str | bytes:
        with self._lock:
            if not self.fault or self.times == 0 or (self.fault == "flip" and len(piece) < BODY):
                return ""
            self.faults += 1
            self.times = None if self.times is None else self.times - 1
            return self.fault

    def _end(self, connection: socket.socket) -> None:
        with self._lock:
            self.connections.discard(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
