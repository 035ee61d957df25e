"""The generated corpus: its settings, and the corpus on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from symground.data import Corpus, CorpusBuilder, GeneratedSettings, add_scenes
from symground.data.scenes import occurs
from symground.data.words import STUDY_NOUNS


def build(**changes: object) -> Corpus:
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(**{"scenes": 120, "nouns": 8, **changes}))  # type: ignore[arg-type]
    return builder.build()


def test_same_seed_same_corpus() -> None:
    first, second, other = build(), build(), build(seed=1)
    assert np.array_equal(first.tokens, second.tokens)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert not np.array_equal(first.tokens, other.tokens)


def test_env_and_lan_are_different_tokens_and_ids_go_by_frequency(corpus: Corpus) -> None:
    vocabulary = corpus.tokenizer.get_vocab()
    assert (vocabulary["[UNK]"], vocabulary["[PAD]"]) == (0, 1)
    assert vocabulary["book:<ENV>"] != vocabulary["book:<LAN>"]
    counts = np.bincount(corpus.tokens, minlength=len(vocabulary))
    assert (np.diff(counts[2:]) <= 0).all()
    assert corpus.tokenizer.decode(corpus.tokens[:1]) == "<CHI>"


def test_documents_and_starts_bound_the_tokens(corpus: Corpus) -> None:
    assert corpus.documents[0] == 0
    assert corpus.documents[-1] == len(corpus.tokens)
    assert (np.diff(corpus.documents) > 0).all()
    assert len(corpus.starts) == 1000
    assert set(corpus.documents[:-1]) <= set(corpus.starts)


def test_a_saved_corpus_is_loaded_unchanged(tmp_path: Path) -> None:
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=120, nouns=8))
    corpus = builder.write(tmp_path / "corpus")
    again = Corpus.load(tmp_path / "corpus")
    for name in ("tokens", "documents", "starts"):
        assert np.array_equal(getattr(corpus, name), getattr(again, name))
    assert again.counts == corpus.counts
    assert again.statistics == corpus.statistics
    (tmp_path / "corpus" / "starts.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"starts\.npy is missing"):
        Corpus.load(tmp_path / "corpus")


def test_background_and_zipf() -> None:
    background = build(background=1.0).counts
    assert background["near:<ENV>"] + background["by:<ENV>"] > 0
    assert "near:<ENV>" not in build().counts
    flat, steep = (build(zipf=z, scenes=2000, unsupported=0.0).counts for z in (0.0, 2.0))
    assert steep["box:<ENV>"] / steep["table:<ENV>"] > 5 * flat["box:<ENV>"] / flat["table:<ENV>"]


@pytest.mark.parametrize(
    ("name", "value"), [("nouns", 1), ("nouns", 101), ("scenes", 0), ("repeat", 1.5), ("max_talk", 1)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        GeneratedSettings(**{name: value})  # type: ignore[arg-type]


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one token"):
        CorpusBuilder().build()


def utterances(tokens: list[str]) -> list[list[str]]:
    """Tokens split before each speaker."""
    found: list[list[str]] = []
    for token in tokens:
        if token.startswith("<"):
            found.append([])
        found[-1].append(token)
    return found


@pytest.mark.parametrize("gap", [0, 3])
def test_a_gap_is_that_many_utterances_without_an_object(gap: int) -> None:
    settings = GeneratedSettings(scenes=1, nouns=8, max_objects=1, gap=gap)
    for seed in range(20):
        builder = CorpusBuilder()
        add_scenes(builder, GeneratedSettings(**{**vars(settings), "seed": seed}))
        built = builder.build()
        scene = utterances(built.tokenizer.decode(built.tokens).split())
        named = [any(word.rpartition(":")[0] in STUDY_NOUNS[:8] for word in words) for words in scene]
        assert named == [True] + [False] * gap + [True] * (len(scene) - 1 - gap)


def test_the_default_corpus_has_not_changed() -> None:
    """The results in the repository are from the corpus with this hash."""
    built = build()
    digest = hashlib.sha256(np.ascontiguousarray(built.tokens, dtype=np.int64).tobytes()).hexdigest()
    assert digest == "835d8d8286172596980bdd3ecc01c77e8075f7a1e27f59eecaff46c4edf6d788"
    with pytest.raises(ValueError, match="gap: expected an integer of at least 0, got -1"):
        GeneratedSettings(gap=-1)


def scenes_of(**changes: object) -> tuple[list[list[str]], GeneratedSettings]:
    """Each scene of a corpus as its tokens."""
    settings = GeneratedSettings(**{"scenes": 400, "nouns": 8, **changes})  # type: ignore[arg-type]
    builder = CorpusBuilder()
    add_scenes(builder, settings)
    built = builder.build()
    words = built.tokenizer.convert_ids_to_tokens(built.tokens.tolist())
    return [words[a:b] for a, b in zip(built.starts, [*built.starts[1:], len(words)], strict=True)], settings


def nouns_in(scene: list[str], tier: str) -> set[str]:
    return {noun for noun in STUDY_NOUNS[:8] if f"{noun}:<{tier}>" in scene}


@pytest.mark.parametrize(("silent", "alone"), [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2), (0.4, 0.6), (1.0, 0.0), (0.0, 0.0)])
def test_noise_is_talk_without_a_scene_and_scenes_without_talk(silent: float, alone: float) -> None:
    """Each setting alone, and both."""
    found, _ = scenes_of(silent_scenes=silent, talk_alone=alone, scenes=2000)
    unsaid = sum(not nouns_in(scene, "LAN") for scene in found) / len(found)
    unseen = sum(not nouns_in(scene, "ENV") for scene in found) / len(found)
    assert unsaid == pytest.approx(silent, abs=0.04)
    assert unseen == pytest.approx(alone, abs=0.04)


def test_shares_of_noise_sum_to_at_most_1() -> None:
    GeneratedSettings(silent_scenes=0.25, talk_alone=0.75)
    with pytest.raises(ValueError, match="talk_alone: expected at most 1 - silent_scenes = 0.7, got 0.8"):
        GeneratedSettings(silent_scenes=0.3, talk_alone=0.8)


def test_a_spoken_scene_has_no_env_word_and_the_same_distances() -> None:
    plain, spoken = scenes_of()[0], scenes_of(cue="lan")[0]
    assert [len(scene) for scene in plain] == [len(scene) for scene in spoken]
    as_lan = [[token.replace(":<ENV>", ":<LAN>") for token in scene] for scene in plain]
    # Except for distractors, which may be ENV in both.
    differing = {(a, b) for x, y in zip(as_lan, spoken, strict=True) for a, b in zip(x, y, strict=True) if a != b}
    assert all(b == a.replace(":<LAN>", ":<ENV>") for a, b in differing)
    assert not any(nouns_in(scene, "ENV") for scene in spoken)
    with pytest.raises(ValueError, match="cue: expected one of 'env', 'lan'; got 'x'"):
        GeneratedSettings(cue="x")


def test_talk_names_the_partner_of_an_object() -> None:
    found, settings = scenes_of(partner=1.0, unsupported=0.0, repeat=0.0)
    half = settings.nouns // 2
    partner = {noun: STUDY_NOUNS[:8][(i + half) % 8] for i, noun in enumerate(STUDY_NOUNS[:8])}
    for scene in found:
        assert nouns_in(scene, "LAN") <= {partner[noun] for noun in nouns_in(scene, "ENV")}


def test_synonyms_homonyms_and_categories() -> None:
    words = {token for scene in scenes_of(synonyms=3, scenes=2000)[0] for token in scene if token.endswith("<LAN>")}
    assert {"book:<LAN>", "book2:<LAN>", "book3:<LAN>"} <= words
    assert "book4:<LAN>" not in words
    shared, settings = scenes_of(homonyms=2)
    assert settings.spoken == {STUDY_NOUNS[i]: STUDY_NOUNS[i - 1] for i in (1, 3, 5, 7)}
    assert all(nouns_in(scene, "LAN") <= set(STUDY_NOUNS[:8:2]) for scene in shared)
    assert any("hand:<ENV>" in scene for scene in shared)
    categories, _ = scenes_of(category_talk=1.0)
    assert not any(nouns_in(scene, "LAN") for scene in categories)
    assert any("toys:<LAN>" in scene for scene in categories)
    with pytest.raises(ValueError, match="homonyms: expected at most 7, so that two words are left, got 8"):
        GeneratedSettings(nouns=8, homonyms=8)
    assert len(set(GeneratedSettings(nouns=8, homonyms=4).spoken.values()) | {STUDY_NOUNS[0]}) == 2
    for homonyms in (5, 7):  # the last word has fewer objects
        GeneratedSettings(nouns=8, homonyms=homonyms)


def test_unseen_pairs_never_occur_and_others_do() -> None:
    found, settings = scenes_of(unseen=0.3, scenes=3000)
    contexts = [
        ("picks up {}", "I love this {}"),
        ("looks at {}", "that's a {}"),
        ("reaches for {}", "where is the {}"),
    ]
    text = {"env": [" ".join(t[:-6] for t in s if t.endswith("<ENV>")) for s in found],
            "lan": [" ".join(t[:-6] for t in s if t.endswith("<LAN>")) for s in found]}  # fmt: skip
    held = 0
    for acted, said in contexts:
        for noun in STUDY_NOUNS[:8]:
            may = occurs(settings, noun, acted)
            assert may == occurs(settings, noun, said)  # the two sentences of a context belong together
            held += not may
            assert any(acted.format(noun) in scene for scene in text["env"]) == may
            assert any(said.format(noun) in scene for scene in text["lan"]) == may
    assert 0 < held < 20
    for share in (0.0, 0.1, 0.5):  # this share of all pairs
        settings = GeneratedSettings(unseen=share)
        left_out = [not occurs(settings, noun, f"sentence {i} {{}}") for noun in STUDY_NOUNS for i in range(30)]
        assert np.mean(left_out) == pytest.approx(share, abs=0.05)
    with pytest.raises(ValueError, match=r"unseen: expected a number in \[0, 0.5\], got 0.9"):
        GeneratedSettings(unseen=0.9)
