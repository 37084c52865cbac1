"""The vocabulary is the published one, to the last merge."""

import gzip

from model.tokenizer import tokenize
from model.vocabulary import END_SYMBOL, START_SYMBOL, merges, vocabulary


def test_the_merges_are_those_of_the_published_file_in_its_order():
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1:]
    assert len(merges()) == 48_894
    assert merges() == tuple(tuple(line.split()) for line in lines[: len(merges())])


def test_the_ids_are_open_clips_but_for_the_names_of_the_two_specials():
    from open_clip.tokenizer import SimpleTokenizer

    ids, theirs = dict(vocabulary()), dict(SimpleTokenizer().encoder)
    assert ids.pop(START_SYMBOL) == theirs.pop("<start_of_text>") == 49406
    assert ids.pop(END_SYMBOL) == theirs.pop("<end_of_text>") == 49407
    assert ids == theirs
    assert tokenize(["a dog"])[0, 1:3].tolist() == [vocabulary()["a</w>"], vocabulary()["dog</w>"]]
