"""The default corpus: seeded child-directed scenes with ENV and LAN, needing no download.

A scene acts on one to three objects (ENV), some talk that names no object comes between, then mother and child talk
about what is there (LAN). Sentences come from fixed pools: slots of high entropy delay the link by a thousand steps.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import NamedTuple

from symground.data.builder import CorpusBuilder
from symground.data.nouns import STUDY_NOUNS
from symground.data.words import env_tokens, lan_tokens, speaker

ENV_POOL = (
    "picks up {}", "points to {}", "holds {} out to MOT", "reaches for {}", "plays with {}", "looks at {}",
    "puts {} down", "takes {} from MOT", "asked for a new {}", "MOT hands CHI {}", "drops {}", "gives {} to MOT",
    "turns {} over", "touches {}", "shakes {}", "carries {} around", "finds {}", "MOT shows CHI {}",
)  # fmt: skip
LAN_POOL = (
    "I love this {}", "what's that a {}", "look at the {}", "where is the {}", "give me the {}", "that's a {}",
    "do you want the {}", "here is your {}", "I like the {}", "can you find the {}", "is it a {}", "see the {} there",
    "what does the {} do", "a {}", "my {}", "put the {} away", "you have the {} now", "oh the {}",
)  # fmt: skip
BACKGROUND_POOL = ("near {}", "next to {}", "behind {}", "by {}")
DISTRACTOR_ENV_POOL = ("laughs", "walks away", "sits down", "MOT smiles", "turns around", "claps", "looks up", "waits")
DISTRACTOR_LAN_POOL = (
    "come on", "that's right", "what did you say", "all done", "are you tired", "very good", "oh no", "let me see",
    "sit down please", "thank you", "one more time", "wait a minute", "yes you can", "be careful", "here we go",
)  # fmt: skip


@dataclass(frozen=True)
class GeneratedSettings:
    """Dials of the generated corpus."""

    scenes: int = 12_000
    """Scenes in the corpus, about 45 tokens each."""
    nouns: int = 60
    """Object nouns, the first of the study's 100."""
    zipf: float = 0.8
    """Exponent of the nouns' frequencies; 0 makes all alike."""
    max_objects: int = 3
    """A scene acts on 1 to this many objects."""
    background: float = 0.0
    """Share of ENV utterances that add a noun which is never talked about."""
    max_distractors: int = 3
    """Between acting and talking come 1 to this many utterances that name no object (0: none): the gap."""
    gap: int | None = None
    """Exactly so many such utterances, in the corpus and in its probes; None leaves it to max_distractors."""
    max_talk: int = 4
    """A scene has 2 to this many utterances that name an object."""
    repeat: float = 0.5
    """Chance that talk stays with the last topic."""
    unsupported: float = 0.2
    """Chance that talk turns to a noun that is not in the scene: noise."""
    scenes_per_document: int = 50
    """Scenes in one document (a session of one family)."""
    seed: int = 0
    """Same seed, same corpus."""

    def __post_init__(self) -> None:
        smallest = {
            "scenes": 1, "nouns": 2, "max_objects": 1, "max_distractors": 0, "max_talk": 2, "scenes_per_document": 1,
        }  # fmt: skip
        for name, low in smallest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        if self.gap is not None and self.gap < 0:
            raise ValueError(f"gap: expected at least 0, got {self.gap}")
        if self.nouns > len(STUDY_NOUNS):
            raise ValueError(f"nouns: expected at most {len(STUDY_NOUNS)}, got {self.nouns}")
        for name in ("background", "repeat", "unsupported"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")


class Utterance(NamedTuple):
    """Words on one tier, and whose."""

    speaker: str
    tier: str
    """"env" or "lan"."""
    text: str

    def tokens(self) -> list[str]:
        words = env_tokens(self.text) if self.tier == "env" else lan_tokens(self.text)
        return [speaker(self.speaker), *words]


def distractor(rng: random.Random) -> Utterance:
    """One that names no object."""
    who = rng.choice(("CHI", "MOT"))
    acted = rng.random() < 0.3
    return Utterance(who, "env" if acted else "lan", rng.choice(DISTRACTOR_ENV_POOL if acted else DISTRACTOR_LAN_POOL))


def add_scenes(builder: CorpusBuilder, settings: GeneratedSettings) -> None:
    """Add the generated corpus to ``builder``, a document every ``scenes_per_document`` scenes."""
    rng = random.Random(settings.seed)
    nouns = STUDY_NOUNS[: settings.nouns]
    weights = [(rank + 1) ** -settings.zipf for rank in range(len(nouns))]
    # How readily each noun is talked about once it is there: decouples co-occurrence from plain frequency.
    talk_rate = {noun: rng.uniform(0.25, 1.0) for noun in nouns}
    document: list[list[str]] = []
    for scene in range(settings.scenes):
        document.append(_scene(rng, settings, nouns, weights, talk_rate))
        if len(document) == settings.scenes_per_document or scene + 1 == settings.scenes:
            builder.add(document)
            document = []
    builder.statistics["generated"] = asdict(settings)


def _scene(
    rng: random.Random,
    settings: GeneratedSettings,
    nouns: tuple[str, ...],
    weights: list[float],
    talk_rate: dict[str, float],
) -> list[str]:
    tokens: list[str] = []
    objects: list[str] = []
    for noun in rng.choices(nouns, weights, k=rng.randint(1, settings.max_objects)):
        if noun not in objects:
            objects.append(noun)
    for noun in objects:
        sentence = rng.choice(ENV_POOL).format(noun)
        if rng.random() < settings.background:
            sentence += " " + rng.choice(BACKGROUND_POOL).format(rng.choices(nouns, weights)[0])
        tokens += [speaker("CHI"), *env_tokens(sentence)]
    few = min(1, settings.max_distractors)
    for _ in range(rng.randint(few, settings.max_distractors) if settings.gap is None else settings.gap):
        tokens += distractor(rng).tokens()
    topic = None
    for _ in range(rng.randint(2, settings.max_talk)):
        if topic is None or rng.random() >= settings.repeat:
            if rng.random() < settings.unsupported:
                topic = rng.choices(nouns, weights)[0]
            else:
                topic = rng.choices(objects, [talk_rate[noun] for noun in objects])[0]
        tokens += [speaker(rng.choice(("CHI", "MOT"))), *lan_tokens(rng.choice(LAN_POOL).format(topic))]
    return tokens
