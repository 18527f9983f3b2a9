"""The layout of a padded batch: every labelled token keeps its context, and no token is there twice."""

import copy

import pytest
import torch

from support.families import family
from trl_real.models.attention.segments import ATTENTIONS, attend_within_given_segments
from trl_real.models.read_once import fits, is_random, lay_out
from trl_real.models.sequences import pad


LEAST = 3
# Rows, and the number of tokens to read.
BATCHES = {
    "pairs": ([(1, 2, 3, 4, 5, 6), (9, 8, 7), (1, 2, 3, 4, 7), (9, 8, 6, 5, 4)], 5 + 2 + 4),
    "equal but for the last token": ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 6)], 4),
    "equal": ([(1, 2, 3, 4), (1, 2, 3, 4)], 3),
    "one continues the other": ([(1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7)], 6),
    "common to all, and to some": ([(1, 2, 3, 4, 5, 6, 7, 7), (1, 2, 3, 4, 5, 6, 8, 8), (1, 2, 3, 9, 9)], 3 + 3 + 3),
    "nothing in common": ([(i, 1, 2, 3) for i in range(4, 8)], 4 * 3),
    "a row of one token": ([(1,), (1, 2, 3)], 2),
}


def batch(rows, n_prompt=2):
    tokens, mask = pad(rows)
    column = torch.arange(1, tokens.shape[1])
    return tokens, mask, (column >= n_prompt) & mask[:, 1:].bool()


def context(layout, index: int) -> list[int]:
    """The tokens that the token at `index` attends to, itself the last, as the segments say."""
    for segment in layout.segments:
        if segment.start <= index < segment.start + segment.count * segment.length:
            start = index - (index - segment.start) % segment.length
            return [*(t for part in segment.prefix for t in layout.tokens[part]), *layout.tokens[start : index + 1]]
    raise AssertionError("a token without a segment")


@pytest.mark.parametrize(("rows", "n_read"), BATCHES.values(), ids=BATCHES)
def test_token_before_each_label_attends_to_its_own_row_and_none_is_read_in_vain(rows, n_read):
    tokens, mask, labelled = batch(rows)
    layout, before = lay_out(tokens, mask, labelled, LEAST)
    places = labelled.nonzero().tolist()
    assert [context(layout, i) for i in before] == [list(rows[row][: column + 1]) for row, column in places]
    assert [layout.positions[i] for i in before] == [column for _, column in places]
    assert len(layout.tokens) == len(layout.positions) == n_read


def test_rows_of_equal_length_are_attended_together():
    layout, _ = lay_out(*batch(BATCHES["nothing in common"][0]), LEAST)
    assert [(s.count, s.length) for s in layout.segments] == [(4, 3)]


def test_without_a_label_or_with_padding_on_the_left_there_is_no_layout():
    tokens, mask, labelled = batch(BATCHES["pairs"][0])
    assert lay_out(tokens, mask, torch.zeros_like(labelled)) is None
    assert lay_out(tokens, mask.flip(1), labelled) is None


ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({"sliding_window": 8}, 8), ({"attention_chunk_size": 9}, 9), ({"rope_parameters": ROPE}, 256), ({}, 10**9)],
    ids=["window", "chunks", "moving positions", "none"],
)
def test_rows_fit_up_to_the_length_at_which_attention_or_positions_change(settings, limit):
    config = copy.deepcopy(family("llama").config)
    for name, value in settings.items():
        setattr(config, name, value)
    assert fits(config, limit) and (limit == 10**9 or not fits(config, limit + 1))


def test_dropout_of_layers_functions_and_whole_layers_is_found():
    models = {name: family(name) for name in ("llama", "gpt2", "opt")}
    assert {name: is_random(model) for name, model in models.items()} == {"llama": False, "gpt2": True, "opt": True}
    models["llama"].model.layers[1].self_attn.attention_dropout = 0.1
    assert is_random(models["llama"])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_switches_where_segments_are_given_and_back(attention):
    model = family("llama")
    plain = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    attend_within_given_segments(model.model, "flex")
    attend_within_given_segments(model.model, attention)  # one hook, for the last one
    assert len(model.model._forward_pre_hooks) == 1
    layout, _ = lay_out(*batch([(5, 6, 7), (6, 7, 8)], n_prompt=1), LEAST)
    states = model.model(**layout.inputs("cpu")).last_hidden_state
    assert torch.allclose(model.lm_head(states)[:, :2], plain[:, :2], atol=1e-5)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, plain)
