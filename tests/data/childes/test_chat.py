"""One CHAT transcript as the study's sequence: every convention, on hand-made transcripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symground.data import ChatSettings
from symground.data.childes.chat import Transcript, Unreadable, decode, parse, turn_tokens

HEADER = "@UTF8\n@Begin\n@Participants:\tCHI Target_Child, MOT Mother\n"


def read(body: str, **settings: object) -> Transcript:
    return parse(f"{HEADER}{body}@End\n", ChatSettings(**settings))  # type: ignore[arg-type]


def turns(body: str, **settings: object) -> list[str]:
    return [" ".join(turn) for turn in read(body, **settings).turns]


def test_a_turn_is_events_before_and_during_then_the_utterance_then_events_after() -> None:
    body = "*MOT:\tlook a doggie !\n%act:\t<aft> CHI laughs <bef> MOT sits\n"
    body += "%gpx:\tpoints to dog\n%sit:\t<dur> noise outside\n"
    assert turns(body) == [
        "MOT:<ENV> sits:<ENV> noise:<ENV> outside:<ENV> <MOT> points:<ENV> to:<ENV> dog:<ENV> "
        "<MOT> look:<LAN> a:<LAN> doggie:<LAN> CHI:<ENV> laughs:<ENV>"
    ]


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("what's that ?", "what's that"),
        ("what’s that ?", "what's that"),
        ("the doggie [: dog] runs .", "the dog runs"),
        ("I want [//] I need it .", "I I need it"),
        ("<I want> [/] I want it .", "I want it"),
        ("look &=laughs there [% points] [= the dog] [=! crying] .", "look there"),
        ("jack+in+the+box .", "jack in the box"),
        ("gimme (be)cause .", "gimme because"),
        ("hello \x15123_456\x15 .", "hello"),
        ("see\n\tthe continuation .", "see the continuation"),
    ],
)
def test_conventions_of_the_main_line(line: str, tokens: str) -> None:
    expected = " ".join(f"{t}:<LAN>" for t in tokens.split())
    assert turns(f"*MOT:\t{line}\n") == [f"<MOT> {expected}"]


def test_unintelligible_words_are_unknown() -> None:
    assert turns("*MOT:\txxx want yyy .\n") == ["<MOT> [UNK] want:<LAN> [UNK]"]


def test_two_tiers_of_one_name_are_both_kept() -> None:
    assert turns("*MOT:\tlook .\n%act:\tsits\n\tdown\n%gpx:\tpoints\n%act:\tstands xxx\n\tup\n") == [
        "<MOT> sits:<ENV> down:<ENV> stands:<ENV> [UNK] up:<ENV> <MOT> points:<ENV> <MOT> look:<LAN>"
    ]


def test_a_turn_of_events_alone_has_no_utterance() -> None:
    assert turns("*CHI:\t0 .\n%act:\tthrows ball\n") == ["<CHI> throws:<ENV> ball:<ENV>"]
    assert turns("*CHI:\t0 .\n") == []


def test_a_misaligned_mor_tier_loses_no_words() -> None:
    assert turns("*MOT:\tone two three .\n%mor:\tn|one .\n\tn|more\n%act:\tsits\n") == [
        "<MOT> sits:<ENV> <MOT> one:<LAN> two:<LAN> three:<LAN>"
    ]


def test_settings() -> None:
    body = "*MOT:\tLook .\n%act:\tSits\n%com:\tA comment\n"
    assert turns(body, fold_case=True) == ["<MOT> sits:<ENV> <MOT> look:<LAN>"]
    assert turns(body, env_tiers=("com",)) == ["<MOT> A:<ENV> comment:<ENV> <MOT> Look:<LAN>"]


def test_word_ranges_and_notes_on_a_tier_are_dropped() -> None:
    assert turn_tokens("CHI", "", ["<1w-3w> takes it [= hers] <$=1>"]) == ["<CHI>", "takes:<ENV>", "it:<ENV>"]


def test_inline_events_are_dropped_or_are_env() -> None:
    body = "*CHI:\tlook &=laughs:loudly there [% points at_it] [= the dog] [=! crying] .\n%act:\tsits\n"
    said = "<CHI> look:<LAN> there:<LAN>"
    assert turns(body) == [f"<CHI> sits:<ENV> {said}"]
    events = ["laughs loudly", "points at_it", "the dog", "crying"]
    shown = [f"<CHI> {' '.join(f'{word}:<ENV>' for word in event.split())}" for event in ("sits", *events)]
    assert turns(body, inline_events=True) == [" ".join([*shown, said])]
    # An utterance of an event alone is silent, unless events count.
    assert turns("*CHI:\t&=laughs .\n") == []
    assert turns("*CHI:\t&=laughs .\n", inline_events=True) == ["<CHI> laughs:<ENV>"]


def test_only_the_requested_speakers() -> None:
    body = "*MOT:\tlook .\n%act:\tsits\n*CHI:\tball .\n"
    found = read(body, speakers=("CHI",))
    assert [" ".join(turn) for turn in found.turns] == ["<CHI> ball:<LAN>"]
    assert (found.main_tiers, found.other_speakers, found.silent, found.env_tiers) == (2, 1, 0, 0)


def test_lemmas_come_from_tiers_that_align() -> None:
    body = "*MOT:\tthe dogs ran it's jack+in+the+box .\n"
    body += "%mor:\tdet|the n|dog-PL v|run&PAST pro|it~v|be&3S n|+n|jack+prep|in+det|the+n|box .\n"
    body += "*MOT:\ttwo dogs .\n%mor:\tdet:num|two .\n"
    assert dict(read(body, lemmas="mor").lemmas) == {("the", "the"): 1, ("dogs", "dog"): 1, ("ran", "run"): 1}
    assert not read(body).lemmas
    assert turns(body, lemmas="mor") == turns(body)


def test_headers_between_utterances_and_blank_lines_change_nothing() -> None:
    body = "*MOT:\tlook .\n@G:\tbooks\n\n*CHI:\tball .\n@Comment:\t*MOT: is not one\n%act:\tsits\n"
    assert turns(body)[0] == "<MOT> look:<LAN>"
    assert read(body).main_tiers == 2


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_do_not_matter(ends: str) -> None:
    text = f"{HEADER}*MOT:\tlook\n\tthere .\n%act:\tsits\n@End\n".replace("\n", ends)
    assert parse(text, ChatSettings()).turns == [["<MOT>", "sits:<ENV>", "<MOT>", "look:<LAN>", "there:<LAN>"]]


def test_encodings() -> None:
    text = "@UTF8\n@Begin\n*MOT:\tcafé .\n@End\n"
    assert decode(text.encode()) == decode(b"\xef\xbb\xbf" + text.encode()) == text
    assert decode(text.removeprefix("@UTF8\n").encode("latin-1")) == text.removeprefix("@UTF8\n")
    for prefix in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(Unreadable, match="line 3: byte 0xe9 is not UTF-8, which its first line declares"):
            decode(prefix + text.encode("latin-1"))
    with pytest.raises(Unreadable, match="line 2: contains a NUL"):
        decode(b"@UTF8\n\x00")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "*MOT:\tlook .\n", "line 4: the transcript ends here, without @End"),
        (HEADER + "*MOT:\tlook .\n@End\n*MOT:\tmore .\n", "line 6: the transcript ends here, without @End"),
        (HEADER + "*MOT look .\n@End\n", "line 4: expected a speaker's code and a colon after \\*"),
        (HEADER + "lost words\n@End\n", "line 4: expected a header, a tier or the continuation of one"),
        ("", "line 1: the transcript ends here"),
        (HEADER + "*MOT:\tka .\n*CHI:\t]\n@End\n", r"line 5: \] has no \[ before it"),
        (HEADER + "*MOT:\tka <<< lo\n@End\n", "line 4: < has no > after it"),
        (HEADER + "*MOT:\tka > lo\n@End\n", "line 4: > has no < before it"),
        (HEADER + "*MOT:\tka [= lo\n@End\n", r"line 4: \[ has no \] after it"),
        (HEADER + "*MOT:\tka [[x 2] lo\n@End\n", r"line 4: \[ has no \] after it"),
    ],
)
def test_a_text_that_is_not_a_transcript_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        parse(text, ChatSettings())


PIECES = st.sampled_from(
    ["look", "the", "ball", "xxx", "yyy", "0", ".", "?", "&=laughs", "[% points]", "[= a toy]", "[/]", "[//]", "<a b>",
     "[: dog]", "[=! x]", "\x151_2\x15", "jack+in+the+box", "Cookie_Monster", "<bef>", "<aft>", "<1w-3w>", "(be)cause",
     "&-um", "haha@o", "+...", "‡", "’s", "[", "]", "<", ">", "[x 3]", "(.)", "é", "+\"", "%", "*", "@", ":", "\t",
     "()", "@End", "[?", "&", "+/.", "„", "0is", "\x15"]
)  # fmt: skip
TIERS = st.sampled_from(["*MOT:\t", "*CHI:\t", "%act:\t", "%sit:\t", "%com:\t", "%mor:\t", "@G:\t", "\t"])


@given(st.lists(st.tuples(TIERS, st.lists(PIECES, max_size=8)), max_size=8), st.booleans())
def test_no_utterance_is_lost_whatever_it_contains(lines: list[tuple[str, list[str]]], inline: bool) -> None:
    body = "".join(f"{tier}{' '.join(pieces)}\n" for tier, pieces in lines)
    settings = ChatSettings(inline_events=inline, lemmas="mor")
    try:
        found = parse(f"{HEADER}{body}@End\n", settings)
    except Unreadable:  # with its line, and the whole file is set aside
        return
    assert found.main_tiers == sum(tier.startswith("*") for tier, _ in lines)
    assert found.main_tiers == len(found.turns) + found.silent + found.other_speakers
    for turn in found.turns:
        assert all(
            token == "[UNK]" or token.endswith((":<ENV>", ":<LAN>")) or token in ("<MOT>", "<CHI>") for token in turn
        )


@given(st.text(st.characters(codec="latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    for content in (text.encode(), text.encode("latin-1"), f"{HEADER}{text}\n@End\n".encode()):
        try:
            found = parse(decode(content), ChatSettings())
        except Unreadable:
            continue
        assert found.main_tiers == len(found.turns) + found.silent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("env_tiers", "speakers")
        for value in ("act", None, 3, ("%act",), ("act:",), ("*MOT:",), ("",), (3,), (None,), ("a b",))
    ]
    + [("min_env_tiers", value) for value in (-1, "x", None, 1.5)],
)
def test_settings_of_a_wrong_type_are_refused(name: str, value: object) -> None:
    """Otherwise each letter of a string would count as a tier."""
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        ChatSettings(**{name: value})  # type: ignore[arg-type]
