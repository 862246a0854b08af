import gzip
import html
import json
import logging
import random
import string
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path

import ftfy
import pytest
import regex
import torch
from transformers import CLIPTokenizer

from cskt.data import tokenizer as tokenizer_module
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer, clean, clip_bpe, common_words

GOLDEN = json.loads((Path(__file__).parent.parent / "parity" / "tokenizer.json").read_text(encoding="utf-8"))
PIECES = [
    "a man", "wearing", "red-and-white", "T-shirt", "she's", "they'll've", "'S", "café", "naïve", "STRASSE",
    "straße", "，", "。", "…", "“quoted”", "&amp;amp;", "&lt;b&gt;", "&eacute;", "12", "3.5cm", "²", "½", "Ⅷ", "👜",
    "👩\u200d🦰", "日本語", "مرحبا", "\u200b", "\t", "\n", "\x1c", " ", "_", "!!", "...", "ï»¿", "â€™", "schÃ¶n",
    "\ud83d", "İ", "ſ", "Ⓐ", "e\u0301", "<|startoftext|>", "<|endoftext|>", "jekyll", "supercalifragilistic", "z" * 30,
    "\\", "/", "-",
]  # fmt: skip


def symbol_by_byte() -> dict[int, str]:
    """Return the character of each byte in the order of ids: printable bytes of Latin-1, then the others (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def generated_captions(count: int, pieces: list[str], seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        "".join(draw.choice(pieces) + draw.choice(["", " ", "  ", ". "]) for _ in range(draw.randrange(12)))
        for _ in range(count)
    ]


def read_merges() -> list[tuple[str, str]]:
    packed = (resources.files("cskt") / "assets" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in islice(lines, 1, 48895)]  # type: ignore[misc]


class NaiveEncoder:
    """Byte-pair encoding by the book: merge the earliest-learned pair until none is left."""

    def __init__(self) -> None:
        merges = read_merges()
        symbols = list(symbol_by_byte().values())
        tokens = symbols + [symbol + "</w>" for symbol in symbols] + [a + b for a, b in merges]
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.rank = {merge: index for index, merge in enumerate(merges)}
        self.word = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        ids = []
        for word in self.word.findall(text):
            symbols = [symbol_by_byte()[byte] for byte in word.encode("utf-8")]
            symbols[-1] += "</w>"
            while pairs := [pair for pair in pairwise(symbols) if pair in self.rank]:
                first, second = min(pairs, key=self.rank.__getitem__)
                merged = []
                while symbols:
                    if symbols[:2] == [first, second]:
                        merged.append(first + second)
                        symbols = symbols[2:]
                    else:
                        merged.append(symbols.pop(0))
                symbols = merged
            ids += [self.ids[symbol] for symbol in symbols]
        return ids


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: repr(case["text"])[:30])
def test_golden_ids(case: dict[str, object]) -> None:
    assert Tokenizer().encode(str(case["text"])) == case["ids"]


def test_equals_byte_pair_encoding_by_the_book() -> None:
    naive, tokenizer = NaiveEncoder(), Tokenizer()
    for text in PIECES + generated_captions(400, PIECES, seed=1):
        assert tokenizer.encode(text) == naive(text), repr(text)


def test_equals_transformers_on_plain_text() -> None:
    # transformers neither repairs mojibake nor resolves HTML, and knows the control tokens: texts without either.
    ids = clip_bpe().get_vocab() | {"<|startoftext|>": START_ID, "<|endoftext|>": END_ID}
    theirs = CLIPTokenizer(vocab=ids, merges=read_merges())
    pieces = [
        *string.ascii_letters,
        *string.digits,
        *"!#$%()*+,-./:;=?@[]^_{}~'",
        "black",
        "trousers",
        "é",
        "ß",
        "日本",
        "👜",
    ]
    texts = generated_captions(300, pieces, seed=2)
    ours = Tokenizer(context_length=200)(texts)
    for text, row in zip(texts, ours.tolist(), strict=True):
        expected = theirs(text)["input_ids"]
        assert row[: len(expected)] == expected and not any(row[len(expected) :]), repr(text)


def test_vocabulary_is_clips() -> None:
    ids = clip_bpe().get_vocab()
    assert len(ids) == 49406 and sorted(ids.values()) == list(range(49406))
    assert (ids["!"], ids["a</w>"], ids["jekyll</w>"]) == (0, 320, 49405)


def test_cleaning() -> None:
    assert clean("  A  MAN\u3000wearing&amp;nbsp;jeans\n") == "a man wearing jeans"
    assert clean("he\u2019s schÃ¶n") == "he's schön"


def test_control_tokens_cannot_be_typed() -> None:
    for text in ("<|startoftext|>", "a <|endoftext|> b", "<|ENDOFTEXT|>", "&lt;|endoftext|&gt;"):
        ids = Tokenizer().encode(text)
        assert len(ids) > 4 and START_ID not in ids and END_ID not in ids


@pytest.mark.parametrize("typed", ["<|startoftext|>", "<|endoftext|>"])
def test_control_tokens_differ_from_clips_tokenizer_as_documented(typed: str) -> None:
    special = {"<|startoftext|>": START_ID, "<|endoftext|>": END_ID}
    theirs = CLIPTokenizer(vocab=clip_bpe().get_vocab() | special, merges=read_merges())
    assert special[typed] in theirs(f"a {typed} man")["input_ids"][1:-1], "CLIP's own gives its control token"
    assert Tokenizer().encode(f"a {typed} man") == NaiveEncoder()(f"a {typed} man"), "ours takes it as plain text"
    documentation = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert typed in documentation and typed in (tokenizer_module.__doc__ or "")


def test_batch_is_cut_to_its_longest_caption() -> None:
    tokenizer = Tokenizer()
    batch = tokenizer(["a man", "", "a man in red"])
    a, man, in_, red = tokenizer.encode("a man in red")
    assert batch.dtype == torch.int64
    assert batch.tolist() == [
        [START_ID, a, man, END_ID, 0, 0],
        [START_ID, END_ID, 0, 0, 0, 0],
        [START_ID, a, man, in_, red, END_ID],
    ]
    padded = tokenizer(["a man", "", "a man in red"], pad_to_context=True)
    assert padded.shape == (3, 77) and torch.equal(padded[:, :6], batch) and not padded[:, 6:].any()


def test_no_captions_make_an_empty_batch() -> None:
    assert Tokenizer()([]).shape[0] == 0


@pytest.mark.parametrize("num_words", [75, 76, 145])
def test_long_captions_keep_their_end_token(num_words: int) -> None:
    tokenizer = Tokenizer()
    long = "man " * num_words
    captions = [long, "short", "woman " * num_words]
    batch = tokenizer(captions)
    assert batch.shape == (3, 77)
    assert batch[:, 76].tolist() == [END_ID, 0, END_ID]
    if num_words > 75:
        assert tokenizer.warnings(captions) == ["2 of 3 captions have more than 77 tokens and are cut to it"]
        line = f"the model reads 77 tokens of the sentence, which has {num_words + 2}; shorten it"
        assert tokenizer.warnings([long]) == [line] == tokenizer.warnings([long]), "as often as it is asked"
    else:
        assert tokenizer.warnings(captions) == [] == tokenizer.warnings([long])


def test_words_that_the_backbone_does_not_know() -> None:
    everything = Tokenizer()
    tokenizer = Tokenizer(known_ids=everything.encode("a man in a red coat"))
    strange = ["a man in a purplish coat", "Purplish! 日本語"]
    assert torch.equal(tokenizer(strange), everything(strange)), "encoded all the same"
    assert everything.warnings(strange) == [] == tokenizer.warnings(["a red coat"])
    assert tokenizer.warnings(strange) == [
        "the model has never seen the words 'purplish', '日本語', which add noise"
    ], "whole words without punctuation, each once, in the order of the captions"
    for _ in range(2):
        assert tokenizer.warnings(["a reddish coat"]) == [
            "the model has never seen the word 'reddish', which adds noise"
        ], "every sentence has its own"
    (line,) = tokenizer.warnings(["zig zag zog zug zeg zyg zagg zogg zugg zegg"])
    assert line.endswith("'zogg' and 2 more, which add noise")
    (line,) = tokenizer.warnings(["a\u202eman " + "x" * 50])
    assert "\u202e" not in line and len(line) < 200, "fit for a terminal"
    (cut,) = tokenizer.warnings(["a man " * 80 + "purplish"])
    assert cut.startswith("the model reads 77 tokens"), "a word that is not read adds nothing"


@pytest.mark.parametrize("vocab_size", [514, 1_000, 8_192])
def test_a_smaller_vocabulary_spells_every_word_with_the_first_merges(vocab_size: int) -> None:
    small, whole = Tokenizer(vocab_size=vocab_size), Tokenizer()
    captions = ["A woman in a burgundy knee-length coat isn't here; 日本語 café 42!", "", "man " * 90]
    rows = small(captions)
    assert (small.start_id, small.end_id) == (vocab_size - 2, vocab_size - 1)
    assert int(rows.max()) == vocab_size - 1 and rows.argmax(dim=1).tolist()[1:] == [1, 76]
    assert (rows[:, 0] == vocab_size - 2).all() and small.warnings(captions[:1]) == []
    for caption in captions:
        ids = small.encode(caption)
        assert all(0 <= index < vocab_size - 2 for index in ids)
        tokens = [clip_bpe().id_to_token(index) for index in ids]
        assert "".join(tokens) == "".join(clip_bpe().id_to_token(index) for index in whole.encode(caption))
        assert ids == naive_ids(caption, vocab_size - 514)


def naive_ids(caption: str, num_merges: int) -> list[int]:
    """The ids of the naive encoder with the first merges alone."""
    encoder = NaiveEncoder()
    encoder.rank = {pair: rank for pair, rank in encoder.rank.items() if rank < num_merges}
    return encoder(caption)


def test_common_words_are_frequent_ones() -> None:
    words = common_words(300)
    assert len(words) == 300 == len(set(words)) and {"the", "and", "for"} <= set(words[:20])


def test_encoding_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The words of a caption may be personal data: they are returned to the caller and never logged."""
    tokenizer = Tokenizer(known_ids=[1])
    with caplog.at_level(logging.DEBUG):
        tokenizer(["purplish " * 100])
        tokenizer.encode("purplish")
        tokenizer.warnings(["purplish " * 100])
    assert caplog.text == ""


def test_refuses_misuse() -> None:
    with pytest.raises(ValueError, match="pass a list of strings"):
        Tokenizer()("a man")
    with pytest.raises(ValueError, match="context_length is 1"):
        Tokenizer(1)
    for vocab_size in (513, 49_409):
        with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}; CLIP's tokenizer has from 514 to 49408"):
            Tokenizer(vocab_size=vocab_size)
