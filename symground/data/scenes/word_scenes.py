"""The default corpus: seeded child-directed scenes with ENV and LAN. It needs no download.

In a scene, someone acts on one to three objects (ENV). Some talk that names no object follows, then mother and child
talk about the objects (LAN). Sentences come from fixed pools: slots of high entropy delay the link by a thousand steps.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from symground.data.sequences import CorpusBuilder, share_of
from symground.data.words import STUDY_NOUNS, TIERS, cdi_categories, env_tokens, lan_tokens, speaker
from symground.errors import check_kind, check_types, choice, integer, number

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
    """Settings of the generated corpus."""

    scenes: int = 12_000
    """Scenes in the corpus, about 45 tokens each."""
    nouns: int = 60
    """Object nouns, the first of the study's 100."""
    zipf: float = 0.8
    """Exponent of the nouns' frequencies; at 0 all are equally frequent."""
    max_objects: int = 3
    """Most objects in a scene; the number is drawn from 1 to this."""
    background: float = 0.0
    """Share of ENV utterances that add a noun which is never talked about."""
    max_distractors: int = 3
    """Most utterances without an object between acting and talking (the gap), drawn from 1 to this; 0: none."""
    gap: int | None = None
    """Exact number of such utterances, in the corpus and its probes; None uses max_distractors."""
    max_talk: int = 4
    """Most utterances that name an object in a scene; the number is drawn from 2 to this."""
    silent_scenes: float = 0.0
    """Noise: share of scenes without talk."""
    talk_alone: float = 0.0
    """Noise: share of scenes with talk only, without their objects."""
    cue: str = "env"
    """The tier of the scene; 'lan' puts it into spoken words, a control that separates grounding from plain recall."""
    partner: float = 0.0
    """Chance that talk names an object's partner, always the same other noun: co-occurrence without identity."""
    synonyms: int = 1
    """Words for each object in speech (book, book2, …), equally frequent."""
    homonyms: int = 1
    """Objects that share one word in speech, the word of the first."""
    category_talk: float = 0.0
    """Chance that talk names an object by its CDI category (animals for elephant)."""
    unseen: float = 0.0
    """Share of pairs of a noun and a sentence, of the scene or of the talk, that never occur."""
    repeat: float = 0.5
    """Chance that talk stays with the last topic."""
    unsupported: float = 0.2
    """Chance that talk turns to a noun that is not in the scene: noise."""
    scenes_per_document: int = 50
    """Scenes in one document (a session of one family)."""
    seed: int = 0
    """The same seed gives the same corpus."""

    def __post_init__(self) -> None:
        check_types(self)
        smallest = {
            "scenes": 1, "max_objects": 1, "max_distractors": 0, "max_talk": 2, "scenes_per_document": 1,
            "synonyms": 1, "homonyms": 1,
        }  # fmt: skip
        for name, low in smallest.items():
            integer(name, getattr(self, name), low)
        if self.gap is not None:
            integer("gap", self.gap, 0)
        integer("nouns", self.nouns, 2, len(STUDY_NOUNS))
        for name in ("background", "repeat", "unsupported", "silent_scenes", "talk_alone", "partner", "category_talk"):
            number(name, getattr(self, name), "[0, 1]")
        if self.silent_scenes + self.talk_alone > 1:
            raise ValueError(
                f"talk_alone: expected at most 1 - silent_scenes = {1 - self.silent_scenes:g}, got {self.talk_alone}"
            )
        number("unseen", self.unseen, "[0, 0.5]")
        number("zipf", self.zipf)
        choice("cue", self.cue, TIERS)
        if -(-self.nouns // self.homonyms) < 2:
            raise ValueError(
                f"homonyms: expected at most {self.nouns - 1}, so that two words are left, got {self.homonyms}"
            )

    @property
    def objects(self) -> tuple[str, ...]:
        """The nouns that occur in scenes."""
        return STUDY_NOUNS[: self.nouns]

    @property
    def spoken(self) -> dict[str, str]:
        """noun → its first word in speech, if that is another word."""
        words = {noun: self.objects[i - i % self.homonyms] for i, noun in enumerate(self.objects)}
        return {noun: word for noun, word in words.items() if word != noun}


class Utterance(NamedTuple):
    """The words on one tier, and their speaker."""

    speaker: str
    tier: str
    """"env" or "lan"."""
    text: str

    def tokens(self) -> list[str]:
        words = env_tokens(self.text) if self.tier == "env" else lan_tokens(self.text)
        return [speaker(self.speaker), *words]


def occurs(settings: GeneratedSettings, noun: str, sentence: str) -> bool:
    """Whether the noun may occur in this sentence, of the scene or of the talk: see ``unseen``.

    The two sentences of each of the package's contexts belong together: a noun occurs in both or in neither.
    """
    return share_of(f"{settings.seed} {noun} {_context_of().get(sentence, sentence)}") >= settings.unseen


@cache
def _context_of() -> dict[str, str]:
    text = (files("symground.data") / "resources" / "contexts.json").read_text(encoding="utf-8")
    pairs = enumerate(json.loads(text))
    return {sentence: f"context {i}" for i, pair in pairs for sentence in (pair["env"], f"{pair['lan']} {{}}")}


def distractor(rng: random.Random) -> Utterance:
    """An utterance that names no object."""
    who = rng.choice(("CHI", "MOT"))
    acted = rng.random() < 0.3
    return Utterance(who, "env" if acted else "lan", rng.choice(DISTRACTOR_ENV_POOL if acted else DISTRACTOR_LAN_POOL))


def add_scenes(builder: CorpusBuilder, settings: GeneratedSettings) -> None:
    """Add the generated corpus to ``builder``, a document for every ``scenes_per_document`` scenes.

    Raises:
        ValueError: the builder or the settings have the wrong type.
    """
    check_kind(builder, CorpusBuilder, "builder")
    check_kind(settings, GeneratedSettings, "settings")
    family = Family(settings)
    document: list[list[str]] = []
    for scene in range(settings.scenes):
        document.append(family.scene())
        if len(document) == settings.scenes_per_document or scene + 1 == settings.scenes:
            builder.add(document)
            document = []
    builder.statistics["generated"] = asdict(settings)


class Family:
    """Acts and talks according to the settings. A setting at its default draws no random number: it changes nothing."""

    def __init__(self, settings: GeneratedSettings) -> None:
        self._settings, self._rng = settings, random.Random(settings.seed)
        self._nouns = settings.objects
        self._weights = [(rank + 1) ** -settings.zipf for rank in range(settings.nouns)]
        # How likely each noun is to be talked about when it is there: decouples co-occurrence from frequency.
        self._talk_rate = {noun: self._rng.uniform(0.25, 1.0) for noun in self._nouns}
        half = settings.nouns // 2
        self._partner = {noun: self._nouns[(i + half) % settings.nouns] for i, noun in enumerate(self._nouns)}
        self._category = cdi_categories()

    def scene(self) -> list[str]:
        """The acts, then utterances that name no object, then the talk."""
        silent, alone = self.noise()
        objects = self.objects()
        done = [] if alone else [token for noun in objects for token in self._acted(noun)]
        between = self.distractors()
        return [*done, *between] if silent else [*done, *between, *self.talk(objects)]

    def noise(self) -> tuple[bool, bool]:
        """Whether the next scene has no talk, and whether it has only talk."""
        s = self._settings
        if not s.silent_scenes and not s.talk_alone:
            return False, False
        chance = self._rng.random()
        return chance < s.silent_scenes, s.silent_scenes <= chance < s.silent_scenes + s.talk_alone

    def objects(self) -> list[str]:
        """The objects of the next scene."""
        some = self._rng.randint(1, self._settings.max_objects)
        return list(dict.fromkeys(self._rng.choices(self._nouns, self._weights, k=some)))

    def distractors(self) -> list[str]:
        """Utterances that name no object."""
        s, rng = self._settings, self._rng
        count = rng.randint(min(1, s.max_distractors), s.max_distractors) if s.gap is None else s.gap
        return [token for _ in range(count) for token in distractor(rng).tokens()]

    def _acted(self, noun: str) -> list[str]:
        return [speaker("CHI"), *TIERS[self._settings.cue][1](self._act(noun))]

    def _act(self, noun: str) -> str:
        s, rng = self._settings, self._rng
        sentence = self._sentence(ENV_POOL, noun).format(noun)
        if rng.random() < s.background:
            sentence += " " + rng.choice(BACKGROUND_POOL).format(rng.choices(self._nouns, self._weights)[0])
        return sentence

    def talk(self, objects: list[str]) -> list[str]:
        """The talk about the objects."""
        s, rng = self._settings, self._rng
        tokens: list[str] = []
        topic = None
        for _ in range(rng.randint(2, s.max_talk)):
            if topic is None or rng.random() >= s.repeat:
                if rng.random() < s.unsupported:
                    topic = rng.choices(self._nouns, self._weights)[0]
                else:
                    topic = rng.choices(objects, [self._talk_rate[noun] for noun in objects])[0]
            who = speaker(rng.choice(("CHI", "MOT")))
            named = self._partner[topic] if s.partner and rng.random() < s.partner else topic
            tokens += [who, *lan_tokens(self._sentence(LAN_POOL, named).format(self._word(named)))]
        return tokens

    def _sentence(self, pool: tuple[str, ...], noun: str) -> str:
        return self._rng.choice([x for x in pool if occurs(self._settings, noun, x)] if self._settings.unseen else pool)

    def _word(self, noun: str) -> str:
        s, rng = self._settings, self._rng
        if s.category_talk and rng.random() < s.category_talk:
            return self._category[noun]
        word = s.spoken.get(noun, noun) if s.homonyms > 1 else noun
        chosen = rng.randrange(s.synonyms) if s.synonyms > 1 else 0
        return f"{word}{chosen + 1}" if chosen else word
