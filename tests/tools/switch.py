"""A network switch in user space, run by `hosts.py` as a process of its own.

Each port is a TAP device. A frame for the address ``02:00:00:00:00:<host>`` goes to the port of
that host, any other frame to all. Commands come line by line on standard input, and each is
answered with a line; at the end of the input the process ends, and its devices go with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import select
import struct
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES = 2**17  # longer than any frame
BURST = 64  # frames of one port before the others get their turn


class Switch:
    """Ports, and the frames that are under way.

    Attributes
    ----------
    delay : float
        Seconds that each frame takes.
    """

    def __init__(self) -> None:
        self._ports: dict[int, int] = {}  # file descriptor by host
        self._cut: set[int] = set()
        self._under_way: deque[tuple[float, int, bytes]] = deque()  # due, sender, frame
        self._net: int | None = None
        self.delay = 0.0

    def plug(self, host: int) -> str:
        """The name of a new TAP device; the first one says which number the net has."""
        for net in itertools.count() if self._net is None else [self._net]:
            port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            name = f"hosts{net}_{host}"
            try:
                fcntl.ioctl(
                    port, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI)
                )
            except OSError as error:
                os.close(port)
                if error.errno != errno.EBUSY or self._net is not None:
                    raise
            else:
                self._net, self._ports[host] = net, port
                self._cut.discard(host)
                break
        return name

    def unplug(self, host: int) -> None:
        """Remove the port, and its device."""
        os.close(self._ports.pop(host))

    def obey(self, command: str, value: str) -> str:
        """Do what a line says, and return the answer."""
        match command:
            case "plug":
                return self.plug(int(value))
            case "unplug":
                self.unplug(int(value))
            case "cut":
                self._cut.add(int(value))
            case "mend":
                self._cut.discard(int(value))
            case "delay":
                self.delay = float(value)
        return "done"

    def serve(self) -> None:
        """Forward frames and obey commands until standard input ends."""
        while True:
            wait = self._under_way[0][0] - time.monotonic() if self._under_way else None
            hosts = {port: host for host, port in self._ports.items()}
            ready, _, _ = select.select([0, *hosts], [], [], wait and max(0, wait))
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, sender, frame = self._under_way.popleft()
                self._deliver(sender, frame)
            for port in ready:
                if port:
                    self._take(hosts[port], port)
            if 0 in ready:
                line = os.read(0, 1024).decode()
                if not line:
                    return
                os.write(1, f"{self.obey(*line.split())}\n".encode())

    def _take(self, sender: int, port: int) -> None:
        for _ in range(BURST):
            try:
                frame = os.read(port, FRAME_BYTES)
            except OSError:  # no more, or its host is just ending
                return
            if sender in self._cut:
                continue
            if self.delay or self._under_way:
                self._under_way.append((time.monotonic() + self.delay, sender, frame))
            else:
                self._deliver(sender, frame)

    def _deliver(self, sender: int, frame: bytes) -> None:
        if sender in self._cut:
            return
        to = {frame[5]} if frame[:5] == b"\x02\0\0\0\0" else {*self._ports} - {sender}
        for host in (to & self._ports.keys()) - self._cut:
            with contextlib.suppress(OSError):  # its device is not up: frames get lost
                os.write(self._ports[host], frame)


if __name__ == "__main__":
    Switch().serve()
