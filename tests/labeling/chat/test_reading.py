"""Tests of reading a judge's answer: styles of model families and servers, with and without log-probabilities."""

import math
import re

import pytest

from trl_real.labeling.chat.completion import message_of
from trl_real.labeling.chat.dialect import TOP_TOKENS
from trl_real.labeling.chat.reading import Place, read, read_top


LABELS = ("A", "B", "C")
THOUGHTS = 'The user says: answer with "A", "B" or "C". Response A is better in style. So A? Wait, B is correct.'

# Answers that name the second response, in the words of judges.
WORDINGS = [
    "B", "B.", " B\n", "**B**", "(B)", '"B"', "“B”", "`B`", "```\nB\n```", "Ｂ", "- B", "B</s>", "B<|im_end|>",
    "[[B]]", "[B]", "Answer: B", "**Answer: B**", "**Answer:** B", "Answer: (B)", 'Answer: "B"', "Final answer: B",
    "GRADE: B", "Verdict: **B**", "Verdict: B (slightly)", "Winner: Assistant B", "Best: B", "**Better response:** B",
    "My final verdict is: [[B]]", "Final Answer\n\nB", "### Verdict\n**B**", "Decision → B", "答案：B", "Antwort: B",
    "Ответ: B", "The winner is B!", "Response B", "Option B", "Output (B)", "Response B is better.", "B is better",
    "B is better than A.", "Response B wins.", "The better response is B.", "The better answer is “B”.",
    "I choose B.", "I would pick Response B.", "I’m going with B.",
    "Response B is better because it answers the question; Response A does not.", "The second response is better.",
    "B\n\nResponse A is too short.", "B. Response A evades the question.", "**B** - A is wrong",
    "B, because it is accurate.", "A is concise but wrong. B is correct.", "Both are fine, but Response B is better.",
    "So, B.", "Therefore, Response B.", "Let us compare.\n\nA is short, B is complete.\n\n**B**",
    "Which response is better? B", "A? No, B", "Best answer: A? No, B",
    "First I leaned to [[A]]. My final verdict is: [[B]]", "Initial answer: A. On reflection, final answer: B",
    "\\boxed{B}", "$\\boxed{\\text{B}}$", "**Final Answer:** $\\boxed{B}$", "<answer>B</answer>",
    "<verdict>\nB\n</verdict>", "<|begin_of_box|>B<|end_of_box|>", '{"answer": "B"}', '{"winner": "Response B"}',
    '```json\n{"choice": "B"}\n```', "{'verdict': 'B'}",
    '{"reasoning": "A is better written.", "winner": "B", "criteria": {"style": "A", "facts": "B"}}',
]  # fmt: skip
# Answers that name the second response in words that are not read: a failure, and no guess.
UNREAD = ["b", "The best A gives is worse than B", "B gets my vote, by a mile", "I am leaning towards the latter, B"]
NONE = [
    "", "I cannot judge this.", "Both are fine.", "A or B", "Answer: A or B", "Answer: A/B", "Answer: A, B",
    "[[A]] or [[B]]", "Neither", "A friend would choose neither.", "A good response would say more.",
    "Answer: A good response", "AB", "Answer: Both", "Answer: A. Wait, answer: B", "B\n\nResponse A is better.",
    "A is better. No, B is better.", "A: 7/10\nB: 9/10", "A. Paris is right.\nB. London is wrong.",
    "It is hard to say whether A is better.", "I don't think A is better.", "If you want brevity, A is better.",
    "The answer is not A.", "A is the winner and so is B", "A is better written.",
    "Answer with one letter and nothing else: A, B, or C", "I'm sorry, but I can't help with that.",
    "The best, a clear B",
]  # fmt: skip
TIES = ["C", "[[C]]", "Answer: C", "tie", "It's a tie.", "Verdict: tie", '{"winner": "tie"}', "They are equally good."]

# How thoughts come before an answer: DeepSeek, Qwen3's template, Mistral, Kimi, Cohere, gpt-oss, Gemma, Granite, …
SHAPES = {
    "plain": lambda said: {"content": said},
    "think": lambda said: {"content": f"<think>\n{THOUGHTS}\n</think>\n\n{said}"},
    "closing tag alone": lambda said: {"content": f"{THOUGHTS}\n</think>\n\n{said}"},
    "empty thoughts": lambda said: {"content": f"<think>\n\n</think>\n\n{said}"},
    "Mistral": lambda said: {"content": f"[THINK]{THOUGHTS}[/THINK]{said}"},
    "Kimi": lambda said: {"content": f"◁think▷{THOUGHTS}◁/think▷{said}"},
    "channels": lambda said: {
        "content": f"<|channel|>analysis<|message|>{THOUGHTS}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{said}"
    },
    "channels without control tokens": lambda said: {"content": f"analysis{THOUGHTS}assistantfinal{said}"},
    "Gemma": lambda said: {"content": f"<|channel>thought\n{THOUGHTS}<channel|>{said}"},
    "vLLM": lambda said: {"content": said, "reasoning_content": THOUGHTS},
    "OpenRouter": lambda said: {"content": said, "reasoning": THOUGHTS, "refusal": None},
    "blocks": lambda said: {"content": [{"type": "text", "text": said}]},
    "thinking blocks": lambda said: {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHTS}]},
            {"type": "text", "text": said},
        ]
    },
    "Claude's blocks": lambda said: {
        "content": [{"type": "thinking", "thinking": THOUGHTS, "signature": "x"}, {"type": "text", "text": said}]
    },
}


def tokens(text: str) -> list[dict]:
    """Places as a server tells them; a label elsewhere than in the verdict has next to no probability of its own."""
    likely = {"A": {"A": 0.97, "B": 0.02}, "B": {"B": 0.97, "A": 0.02}, "C": {"C": 0.97, "A": 0.02}}
    places = []
    for token in re.findall(r"<[^<>\s]+>|\s?\w+|\s|[^\w\s]", text):
        tops = likely.get(token.strip().replace("Ｂ", "B"), {token: 0.99, "A": 1e-5, "B": 2e-6})
        top = [{"token": name, "logprob": math.log(share)} for name, share in tops.items()]
        places.append({"token": token, "logprob": top[0]["logprob"], "top_logprobs": top})
    return places


def answer(message: dict, finish: str = "stop", with_tokens: bool = False, labels=LABELS):
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
    if with_tokens:
        content = message.get("content")
        choice["logprobs"] = {"content": tokens(content if isinstance(content, str) else content[-1]["text"])}
    found = message_of({"choices": [choice]}, labels)
    return read(found.text, found.places, found.reasoning, found.finish_reason, labels)


SHAPED = pytest.mark.parametrize("shape", SHAPES)
TOLD = pytest.mark.parametrize("told", [False, True], ids=["words", "log-probabilities"])


@SHAPED
@TOLD
def test_every_wording_is_read_in_every_shape(shape, told):
    for said in WORDINGS:
        found = answer(SHAPES[shape](said), with_tokens=told)
        assert not found.failure and found.shares[1] > 0.9, (said, found)
    for said in TIES:
        found = answer(SHAPES[shape](said), with_tokens=told)
        assert not found.failure and found.shares[2] > 0.9, (said, found)


@SHAPED
@TOLD
def test_what_names_no_response_or_several_is_a_failure_in_every_shape(shape, told):
    for said in NONE:
        found = answer(SHAPES[shape](said), with_tokens=told)
        assert found.failure == "an answer that names no response" and not found.shares, (said, found)


def test_most_wordings_are_read_and_none_is_guessed():
    assert len(WORDINGS) + len(TIES) + len(NONE) + len(UNREAD) >= 60
    assert len(WORDINGS) / (len(WORDINGS) + len(UNREAD)) >= 0.9
    for said in UNREAD:
        assert answer({"content": said}).failure, said


@SHAPED
def test_mirrored_answer_names_the_other_response(shape):
    """What is said of B is read as is what is said of A; no wording hangs on the letter."""
    for said in WORDINGS:
        if said != "The second response is better.":
            mirrored = said.translate(str.maketrans("AB", "BA")).replace("Bn", "An").replace("Bs", "As")
            words = {"Bnswer": "Answer", "Bssistant": "Assistant", "Aest": "Best", "Aetter": "Better", "Aoth": "Both"}
            for wrong, right in words.items():
                mirrored = mirrored.replace(wrong, right)
            if "GRBDE" not in mirrored and "Ｂ" not in mirrored:
                found = answer(SHAPES[shape](mirrored))
                assert not found.failure and found.shares[0] == 1, (mirrored, found)


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        ({"content": f"<think>{THOUGHTS}"}, "the answer was cut off while thinking"),
        ({"content": f"<|channel|>analysis<|message|>{THOUGHTS}"}, "the answer was cut off while thinking"),
        ({"content": None, "reasoning_content": THOUGHTS}, "the answer was cut off while thinking"),
        ({"reasoning": THOUGHTS}, "the answer was cut off while thinking"),
        ({"content": [{"type": "thinking", "thinking": THOUGHTS}]}, "the answer was cut off while thinking"),
        ({"content": f"Thinking Process:\n\n1. {THOUGHTS[:-1]}, and"}, "the answer was cut off"),
        ({"content": "Answer A is better in some ways, but"}, "the answer was cut off"),
        ({"content": "The answer is A"}, "the answer was cut off"),
        ({"content": ""}, "the answer was cut off"),
    ],
)
def test_answer_that_was_cut_before_its_verdict_is_a_failure(message, failure):
    assert answer(message, finish="length").failure == failure


@pytest.mark.parametrize("said", ["B", "B\n\nResponse A is too", "[[B]] since", "B is better. The response B is more"])
def test_verdict_before_the_cut_counts(said):
    assert answer({"content": said}, finish="length").shares == (0, 1, 0)


def test_label_alone_in_the_field_of_thoughts_is_the_answer():
    assert answer({"content": None, "reasoning_content": "B"}).shares == (0, 1, 0)
    assert answer({"content": None, "reasoning_content": THOUGHTS}).failure


def place(token: str, **top: float) -> Place:
    return Place(token, tuple((name, math.log(p)) for name, p in top.items()))


def test_probabilities_come_from_the_place_of_the_verdict():
    first = place("A", A=0.6, B=0.4)
    found = read("A? No, B", [first, Place("?"), Place(" No"), Place(","), place(" B", B=0.8, A=0.1)], labels=LABELS)
    assert found.shares == pytest.approx((1 / 9, 8 / 9, 0)) and found.mass == pytest.approx(0.9)
    said = [place("B", B=0.6, A=0.4), Place("\n\n"), Place("A"), Place(" lacks"), place(" B", B=0.99)]
    assert read("B\n\nA lacks B", said, labels=LABELS).shares == pytest.approx((0.4, 0.6, 0))


def test_little_probability_on_all_labels_is_a_failure_and_no_ratio():
    found = read("B", [place("B", B=0.05, A=0.01, the=0.9)], labels=LABELS)
    assert found.failure == "an answer without probability on its labels" and found.mass == pytest.approx(0.06)
    assert read("B", [place("B", B=0.05, A=0.01)], labels=LABELS, min_mass=0.0).shares[1] == pytest.approx(5 / 6)
    assert read_top([("the", -0.1)], LABELS, 0.0).failure and read_top([], LABELS).failure


def test_variants_of_a_label_add_up():
    top = [("A", math.log(0.3)), (" A", math.log(0.1)), ("Ａ", math.log(0.05)), ("(A", math.log(0.05)),
           ("B", math.log(0.2)), ("▁C", math.log(0.2)), ("the", math.log(0.1))]  # fmt: skip
    assert read_top(top, LABELS).shares == pytest.approx((0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9))
    assert read_top([("m", math.log(0.6)), ("M", math.log(0.2))], ("m", "M")).shares == pytest.approx((0.75, 0.25))


@pytest.mark.parametrize(
    ("labels", "said", "expected"),
    [
        (("m", "M"), "Model M is better.", "M"), (("m", "M"), "I'm unsure", None), (("m", "M"), "m", "m"),
        (("1", "2", "0"), "Answer: 2", "2"), (("1", "2", "0"), "1. First, response 2 is long.", None),
        (("1", "2", "0"), "Answer: 1.5", None), (("1", "2", "0"), '{"winner": 2}', "2"),
        (("A>>B", "B>>A", "A=B"), "My final verdict is: [[B>>A]]", "B>>A"), (("A>>B", "B>>A", "A=B"), "[[B>A]]", None),
    ],
)  # fmt: skip
def test_other_labels_are_read_as_they_are_written(labels, said, expected):
    found = answer({"content": said}, labels=labels)
    assert (labels[found.shares.index(1)] if found.shares else None) == expected


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 3}}]},
        {"choices": [{"message": {"content": [None, 3, {"text": None}]}, "logprobs": {"content": [None, {}]}}]},
        {"choices": [{"message": {"content": ""}, "logprobs": [1], "finish_reason": 7}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": [{"logprob": "a"}]}]}}]},
    ],
)
def test_odd_answers_are_failures_and_no_errors(completion):
    found = message_of(completion, LABELS)
    assert read(found.text, found.places, found.reasoning, found.finish_reason, LABELS).failure


def test_older_form_of_log_probabilities_is_read():
    told = {"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [{"B": math.log(0.7), "A": math.log(0.3)}]}
    found = message_of({"choices": [{"message": {"content": "B"}, "logprobs": told}]}, LABELS)
    assert read(found.text, found.places, labels=LABELS).shares == pytest.approx((0.3, 0.7, 0))


def test_alternatives_are_kept_only_where_a_label_stands():
    choice = {"message": {"content": f"<think>{THOUGHTS}</think> B is better"}}
    choice["logprobs"] = {
        "content": [{**each, "top_logprobs": each["top_logprobs"] * TOP_TOKENS} for each in tokens("x B is better")]
    }
    found = message_of({"choices": [choice]}, LABELS)
    assert [bool(each.top) for each in found.places] == [False, True, False, False]
