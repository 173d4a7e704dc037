"""From the words of a command line to an exit code.

0 is success, 1 an input that cannot be used, 2 a command line that cannot be read.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence

from absl import flags, logging

from jax_malloc import __version__
from jax_malloc.cli.commands import COMMANDS, Command, check_output
from jax_malloc.json_reader import nearest

_PROGRAM = "python -m jax_malloc"
_WIDTH = 80
BAD_INPUT, BAD_USAGE = 1, 2
# What a shell reports of a process that its reader left (SIGPIPE), or an interrupt.
_READER_LEFT, _INTERRUPTED = 141, 130


def main(argv: Sequence[str]) -> int:
    """Runs a command line, `argv[0]` being the program, and returns its exit code."""
    logging.set_verbosity(logging.ERROR)  # not a line per backend that JAX lacks
    words = list(argv[1:])
    if not words or words[0] in ("--help", "-h", "help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else BAD_USAGE
    if words[0] == "--version":
        print(f"jax_malloc {__version__}")
        return 0
    if words[0] not in COMMANDS:
        hint = nearest(words[0], COMMANDS) or f"; choose {', '.join(COMMANDS)}."
        return _usage_error(f"there is no command {words[0]!r}{hint}", "")
    return _run(words[0], COMMANDS[words[0]], words)


def _run(name: str, command: Command, words: list[str]) -> int:
    values = command.flags()
    try:
        arguments = values(words)[1:]
        if values.help:
            print(_command_help(name, command, values))
            return 0
        least, most = command.num_arguments
        if not least <= len(arguments) <= most:
            given = ", ".join(arguments) or "nothing"
            raise flags.Error(f"expected {command.usage}; given: {given}.")
        check_output(values)
        command.run(values, arguments)
        return 0
    except flags.Error as error:
        return _usage_error(str(error), name)
    except BrokenPipeError:
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_LEFT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _error(f"{where}{error.strerror or error}")
    except (ValueError, RuntimeError) as error:
        return _error(str(error))


def _error(message: str) -> int:
    print(f"jax_malloc: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def _usage_error(message: str, command: str) -> int:
    print(
        f"jax_malloc: usage error: {' '.join(message.split())}\n"
        f"Try '{' '.join([_PROGRAM, command]).strip()} --help'.",
        file=sys.stderr,
    )
    return BAD_USAGE


def _help() -> str:
    lines = [
        f"usage: {_PROGRAM} COMMAND INPUT [flags]",
        "",
        "INPUT is scheduled HLO text, a saved program or plan (each may be gzipped), "
        "or module:function with --shapes. Latencies are predicted.",
        "",
    ]
    text = "\n".join(textwrap.fill(line, _WIDTH) for line in lines)
    for name, command in COMMANDS.items():
        text += "\n" + _entry(name, command.about)
    return f"{text}\n\n'{_PROGRAM} COMMAND --help' lists the flags of a command."


def _command_help(name: str, command: Command, values: flags.FlagValues) -> str:
    about = textwrap.fill(command.about, _WIDTH)
    lines = [f"usage: {_PROGRAM} {name} {command.usage}", "", about, ""]
    for flag in sorted(values):
        default = values[flag].default
        if isinstance(default, list):
            default = ",".join(map(str, default))
        text = " ".join(values[flag].help.split())
        if default not in (None, False):
            text += f" Default: {default}."
        if len(flag) > 1:
            lines.append(_entry(f"--{flag}", text))
    return "\n".join(lines)


def _entry(name: str, text: str) -> str:
    indent = " " * 24
    body = textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    head = f"  {name}"
    return f"{head:22}  {body[24:]}" if len(head) <= 22 else f"{head}\n{body}"
