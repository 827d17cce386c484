"""The port of machine 0 where the machines of a run meet: checked and waited for before torchrun does, which hangs or
shows frames of C++ where something is wrong.
"""

from __future__ import annotations

import errno
import socket
import sys
import time

from agentrl.config.hardware import Hardware
from agentrl.core.errors import UserError
from agentrl.endpoint.waiting import call_within

LOOK_UP_S = 5.0  # for the name of a machine
FREE_S = 10.0  # until a port is free; a launcher that was just killed may still hold it
SILENT_S = 15.0  # the machines seldom start at once
WAIT_S = 900.0  # until machine 0 listens; torchrun on machine 0 waits as long for the others


def check_name(hardware: Hardware) -> None:
    """Raise UserError if the name of machine 0 is unknown. Whether it listens already is no matter."""
    host, _ = _place(hardware)
    try:
        call_within(LOOK_UP_S, lambda: socket.getaddrinfo(host, None))
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"hardware.rendezvous={hardware.rendezvous}: this machine finds no address of {host} ({reason}); give all "
            "machines the name or the IP address of machine 0"
        ) from error


def wait_for_machines(hardware: Hardware) -> None:
    """On machine 0, wait until the port is free; on the others, until machine 0 listens there. Raises UserError."""
    if hardware.nodes == 1:
        return
    host, port = _place(hardware)
    if hardware.rank_here == 0:
        deadline = time.monotonic() + FREE_S
        while not _is_free(port):
            if time.monotonic() > deadline:
                raise UserError(
                    f"hardware.rendezvous={hardware.rendezvous}: another program uses this port of machine 0; give "
                    "all machines another one"
                )
            time.sleep(0.2)
        return
    began, said = time.monotonic(), False
    while not _listens(host, port):
        waited = time.monotonic() - began
        if waited > WAIT_S:
            raise UserError(
                f"hardware.rendezvous={hardware.rendezvous}: machine 0 does not listen there after {WAIT_S:g} s; start "
                "the same command on it with hardware.node_rank=0, open the port, or correct the address"
            )
        if waited > SILENT_S and not said:
            said = True
            where = f"hardware.rendezvous={hardware.rendezvous}"
            print(f"agentrl: waiting for machine 0, which does not listen at {where} yet", file=sys.stderr, flush=True)
        time.sleep(1.0)


def _place(hardware: Hardware) -> tuple[str, int]:
    host, _, port = (hardware.rendezvous or "").rpartition(":")
    return host.strip("[]"), int(port)


def _is_free(port: int) -> bool:
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torchrun: a connection that ended is no matter
        try:
            here.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # torchrun reports the others
    return True


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=LOOK_UP_S).close()
    except OSError:
        return False
    return True
