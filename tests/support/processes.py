"""Forked processes: several at the same time, or those of a launcher; nothing is imported again."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState

from trl_real.runtime.distributed import init_distributed


def forked(action: Callable[[], Any]) -> int:
    """Start `action` in a forked child, whose exit status is what `action` returns; return the child's number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            status = int(action() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """Wait for a child, and return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_over(child: int) -> bool:
    """Return whether a child has ended; `status_of` still tells how."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ranks(action: Callable[[], Any], n: int = 2) -> list[int]:
    """Start `action` in the `n` processes of a launcher; return their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> Any:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"})
        PartialState._reset_state()  # the parent's: one process
        init_distributed()
        status = action()
        # The caller leaves without the interpreter's clean-up: threads of gloo that still run then abort the process
        # now and then ("terminate called without an active exception"). The barrier keeps all ranks until then.
        torch.distributed.barrier()
        return status

    return [forked(lambda: member(rank)) for rank in range(n)]  # noqa: B023


def end(children: list[int]) -> None:
    """Kill children and wait for them."""
    for child in children:
        os.kill(child, signal.SIGKILL)
        status_of(child)
