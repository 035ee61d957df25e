"""The command line: a list of commands, each a class of settings that runs itself, and the reports of errors."""

from __future__ import annotations

import codecs
import difflib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_args

from symground.errors import WrongUsageError
from symground.version import VERSION


class Command(NamedTuple):
    """The class of a command, and its help. Its module is imported only when the command is run."""

    place: str
    """MODULE:CLASS. The class is a dataclass: its fields are the options and the positional arguments, and ``run()``
    returns the path of what was written, or an exit code."""
    help: str


#: Group → its commands, in the order of the help.
GROUPS: dict[str, dict[str, Command]] = {
    "study": {
        "demo": Command(
            "symground.recipes.study:Demo",
            "Train a GPT-2 and an LSTM on the generated corpus, analyse them and write the report.",
        ),
        "run": Command(
            "symground.recipes.study:Run",
            "Prepare a corpus, train, analyse and write the report. The same command resumes an interrupted run. "
            "With the name of a testbed in place of the corpus (symground run paper-childes --help), it runs this "
            "testbed of the study.",
        ),
        "report": Command(
            "symground.reports.pages.study:Report",
            "Write the page of a study or a run from its tables; with several paths, a page that compares them.",
        ),
        "architectures": Command(
            "symground.recipes.architectures:Architectures",
            "Train several architectures of one size at several gaps between scene and talk, and compare their gains.",
        ),
        "dials": Command(
            "symground.recipes.dials:Dials",
            "Train models at several values of one dial of the generated corpus (noise, gap, synonyms, …), and compare "
            "their gains.",
        ),
        "sweep": Command(
            "symground.recipes.sweep:Sweep",
            "Train every combination of seeds, models and corpora and analyse their checkpoints, in parallel on this "
            "machine or on a Ray cluster.",
        ),
    },
    "data": {
        "data": Command(
            "symground.recipes.prepare:Data",
            "Make the folder of a study: tokenizer, token arrays, nouns and contexts, and a page about the corpus.",
        ),
        "features": Command(
            "symground.data.vision:Features",
            "Compute the patch embeddings of images with a frozen DINOv2, as an image set for --visdial.images.",
        ),
        "pope": Command(
            "symground.data.questions:Pope",
            "Make yes/no questions about objects in POPE's form from COCO's instances, for symground heads.",
        ),
    },
    "models and analysis": {
        "train": Command("symground.recipes.study:Train", "Train one model on a study's data, into STUDY/MODEL/seedN."),
        "analyze": Command("symground.recipes.study:Analyze", "Analyse every checkpoint of a study or of one run."),
        "trace": Command(
            "symground.recipes.text_trace:TextTrace",
            "Show which words of a text speak for each word of a model's answer, and by which heads, as one HTML page.",
        ),
        "probe": Command(
            "symground.recipes.pretrained:Probe",
            "Ask a pretrained model the study's questions without training: gain, saliency by layer, heads and what "
            "silencing them does, lenses, monitor and steering, with a report.",
        ),
        "heads": Command(
            "symground.recipes.heads:Heads",
            "Find the aggregate heads of a vision-language model over image-question pairs, and test whether they are "
            "stable, whether they matter, whether their flow detects wrong answers, and what amplifying them does.",
        ),
    },
    "machine": {
        "check": Command(
            "symground.machine.command:Check",
            "Try every implementation of every op that can run on this machine, and say what is right, what is not and "
            "how to go on without it, what would be picked, and how fast a layer is. It takes about a minute.",
        ),
        "build": Command(
            "symground.machine.building:Build",
            "Compile the C++/CUDA extension into the package's folder. Without it everything works, but more slowly.",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
#: The command ``run`` if its corpus is the name of a testbed.
TESTBED = Command(
    "symground.recipes.paper:Paper",
    "Run a testbed of the study (arXiv 2510.13796) from its corpus to its results, and compare them with the study's.",
)

_HELP = ("-h", "--help")
#: Character → its replacement on a console that has only ASCII.
_PLAIN = {
    "…": "...", "→": "->", "×": "x", "±": "+/-", "≤": "<=", "≥": ">=", "·": "*", "–": "-", "—": "-", "²": "^2",
    "▲": "^", "▼": "v", "│": "|", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 1 if it failed or was interrupted, or 2 for wrong usage."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    _show_on_any_console()
    try:
        code = _run(argv)
        sys.stdout.flush()  # a closed pipe raises its error here, where it is handled
    except KeyboardInterrupt:
        _say("interrupted; finished work is kept, and the same command resumes from there")
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
    command = COMMANDS[name]
    if name == "run" and _names_testbed(options):
        command = TESTBED
    settings = _class_of(command)
    _quiet()
    given, _ = _parsed(settings, options, f"symground {name}", command.help)
    written = given.run()
    if isinstance(written, int):
        return written
    print(written)
    return 0


def _class_of(command: Command) -> Any:
    module, _, name = command.place.partition(":")
    return getattr(import_module(module), name)


def _names_testbed(options: list[str]) -> bool:
    """Whether the corpus of ``run`` is the name of a testbed, which has other options."""
    from symground.recipes.paper import RECIPES

    unchecked = type("Unchecked", (_class_of(COMMANDS["run"]),), {"__post_init__": lambda self: None})
    asked = [option for option in options if option not in _HELP]
    try:
        given, unknown = _parsed(unchecked, asked, "symground run", unknown=True)
    except WrongUsageError:
        return False
    return not RECIPES.keys().isdisjoint([*given.corpus, *unknown])


def _parsed(
    settings: Any, options: list[str], prog: str, about: str = "", *, unknown: bool = False
) -> tuple[Any, list[str]]:
    """Parse the options: (settings, unknown options). Unknown options are an error unless ``unknown``.

    Raises:
        WrongUsageError: the options are wrong; says why, and suggests similar ones.
        SystemExit: --help was among them, and the help has been printed.
    """
    import tyro

    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            found: Any = tyro.cli(
                settings,
                args=options,
                prog=prog,
                description=about,
                return_unknown_args=unknown,  # type: ignore[call-overload]
                registry=_help_of_fields(),
            )
    except SystemExit as stop:
        if stop.code:
            raise WrongUsageError(f"{_first_sentence(printed.getvalue())} ({prog} --help lists the options)") from None
        raise
    given, rest = found if unknown else (found, [])
    for option in _without_values(given, options):
        raise WrongUsageError(f"{option}: expected at least one value; got none ({prog} --help lists the options)")
    return given, rest


def _help_of_fields() -> Any:
    """tyro's rules for settings, with plainer help: docstrings without line breaks, no empty defaults, and the names of
    positional arguments in place of their types."""
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    registry = ConstructorRegistry()
    within: list[StructTypeInfo] = []
    positional = get_args(tyro.conf.Positional[str])[1]

    def of_field(field: StructFieldSpec) -> StructFieldSpec:
        kind, *marks = get_args(field.type) if hasattr(field.type, "__metadata__") else (field.type,)
        if is_dataclass(kind):
            return field
        name = "PATH" if field.name == "paths" else field.name.upper()
        shown = tyro.conf.arg(
            metavar=None if positional not in marks else f"{name} …" if get_args(kind) else name,
            help_behavior_hint=lambda default: f"(default: {default})" if default else "",
        )
        return replace(
            field,
            type=Annotated[field.type, shown],  # type: ignore[arg-type]
            helptext=lambda: _one_line(field.helptext),
        )

    @registry.struct_rule
    def of_settings(info: StructTypeInfo) -> StructConstructorSpec | None:
        if within or not is_dataclass(info.type):
            return None
        within.append(info)  # the rules of tyro itself apply next
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            within.clear()
        assert isinstance(found, StructConstructorSpec)
        return replace(found, fields=tuple(map(of_field, found.fields)))

    return registry


def _one_line(text: Any) -> str:
    return " ".join(((text() if callable(text) else text) or "").split())


def _without_values(given: Any, options: Sequence[str]) -> Iterator[str]:
    """Options for several values that are written without one, which differs from leaving them out."""
    for part in fields(given):
        value = getattr(given, part.name)
        if is_dataclass(value):
            yield from _without_values(value, options)
        elif isinstance(value, (tuple, dict)) and not value:
            # Written as --generated.some-name, or without the prefix.
            written = rf"--([\w-]+\.)*{part.name.replace('_', '[-_]')}"
            yield from (option for option in options if re.fullmatch(written, option))


def _overview() -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    column = max(map(len, COMMANDS)) + 4
    lines = ["usage: symground [-h] [--version] [--debug] COMMAND …"]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [
            textwrap.fill(command.help, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
            for name, command in commands.items()
        ]
    lines += ["", "symground COMMAND --help lists the options of a command. --debug shows the traceback of an error."]
    return "\n".join(lines)


def _first_sentence(printed: str) -> str:
    """The first sentence of tyro's error without its frame and title, and the options that tyro suggests."""
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
    """Silence transformers, which reports every file it writes and warns about harmless padding."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _say(text: str) -> None:
    print(f"symground: {text}", file=sys.stderr)


def _show_on_any_console() -> None:
    """Replace characters that the console cannot show; otherwise they would raise an error."""
    codecs.register_error("symground", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="symground")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


if __name__ == "__main__":
    sys.exit(main())
