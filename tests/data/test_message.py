"""What a message says as text: equal for all forms of the same content, different for all that a judge must see."""

import pytest

from trl_real.data.message import is_plain, message_text


def said(**fields):
    return message_text({"role": "assistant", "content": None, **fields})


def call(arguments, name="weather", **more):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


SAME = [
    call({"city": "Lyon", "days": 2}), call({"days": 2, "city": "Lyon"}), call('{"days": 2, "city": "Lyon"}'),
    call({"city": "Lyon", "days": 2, "unit": None}), call({"city": "Lyon", "days": 2}, id="other"),
    {"name": "weather", "arguments": {"city": "Lyon", "days": 2}},
]  # fmt: skip


@pytest.mark.parametrize("form", SAME, ids=str)
def test_a_call_is_told_alike_in_every_form(form):
    assert said(tool_calls=[form]) == '[call] weather({"city": "Lyon", "days": 2})'


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (call(None), "[call] weather()"),
        (call("not JSON"), "[call] weather(not JSON)"),
        (call({"a": {"z": 1, "b": [2, None]}}), '[call] weather({"a": {"b": [2, null], "z": 1}})'),
        ({"kind": "b", "a": 1}, '[call] {"a": 1, "kind": "b"}'),
        ("raw", "[call] raw"),
    ],
    ids=str,
)
def test_odd_calls_are_told_as_they_are(form, told):
    assert said(tool_calls=[form]) == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"content": "yes"}, "yes"),
        ({"content": ["a", {"text": "b"}, {"type": "text", "text": "c"}, {"type": "text", "text": None}]}, "abc"),
        ({"content": "yes", "thinking": "hm"}, "[thinking] hm\nyes"),
        ({"content": "yes", "name": "ann"}, "[ann] yes"),
        ({"content": "42", "role": "tool"}, "[tool] 42"),
        ({"content": "42", "role": "tool", "name": "sum"}, "[tool sum] 42"),
        ({"content": "yes", "tool_calls": [call(None)]}, "yes\n[call] weather()"),
        ({"content": [{"type": "image", "url": "http://a/b.png"}]}, "[image http://a/b.png]"),
        ({"content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}, "[image_url http://a/b.png]"),
        ({"content": [{"type": "image", "image": None}]}, "[image]"),
        ({"content": [{"type": "json", "value": {"b": 1, "a": {"z": 2}}}]}, '[json {"a": {"z": 2}, "b": 1}]'),
    ],
    ids=str,
)
def test_everything_that_a_message_says_is_told(fields, told):
    message = {"role": "assistant", **fields}
    assert message_text(message) == told
    assert is_plain(message) == (not told.startswith("[") and "[call]" not in told)


def test_an_answer_of_a_tool_is_marked_only_where_roles_are():
    assert message_text({"role": "tool", "content": "42"}, role=False) == "42"
    assert message_text({"role": "assistant", "content": "42"}, role=True) == "42"


def test_data_of_images_are_told_by_their_digest():
    one, other = (said(content=[{"type": "image", "url": f"data:image/png;base64,{x}"}]) for x in ("aa", "ab"))
    assert one != other and one.startswith("[image ") and len(one) == len("[image ]") + 12
