"""The command line: ``symground demo | run | data | features | train | analyze | report | sweep | bench | …``."""

from __future__ import annotations

import codecs
import difflib
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from typing import Any

from symground.commands import COMMANDS, Command, WrongUsageError, paper
from symground.version import VERSION

_HELP = ("-h", "--help")
#: What a console that knows only ASCII is shown in their place.
_PLAIN = {
    "…": "...", "→": "->", "×": "x", "±": "+/-", "≤": "<=", "≥": ">=", "·": "*", "–": "-", "—": "-", "²": "^2",
    "▲": "^", "▼": "v", "│": "|", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 when it failed or was interrupted, 2 for wrong usage."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    _show_on_any_console()
    try:
        code = _run(argv)
        sys.stdout.flush()  # here, where it is known what to do when nobody reads it
    except KeyboardInterrupt:
        _say("interrupted; what was finished is kept, and the same command goes on from there")
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:  # symground run --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except WrongUsageError as error:
        _say(str(error))
        return 2
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, (ValueError, FileNotFoundError, ImportError, BlockingIOError))
        _say(text if known else f"{type(error).__name__}: {text}")
        return 1
    return code


def _run(argv: list[str]) -> int:
    name, *options = argv or [""]
    if name in _HELP:
        print(_overview())
        return 0
    if name == "--version":
        print(f"symground {VERSION}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f", perhaps {near[0]}" if near else ""
        got = f"{name!r}{meant}" if name else "nothing"
        raise WrongUsageError(f"expected a command (symground --help lists them); got {got}")
    named = COMMANDS[name]
    if name == "run" and _is_recipe(options):
        named = paper
    command = named()
    _quiet()
    given = _parsed(named, command, options, f"symground {name}")
    written = command.do(given)
    if isinstance(written, int):
        return written
    print(written)
    return 0


def _is_recipe(options: list[str]) -> bool:
    """Whether what is to be run is a testbed of the study: its name stands where the corpus does."""
    from symground.recipes.paper import RECIPES

    at = next((i for i, option in enumerate(options) if option in RECIPES), None)
    if not at:
        return at == 0
    # It may be the value of an option: what takes how many only the parser knows.
    try:
        asked = [option for option in options if option not in _HELP]
        given = _parsed(paper, paper(), asked, "symground run")
    except WrongUsageError:
        return not options[at - 1].startswith("--")
    return bool(given.corpus) and given.corpus[0] in RECIPES


def _parsed(named: Callable[[], Command], command: Command, options: list[str], prog: str) -> Any:
    """The settings that the options make; SystemExit after --help.

    Raises:
        WrongUsageError: they make none: what is wrong with them, and what may have been meant.
    """
    import tyro

    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            given: Any = tyro.cli(command.settings, args=options, prog=prog, description=_about(named))
    except SystemExit as stop:
        if stop.code:
            raise WrongUsageError(
                f"{_first_sentence(printed.getvalue())} ({prog} --help lists what there is)"
            ) from None
        raise
    for option in _without_values(given, options):
        raise WrongUsageError(f"{option}: expected at least one value; got none ({prog} --help lists what there is)")
    return given


def _without_values(given: Any, options: Sequence[str]) -> Iterator[str]:
    """Options that take several values and were given none, which is not what leaving them out means."""
    for part in fields(given):
        value = getattr(given, part.name)
        if is_dataclass(value):
            yield from _without_values(value, options)
        elif isinstance(value, (tuple, dict)) and not value:
            # As --generated.some-name, or without the prefix.
            written = rf"--([\w-]+\.)*{part.name.replace('_', '[-_]')}"
            yield from (option for option in options if re.fullmatch(written, option))


def _overview() -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    column = max(map(len, COMMANDS)) + 4
    lines = ["usage: symground [-h] [--version] [--debug] COMMAND …", ""]
    lines += [
        textwrap.fill(_about(named), width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
        for name, named in COMMANDS.items()
    ]
    lines += ["", "symground COMMAND --help: what it takes. --debug shows the whole traceback of an error."]
    return "\n".join(lines)


def _about(named: Callable[[], Command]) -> str:
    return " ".join((inspect.getdoc(named) or "").split())


def _first_sentence(printed: str) -> str:
    """What tyro says first, without its frame or its title, and the options that it takes to have been meant."""
    lines = [line.strip(" │") for line in printed.splitlines() if not line.startswith(("╭", "╰"))]
    sections = re.split(r"\n[-─]{3,}\n", "\n".join(lines))
    first = 0 if "╭" in printed or len(sections) == 1 else 1
    said = re.sub(r"^Error parsing (?!--)\S+: ", "", " ".join(sections[first].split())) or "wrong usage"
    meant = [
        option
        for section in sections[first + 1 :]
        if section.startswith(("Perhaps you meant", "Arguments similar to"))
        for option in re.findall(r"^\s*(--[\w.-]+)", section, re.M)
    ]
    typed = re.findall(r"--[\w.-]+", said)
    near = sorted(dict.fromkeys(meant), key=lambda option: -max(_likeness(option, other) for other in typed or [""]))
    return f"{said}; perhaps {' or '.join(near[:3])}?" if near else said


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _quiet() -> None:
    """transformers reports every file it writes, and warns of padding that no token which counts can see."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _say(text: str) -> None:
    print(f"symground: {text}", file=sys.stderr)


def _show_on_any_console() -> None:
    """Let no character that the console has not end the program."""
    codecs.register_error("symground", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="symground")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


if __name__ == "__main__":
    sys.exit(main())
