"""What each command takes and does. A command's modules are imported when it is known to be the one that is meant."""

# No annotations from __future__: tyro reads those of classes that are made inside functions.

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from symground.disk import make_folder


class Command(NamedTuple):
    """A command, once its modules are there."""

    settings: type
    """A dataclass: its fields are the options, and the positional arguments."""
    do: Callable[[Any], Path | int]
    """settings → what was written, or an exit code."""


class WrongUsageError(ValueError):
    """Arguments that no command can be made of."""


def demo() -> Command:
    """Train a GPT-2 and an LSTM on the generated corpus, analyse them and write the report."""
    from symground.recipes import DemoSettings, run_study
    from symground.recipes.prepare import GENERATED

    @dataclass(frozen=True, kw_only=True)
    class Demo(DemoSettings):
        out: str = "runs/demo"
        """Folder of the study."""

    return Command(Demo, lambda given: run_study([GENERATED], given.out, given))


def run() -> Command:
    """Corpus to report: prepare, train, analyse. Run it again to go on where it stopped. With the name of a testbed of
    the study in the corpus's place (symground run paper-childes --help), all of that."""
    import tyro

    from symground.recipes import StudySettings, run_study
    from symground.recipes.prepare import kind_of

    @dataclass(frozen=True, kw_only=True)
    class Run(StudySettings):
        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'generated'; 'generated-images'; 'childes' and paths of transcripts; or 'visdial' and paths of dialogues, as
        for data."""
        out: str | None = None
        """Folder of the study; runs/ and the corpus's name by default."""

    def do(given: Run) -> Path:
        kind, paths = kind_of(_some_corpus(given.corpus))
        out = given.out or f"runs/{Path(*paths[:1]).resolve().name.partition('.')[0] if paths else kind}"
        return run_study(given.corpus, out, given)

    return Command(Run, do)


def paper() -> Command:
    """A testbed of the study (arXiv 2510.13796) from its corpus to its results, beside the study's own figures."""
    import tyro

    from symground.recipes.paper import PaperSettings, run_paper

    @dataclass(frozen=True, kw_only=True)
    class Paper(PaperSettings):
        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'paper-childes' and paths of transcripts; 'paper-captions' or 'paper-images' and paths of dialogues, whose
        scenes are captions or images."""
        out: str | None = None
        """Folder of the study; runs/ and the testbed's name by default."""

    return Command(Paper, lambda given: run_paper(given.corpus, given.out or f"runs/{given.corpus[0]}", given))


def data() -> Command:
    """Make a study's folder: tokenizer, token arrays, nouns, contexts; corpus.html shows what is in it."""
    import tyro

    from symground.recipes import CorpusSettings, prepare

    @dataclass(frozen=True, kw_only=True)
    class Data(CorpusSettings):
        corpus: tyro.conf.Positional[tuple[str, ...]]
        """'generated'; 'generated-images', whose scenes are images; 'childes' and .cha files, folders, .zip or .tar.*
        archives of them; 'visdial' and .json files, folders or archives of them. Paths alone are transcripts."""
        out: str
        """Folder of the study."""

    def do(given: Data) -> Path:
        prepare(_some_corpus(given.corpus), given.out, given)
        return Path(given.out)

    return Command(Data, do)


def features() -> Command:
    """Make an image set: patch embeddings by a frozen DINOv2, computed once; --visdial.images takes it."""
    import tyro

    from symground.data.features import FeatureSettings, extract_features

    @dataclass(frozen=True, kw_only=True)
    class Features(FeatureSettings):
        paths: tyro.conf.Positional[tuple[str, ...]]
        """Images, folders, .zip or .tar.* archives of them."""
        out: str
        """Folder of the image set."""

    def do(given: Features) -> Path:
        made = extract_features(given.paths, given.out, given)
        print(f"{len(made):,} images of {made.patches} patches with {made.width} features", file=sys.stderr)
        for skipped in made.description["skipped"]:
            print(f"set aside: {skipped['file']}: {skipped['reason']}", file=sys.stderr)
        return Path(given.out)

    return Command(Features, do)


def train() -> Command:
    """Train one model on a study's data, into STUDY/MODEL/seedN."""
    import tyro

    from symground.recipes import train_study
    from symground.training import Hardware, TrainSettings

    @dataclass(frozen=True, kw_only=True)
    class Train(TrainSettings):
        study: tyro.conf.Positional[str]
        """Folder of the study."""
        hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)
        score: bool = False
        """Score the probes at each checkpoint while training goes on, so that curves grow."""

    def do(given: Train) -> Path:
        study = Path(given.study)
        train_study(study, [given.model], [given.seed], given, given.hardware, score=given.score)
        return study / given.model / f"seed{given.seed}"

    return Command(Train, do)


def analyze() -> Command:
    """Analyse every checkpoint of a study or of one run."""
    import tyro

    from symground.analysis.run import AnalysisSettings
    from symground.recipes import analyze_study

    @dataclass(frozen=True)
    class Analyze:
        run: tyro.conf.Positional[str]
        """A study's folder, or a run's."""
        settings: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(default_factory=AnalysisSettings)

    return Command(Analyze, lambda given: analyze_study(given.run, given.settings) / "results")


def report() -> Command:
    """Write the page of a study or a run from its tables, into its folder; of several, one that compares them."""
    import tyro

    import symground.reports

    @dataclass(frozen=True)
    class Report:
        paths: tyro.conf.Positional[tuple[str, ...]]
        """Folders of studies or of runs."""
        out: str | None = None
        """The file; report.html in the folder by default, for several compare.html here."""
        figures: bool = False
        """Also write every figure as PNG and PDF, into a folder "figures" beside the page."""
        acquisition: str | None = None
        """Wordbank's table of the proportion of children who say each word by month, to set emergence against."""

    def do(given: Report) -> Path:
        if not given.paths:
            raise WrongUsageError("PATHS: expected folders of studies or runs; got nothing")
        if given.out is not None:  # what cannot be written is told before the work
            if Path(given.out).is_dir():
                raise WrongUsageError(f"out: expected a file, got the folder {given.out}")
            make_folder(Path(given.out).parent)
        return symground.reports.report(
            *given.paths, out=given.out, figures=given.figures, acquisition=given.acquisition
        )

    return Command(Report, do)


def architectures() -> Command:
    """Train models of one size and several architectures across several gaps, and show which learn the link."""
    from symground.recipes.architectures import ArchitecturesSettings, compare_architectures

    @dataclass(frozen=True, kw_only=True)
    class Architectures(ArchitecturesSettings):
        out: str = "runs/architectures"
        """Folder of the comparison: a study for each gap, the tables and the figure."""

    return Command(Architectures, lambda given: compare_architectures(given.out, given))


def dials() -> Command:
    """Turn one dial of the generated corpus (noise, gap, synonyms, unseen pairs, …) and show what is learnt."""
    import tyro

    from symground.recipes.dials import DialsSettings, turn_dial

    @dataclass(frozen=True, kw_only=True)
    class Dials(DialsSettings):
        dial: tyro.conf.Positional[str] = field()  # without the default that the settings have in code
        """gap, max_distractors, silent_scenes, talk_alone, unsupported, background, zipf, partner, synonyms, homonyms,
        category_talk, unseen or cue; of images, size, parts, noise, clutter, position or grid. symground run --help
        says what each does (--generated.…, --images.…)."""
        out: str | None = None
        """Folder of the sweep: a study for each value, the tables and the figure; runs/DIAL by default."""

    return Command(Dials, lambda given: turn_dial(given.out or f"runs/{given.dial}", given))


def sweep() -> Command:
    """Seeds × models × corpora, then checkpoints × analyses, side by side on this machine or a Ray cluster."""
    import tyro

    from symground.recipes.sweep import SweepSettings, run_sweep

    @dataclass(frozen=True, kw_only=True)
    class Sweep(SweepSettings):
        corpus: tyro.conf.Positional[tuple[str, ...]]
        """What is trained on, as for data."""
        out: str | None = None
        """Folder of the sweep: a study for each corpus, the jobs and their errors; runs/sweep by default."""

    return Command(Sweep, lambda given: run_sweep(_some_corpus(given.corpus), given.out or "runs/sweep", given))


def heads() -> Command:
    """Aggregate heads of a vision-language model over image-question pairs: where they are, whether they are stable and
    matter, whether their flow tells a wrong answer, and what amplifying them does."""
    import tyro

    from symground.recipes.heads import HeadsSettings, find_model_heads

    @dataclass(frozen=True, kw_only=True)
    class Heads(HeadsSettings):
        model: tyro.conf.Positional[str]
        """A folder in Hugging Face layout with its processor, or a model's name on the hub."""
        out: str | None = None
        """Folder of the tables; runs/heads by default."""

    return Command(Heads, lambda given: find_model_heads(given.model, given.out or "runs/heads", given))


def pope() -> Command:
    """Yes/no questions about objects, in POPE's form, from COCO's instances, for symground heads."""
    import tyro

    from symground.recipes.pope import PopeSettings, make_questions

    @dataclass(frozen=True, kw_only=True)
    class Pope(PopeSettings):
        instances: tyro.conf.Positional[str]
        """COCO's annotations: images, categories, annotations."""
        out: str
        """The file of questions (JSON lines)."""

    return Command(Pope, lambda given: make_questions(given.instances, given.out, given))


def bench() -> Command:
    """Every number to hold beside its peers, in a clone of the repository: what is missing is listed as missing."""
    from symground.recipes.bench import BenchSettings, run_benchmarks

    return Command(BenchSettings, run_benchmarks)


def build() -> Command:
    """Compile the C++/CUDA extension into the package's folder; everything works without it, slower."""
    from symground.ops.common import build

    @dataclass(frozen=True)
    class Build:
        pass

    def do(_: Build) -> Path | int:
        print(build.build())
        try:
            return build.build_cuda()
        except FileNotFoundError as missing:
            print(f"symground: {missing}; the extension has its CPU part only", file=sys.stderr)
            return 0

    return Command(Build, do)


def _some_corpus(corpus: tuple[str, ...]) -> tuple[str, ...]:
    if not corpus:
        raise WrongUsageError("CORPUS: expected 'generated', or 'childes' or 'visdial' and paths; got nothing")
    return corpus


#: As they are listed.
COMMANDS: dict[str, Callable[[], Command]] = {
    "demo": demo, "run": run, "data": data, "features": features, "train": train, "analyze": analyze, "report": report,
    "architectures": architectures, "dials": dials, "sweep": sweep, "heads": heads, "pope": pope, "bench": bench,
    "build": build,
}  # fmt: skip
