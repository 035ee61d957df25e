"""The command line: ``symground demo | run | data | features | train | analyze | report | sweep | bench | …``."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EPILOGUE = "Every command also takes --debug, which shows the whole traceback of an error."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 when it failed or was interrupted, 2 for wrong usage."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print(
            "symground: interrupted; what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, (ValueError, FileNotFoundError, ImportError))
        print(f"symground: {text if known else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    return 1


def _run(argv: list[str]) -> int:
    import tyro
    from transformers.utils import logging

    from symground.analysis.run import AnalysisSettings
    from symground.data.features import FeatureSettings, extract_features
    from symground.ops._build import build, build_cuda
    from symground.recipes import (
        CorpusSettings,
        DemoSettings,
        StudySettings,
        analyze_study,
        prepare,
        run_study,
        train_study,
    )
    from symground.recipes.architectures import ArchitecturesSettings, compare_architectures
    from symground.recipes.bench import BenchSettings, run_benchmarks
    from symground.recipes.dials import DialsSettings, turn_dial
    from symground.recipes.heads import HeadsSettings, find_model_heads
    from symground.recipes.paper import RECIPES, PaperSettings, run_paper
    from symground.recipes.pope import PopeSettings, make_questions
    from symground.recipes.prepare import GENERATED, kind_of
    from symground.recipes.sweep import SweepSettings, run_sweep
    from symground.reports import report
    from symground.training import Hardware, TrainSettings

    # transformers reports every file it writes, and warns of padding that no token which counts can see.
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    @dataclass(frozen=True, kw_only=True)
    class Demo(DemoSettings):
        """Train a GPT-2 and an LSTM on the generated corpus, analyse them and write the report."""

        out: str = "runs/demo"
        """Folder of the study."""

    @dataclass(frozen=True, kw_only=True)
    class Run(StudySettings):
        """Corpus to report: prepare, train, analyse. Run it again to go on where it stopped. With the name of a testbed
        of the study in the corpus's place (symground run paper-childes --help), all of that."""

        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'generated'; 'generated-images'; 'childes' and paths of transcripts; or 'visdial' and paths of dialogues, as
        for data."""
        out: str | None = None
        """Folder of the study; runs/ and the corpus's name by default."""

    @dataclass(frozen=True, kw_only=True)
    class Paper(PaperSettings):
        """A testbed of the study (arXiv 2510.13796) from its corpus to its results, beside the study's own figures."""

        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'paper-childes' and paths of transcripts; 'paper-captions' or 'paper-images' and paths of dialogues, whose
        scenes are captions or images."""
        out: str | None = None
        """Folder of the study; runs/ and the testbed's name by default."""

    @dataclass(frozen=True, kw_only=True)
    class Data(CorpusSettings):
        """Make a study's folder: tokenizer, token arrays, nouns, contexts; corpus.html shows what is in it."""

        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'generated'; 'generated-images', whose scenes are images; 'childes' and .cha files, folders, .zip or .tar.*
        archives of them; 'visdial' and .json files, folders or archives of them. Paths alone are transcripts."""
        out: str
        """Folder of the study."""

    @dataclass(frozen=True, kw_only=True)
    class Features(FeatureSettings):
        """Make an image set: patch embeddings by a frozen DINOv2, computed once; --visdial.images takes it."""

        paths: tyro.conf.Positional[tuple[str, ...]]
        """Images, folders, .zip or .tar.* archives of them."""
        out: str
        """Folder of the image set."""

    @dataclass(frozen=True, kw_only=True)
    class Train(TrainSettings):
        """Train one model on a study's data, into STUDY/MODEL/seedN."""

        study: tyro.conf.Positional[str]
        """Folder of the study."""
        hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)
        score: bool = False
        """Score the probes at each checkpoint while training goes on, so that curves grow."""

    @dataclass(frozen=True)
    class Analyze:
        """Analyse every checkpoint of a study or of one run."""

        run: tyro.conf.Positional[str]
        """A study's folder, or a run's."""
        settings: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(default_factory=AnalysisSettings)

    @dataclass(frozen=True)
    class Report:
        """Write the page of a study or a run from its tables, into its folder; of several, one that compares them."""

        paths: tyro.conf.Positional[tuple[str, ...]]
        """Folders of studies or of runs."""
        out: str | None = None
        """The file; report.html in the folder by default, for several compare.html here."""
        figures: bool = False
        """Also write every figure as PNG and PDF, into a folder "figures" beside the page."""
        acquisition: str | None = None
        """Wordbank's table of the proportion of children who say each word by month, to set emergence against."""

    @dataclass(frozen=True, kw_only=True)
    class Architectures(ArchitecturesSettings):
        """Train models of one size and several architectures across several gaps, and show which learn the link."""

        out: str = "runs/architectures"
        """Folder of the comparison: a study for each gap, the tables and the figure."""

    @dataclass(frozen=True, kw_only=True)
    class Dials(DialsSettings):
        """Turn one dial of the generated corpus (noise, gap, synonyms, unseen pairs, …) and show what is learnt."""

        dial: tyro.conf.Positional[str]
        """gap, max_distractors, silent_scenes, talk_alone, unsupported, background, zipf, partner, synonyms, homonyms,
        category_talk, unseen or cue; of images, size, parts, noise, clutter, position or grid. symground run --help
        says what each does (--generated.…, --images.…)."""
        out: str | None = None
        """Folder of the sweep: a study for each value, the tables and the figure; runs/DIAL by default."""

    @dataclass(frozen=True, kw_only=True)
    class Sweep(SweepSettings):
        """Seeds × models × corpora, then checkpoints × analyses, side by side on this machine or a Ray cluster."""

        corpus: tyro.conf.Positional[tuple[str, ...]]
        """What is trained on, as for data."""
        out: str | None = None
        """Folder of the sweep: a study for each corpus, the jobs and their errors; runs/sweep by default."""

    @dataclass(frozen=True, kw_only=True)
    class Heads(HeadsSettings):
        """Aggregate heads of a vision-language model over image-question pairs: where they are, whether they are stable
        and matter, whether their flow tells a wrong answer, and what amplifying them does."""

        model: tyro.conf.Positional[str]
        """A folder in Hugging Face layout with its processor, or a model's name on the hub."""
        out: str | None = None
        """Folder of the tables; runs/heads by default."""

    @dataclass(frozen=True, kw_only=True)
    class Pope(PopeSettings):
        """Yes/no questions about objects, in POPE's form, from COCO's instances, for symground heads."""

        instances: tyro.conf.Positional[str]
        """COCO's annotations: images, categories, annotations."""
        out: str
        """The file of questions (JSON lines)."""

    @dataclass(frozen=True, kw_only=True)
    class Bench(BenchSettings):
        """Every number to hold beside its peers, in a clone of the repository: what is missing is listed as missing."""

    @dataclass(frozen=True)
    class Build:
        """Compile the C++/CUDA extension into the package's folder; everything works without it, slower."""

    commands: dict[str, Any] = {
        "demo": Demo, "run": Run, "data": Data, "features": Features, "train": Train, "analyze": Analyze,
        "report": Report, "architectures": Architectures, "dials": Dials, "sweep": Sweep, "heads": Heads,
        "pope": Pope, "bench": Bench, "build": Build,
    }  # fmt: skip
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            if argv[:1] == ["run"] and any(name in argv for name in RECIPES):
                command: Any = tyro.cli(Paper, args=argv[1:], prog="symground run")
            else:
                command = tyro.extras.subcommand_cli_from_dict(
                    commands, args=argv, prog="symground", description=f"{__doc__}\n\n{_EPILOGUE}"
                )
    except SystemExit as stop:
        if stop.code:
            print(f"symground: {_first_sentence(printed.getvalue())} (--help lists what there is)", file=sys.stderr)
        raise
    if isinstance(command, Report) and not command.paths:
        print("symground: PATHS: expected folders of studies or runs; got nothing", file=sys.stderr)
        return 2
    if isinstance(command, (Run, Data, Sweep)) and not command.corpus:
        print(
            "symground: CORPUS: expected 'generated', or 'childes' or 'visdial' and paths; got nothing", file=sys.stderr
        )
        return 2
    match command:
        case Demo():
            written = run_study([GENERATED], command.out, command)
        case Run():
            kind, paths = kind_of(command.corpus)
            out = command.out or f"runs/{Path(*paths[:1]).resolve().name.partition('.')[0] if paths else kind}"
            written = run_study(command.corpus, out, command)
        case Paper():
            written = run_paper(command.corpus, command.out or f"runs/{command.corpus[0]}", command)
        case Data():
            prepare(command.corpus, command.out, command)
            written = Path(command.out)
        case Features():
            made = extract_features(command.paths, command.out, command)
            print(f"{len(made):,} images of {made.patches} patches with {made.width} features", file=sys.stderr)
            for skipped in made.description["skipped"]:
                print(f"set aside: {skipped['file']}: {skipped['reason']}", file=sys.stderr)
            written = Path(command.out)
        case Train():
            train_study(
                Path(command.study), [command.model], [command.seed], command, command.hardware, score=command.score
            )
            written = Path(command.study) / command.model / f"seed{command.seed}"
        case Analyze():
            written = analyze_study(command.run, command.settings) / "results"
        case Report():
            written = report(*command.paths, out=command.out, figures=command.figures, acquisition=command.acquisition)
        case Architectures():
            written = compare_architectures(command.out, command)
        case Sweep():
            written = run_sweep(command.corpus, command.out or "runs/sweep", command)
        case Dials():
            written = turn_dial(command.out or f"runs/{command.dial}", command)
        case Heads():
            written = find_model_heads(command.model, command.out or "runs/heads", command)
        case Pope():
            written = make_questions(command.instances, command.out, command)
        case Bench():
            return run_benchmarks(command)
        case Build():
            print(build())
            try:
                written = build_cuda()
            except FileNotFoundError as missing:
                print(f"symground: {missing}; the extension has its CPU part only", file=sys.stderr)
                return 0
    print(written)
    return 0


def _first_sentence(printed: str) -> str:
    """What tyro says first: without its frame or, where it draws none, its title; without the hints below."""
    lines = [line.strip(" │") for line in printed.splitlines() if not line.startswith(("╭", "╰"))]
    sections = re.split(r"\n[-─]{3,}\n", "\n".join(lines))
    said = sections[0] if "╭" in printed or len(sections) == 1 else sections[1]
    return re.sub(r"^Error parsing (?!--)\S+: ", "", " ".join(said.split())) or "wrong usage"


if __name__ == "__main__":
    sys.exit(main())
