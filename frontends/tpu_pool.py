"""Worker processes that compile, started when first needed and kept warm."""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from frontends import tpu_worker
from frontends.tpu_lowering import QUIET_ENVIRONMENT

# One compilation takes a core or more, and about a gigabyte of memory.
MAX_WORKERS = 2
_STDERR_LINES = 20
# What libtpu and XLA read when they start, and never again.
_FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


class Refused(Exception):
    """What the compiler said when it did not accept a module or an option."""


class Pool:
    """Up to `size` workers; each serves one thread at a time."""

    def __init__(self, size: int) -> None:
        self._free = threading.Semaphore(size)
        self._idle: collections.deque[_Worker] = collections.deque()
        self._all: set[_Worker] = set()

    def compile(self, header: Mapping[str, Any], module: bytes) -> str:
        """The answer of a worker; waits for one that is free.

        Raises:
          Refused: the compiler did not accept it.
          RuntimeError: the worker died or failed; another one serves the next call.
        """
        with self._free, self._worker() as worker:
            return worker.compile(header, module)

    def close(self) -> None:
        """Ends all workers; calls that wait for one raise RuntimeError."""
        for worker in list(self._all):
            worker.kill()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._take()
        try:
            yield worker
        except Refused:
            self._idle.append(worker)
            raise
        except BaseException:
            # Interrupted, dead or out of step: its next answer would be to this call.
            self._discard(worker)
            raise
        self._idle.append(worker)

    def _take(self) -> _Worker:
        """An idle worker that started under the flags of now, or a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.flags == flags():
                return worker
            self._discard(worker)
        worker = _Worker()
        self._all.add(worker)
        return worker

    def _discard(self, worker: _Worker) -> None:
        self._all.discard(worker)
        worker.kill()
        worker.release()


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self) -> None:
        self.flags = flags()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, see release
        environment = {**os.environ, **QUIET_ENVIRONMENT, "JAX_PLATFORMS": "cpu"}
        here = str(pathlib.Path(__file__).resolve().parents[1])
        paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        # In a session of its own, so that Ctrl-C reaches only whoever asked.
        self._process = subprocess.Popen(
            [sys.executable, "-m", tpu_worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
        )

    def compile(self, header: Mapping[str, Any], module: bytes) -> str:
        try:
            tpu_worker.write_message(self._process.stdin, header, module)
            answer, text = tpu_worker.read_message(self._process.stdout)
        except (EOFError, OSError):
            code = self._process.wait()
            raise RuntimeError(
                f"the process that compiles for {header['topology']} ended with "
                f"{_status(code)}. The end of what it printed:\n{self._printed()}"
            ) from None
        if "error" not in answer:
            return text.decode()
        if answer["refused"]:
            raise Refused(answer["error"])
        raise RuntimeError(
            f"the process that compiles for {header['topology']} failed:\n"
            f"{answer['error']}"
        )

    def kill(self) -> None:
        """Ends the process; whoever waits for its answer sees the pipe close."""
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Closes the pipes of a process that has ended."""
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()

    def _printed(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_STDERR_LINES:])


def flags() -> dict[str, str]:
    """The flags of this process that change what a compiler makes."""
    return {name: os.environ[name] for name in _FLAGS if name in os.environ}


@functools.cache
def shared() -> Pool:
    """The pool of this process, closed when it ends."""
    pool = Pool(min(MAX_WORKERS, os.cpu_count() or 1))
    atexit.register(pool.close)
    return pool


# A forked child must not use, nor end, the workers of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.cache_clear)


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
