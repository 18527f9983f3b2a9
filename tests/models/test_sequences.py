"""Prompts and responses as ids: which end of a long one is kept, and how they are put into batches."""

import pytest
import torch

from support.tiny import SENTENCES, tiny_tokenizer
from trl_real.models.packing import Line, Pack, Tree, make_packs
from trl_real.models.sequences import common_prefix, length_batches, pad, tokenize_pairs


TOKENIZER = tiny_tokenizer()
PROMPT, RESPONSE = SENTENCES[0], f" {SENTENCES[3]}"


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def test_a_long_prompt_keeps_its_end_and_a_long_response_its_start():
    prompt, response = ids(PROMPT), ids(RESPONSE + TOKENIZER.eos_token)
    assert ids(PROMPT + RESPONSE + TOKENIZER.eos_token) == prompt + response
    for length in (1, 5, len(response) - 1, len(response), len(response) + 1, 500):
        (found,) = tokenize_pairs(TOKENIZER, [PROMPT], [RESPONSE], length)
        assert found.prompt == prompt[-length:] and found.response == response[:length]
        assert found.truncated == (len(response) > length), length


def test_each_response_has_its_own_prompt_and_its_own_end():
    prompts, responses = [PROMPT, SENTENCES[1], "", PROMPT], [RESPONSE, " no", "yes", " no"]
    ended = [True, False, True, True]
    for row, found in enumerate(tokenize_pairs(TOKENIZER, prompts, responses, 500, ended)):
        end = TOKENIZER.eos_token if ended[row] else ""
        assert found.prompt + found.response == ids(prompts[row] + responses[row] + end)
        assert found.prompt == ids(prompts[row])


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_on_one_side_and_masked(left):
    tokens, mask = pad([(5, 6, 7), (), (8,)], fill=9, left=left)
    expected = [[5, 6, 7], [9, 9, 9], [9, 9, 8] if left else [8, 9, 9]]
    assert tokens.tolist() == expected and tokens.shape == mask.shape == (3, 3)
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1] if left else [1, 0, 0]]
    assert pad([()])[0].shape == (1, 1)


@pytest.mark.parametrize("limit", [1, 6, 10, 12, 100])
def test_batches_hold_every_sequence_once_within_the_limit_longest_first(limit):
    sequences = [tuple(range(n)) for n in (3, 5, 1, 5, 2, 0, 4)]
    batches = list(length_batches(sequences, limit))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    lengths = [[len(sequences[i]) for i in batch] for batch in batches]
    assert sum(lengths, []) == sorted(sum(lengths, []), reverse=True)
    assert all(len(batch) * max(batch) <= limit or len(batch) == 1 for batch in lengths)
    for batch, after in zip(lengths, lengths[1:], strict=False):  # none has room for the next one
        assert (len(batch) + 1) * max(1, batch[0]) > limit, (batch, after)


def test_common_prefix():
    assert [common_prefix(*pair) for pair in (("", "a"), ("ab", "ab"), ("abc", "abd"), ("xb", "yb"))] == [0, 2, 2, 0]


def test_only_responses_without_a_prompt_join_the_segment_before_them():
    """One that joins a segment is read as if it stood alone: with a prompt it would lose it."""
    pack = Pack()
    pack.add(Tree((1, 2, 3), [(4, 5), (6, 7), (8,)], [0, 1, 2]))
    pack.add(Tree((), [(4, 5), (6, 7), (8,)], [3, 4, 5]))
    pack.add(Tree((9,), [(4, 5)], [6]))
    pack.add(Tree((), [(4, 5)], [7]))
    whole, other = (slice(0, 3),), (slice(13, 14),)
    assert [(s.start, s.count, s.length, s.prefix) for s in pack.segments] == [
        (0, 1, 3, ()), (3, 1, 2, whole), (5, 1, 2, whole), (7, 1, 1, whole),
        (8, 2, 2, ()), (12, 1, 1, ()), (13, 1, 1, ()), (14, 1, 2, other), (16, 1, 2, ()),
    ]  # fmt: skip
    assert pack.tokens == [1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 9, 4, 5, 4, 5]
    assert pack.positions == [0, 1, 2, 3, 4, 3, 4, 3, 0, 1, 0, 1, 0, 0, 1, 2, 0, 1]
    assert pack.owners == [-1, -1, -1, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, -1, 6, 6, 7, 7] and pack.ids == list(range(8))


def test_a_response_does_not_join_its_own_prompt_of_the_same_length():
    pack = Pack()
    pack.add(Tree((1, 2), [(3, 4), (5, 6)], [0, 1]))
    found = [(s.start, s.count, s.length, s.prefix) for s in pack.segments]
    assert found == [(0, 1, 2, ()), (2, 1, 2, (slice(0, 2),)), (4, 1, 2, (slice(0, 2),))]


def test_an_empty_sequence_makes_no_segment():
    line = Line()
    assert line.append(()) == slice(0, 0) and not line.segments
    inputs = Line([1, 2], [0, 1]).inputs("cpu")
    assert inputs["input_ids"].tolist() == [[1, 2]] and inputs["position_ids"].dtype == torch.int64


def test_packs_fill_up_to_the_limit_and_not_beyond():
    trees = [Tree((), [tuple(range(n))], [n]) for n in (4, 3, 3, 2)]
    for limit, expected in ((6, [[4], [3, 3], [2]]), (7, [[4, 3], [3, 2]]), (3, [[4], [3], [3], [2]])):
        assert [pack.ids for pack in make_packs(trees, limit)] == expected
