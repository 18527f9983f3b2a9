"""Tests of separating thoughts from an answer."""

import pytest

from trl_real.data.thoughts import without_thoughts


BLOCKS = {
    "think": ("<think>", "</think>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "kimi": ("◁think▷", "◁/think▷"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "harmony without control tokens": ("analysisWe see. ", "assistantfinal"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "open webui": ('<details type="reasoning" done="true">\n<summary>5 s</summary>', "</details>"),
}
TEMPLATE_OPENS = ["think", "thought", "reasoning", "seed", "mistral", "kimi", "cohere", "apertus", "gemma"]


@pytest.mark.parametrize("name", BLOCKS)
def test_only_the_answer_is_left_of_each_kind_of_thoughts(name):
    opening, closing = BLOCKS[name]
    found = without_thoughts(f"{opening}A is better? No.{closing}The answer.")
    assert found.text.strip() == "The answer." and not found.thinking


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "open webui"])
def test_text_that_ends_in_its_thoughts_has_no_answer(name):
    assert without_thoughts(f"{BLOCKS[name][0]}A is better, so") == ("", True)


@pytest.mark.parametrize("name", TEMPLATE_OPENS)
def test_closing_mark_alone_ends_thoughts_that_the_template_opened(name):
    found = without_thoughts(f"A is better? No.{BLOCKS[name][1]}\n\nThe answer.")
    assert found.text.strip() == "The answer." and not found.thinking


def test_thoughts_may_quote_their_marks_and_stand_behind_the_answer():
    assert without_thoughts("<think>a <think>b</think> c</think> d").text == " d"
    assert without_thoughts("a <think>b</think> c</think> d").text == " d"
    assert without_thoughts("d<think>b</think>") == ("d", False)


@pytest.mark.parametrize("text", ["", "Plain words.", "I think that <b>A</b> is better.", "analysis: fine", "x < y"])
def test_text_without_thoughts_is_left_alone(text):
    assert without_thoughts(text) == (text, False)
