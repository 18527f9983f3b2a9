"""Images from a pair to its label: a server and people see them, models of texts refuse them, rows keep them."""

import base64
import io

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List
from PIL import Image as Picture

from support.judge_server import MODEL, JudgeServer
from support.pages import Loads
from support.tiny import tiny_model, tiny_tokenizer
from support.vision import picture, with_pictures
from trl_real import ChatJudge, EmbeddingPairSelector, ImplicitRewardJudge, RewardModelJudge, ScoreJudge, annotate
from trl_real.data.images import data_url, digests_of, images_of
from trl_real.errors import TrlRealError
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.people.page_html import pair_html
from trl_real.labeling.people.queue import Deck, Pair, VoteQueue
from trl_real.labeling.people.votes import VotesJudge
from trl_real.runtime.journal import Journal


def chosen(n: int = 4, column: str = "images", same_texts: bool = False, **settings) -> Dataset:
    numbers = [0] * n if same_texts else range(n)
    rows = [
        {"prompt": f"What is {i}?", "responses": [f"A roof {i}.", f"Rain {i}."], "scores": [1.0, 0.0]} for i in numbers
    ]
    return EmbeddingPairSelector(strategy="random").select(with_pictures(rows, column, **settings))


def pixels(image) -> list:
    return np.array(image).tolist()


def decoded(url: str) -> Picture.Image:
    return Picture.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def chat(server: JudgeServer, folder, **settings) -> ChatJudge:
    return ChatJudge(MODEL, base_url=server.url, api_key="k", cache=folder / "answers.sqlite", **settings)


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_server_is_shown_the_images_of_the_row(column, tmp_path):
    pairs = chosen(3, column, none=1)
    with JudgeServer() as server:
        judge = chat(server, tmp_path, concurrency=1)
        labels = annotate(pairs, judge)
        asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert len(labels) == 3 and labels.features[column] == pairs.features[column]
    without = [content for content in asked if isinstance(content, str)]
    shown = [content for content in asked if isinstance(content, list)]
    assert len(without) == 2 and len(shown) == 4 and all("What is 0?" in content for content in without)
    for content in shown:
        assert [part["type"] for part in content] == ["image_url", "text"]
        number = int(content[1]["text"].partition("What is ")[2][0])
        assert pixels(decoded(content[0]["image_url"]["url"])) == pixels(picture(number))
    assert judge.questions(pairs[:])[-1].n_tokens > judge.questions(pairs[:])[0].n_tokens + 1000


def test_equal_texts_with_other_images_are_asked_and_kept_apart(tmp_path):
    pairs, report = chosen(3, same_texts=True), LabelReport()
    with JudgeServer() as server:
        annotate(pairs, chat(server, tmp_path), journal=tmp_path / "verdicts.jsonl", report=report)
        assert report.verdicts.n_asked == 6
        annotate(pairs, chat(server, tmp_path), journal=tmp_path / "verdicts.jsonl", report=report)
        assert report.n_resumed == 3 and len(server.bodies) == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: RewardModelJudge(_scorer(), tokenizer=tiny_tokenizer()),
        lambda: ImplicitRewardJudge(tiny_model(), tiny_model(1), tiny_tokenizer()),
        lambda: ChatJudge(tiny_model(), tokenizer=tiny_tokenizer()),
    ],
)
def test_judges_that_see_no_images_refuse_them(make):
    judge = make()
    with pytest.raises(TrlRealError, match="reads texts, and rows have images in the column 'images'"):
        annotate(chosen(2), judge)
    judge.verdicts(chosen(2, none=2)[:])  # rows without an image are texts


def _scorer():
    from transformers import AutoModelForSequenceClassification

    config = tiny_model().config
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_scores_label_rows_with_images_and_keep_them():
    labels = annotate(chosen(3), ScoreJudge())
    assert [pixels(images[0]) for images in labels["images"]] == [pixels(picture(i)) for i in range(3)]


def test_the_page_holds_the_images_and_fetches_nothing(tmp_path):
    queue = VoteQueue(chosen(1), Journal(tmp_path / "votes.jsonl"), "ann")
    pair = queue.next()
    assert pixels(decoded(pair.images[0])) == pixels(picture(0))
    page = Loads(pair_html(pair, queue.progress, "ann", 1))
    assert "img" in page.tags and all(url.startswith("data:image/png;base64,") for url in page.urls)
    hostile = ('data:image/png;base64,"><script>alert(1)</script>', "http://evil.example/x.png", "javascript:alert(1)")
    shown = pair_html(Pair("k", 0, "p", "a", "b", "a", hostile), queue.progress, "ann", 1)
    assert "script" not in Loads(shown).tags and "evil" not in shown and "javascript" not in shown


def test_votes_belong_to_the_images_that_were_seen(tmp_path):
    pairs, path = chosen(3, same_texts=True), tmp_path / "votes.jsonl"
    assert len(Deck(pairs)) == 3
    with Journal(path) as journal:
        queue = VoteQueue(pairs, journal, "ann")
        while (pair := queue.next()) is not None:
            queue.vote("a" if pair.row else "b", 1.0)
    assert VotesJudge(path)(pairs[:]) == [0.0, 1.0, 1.0]
    assert [v.failure for v in VotesJudge(path).verdicts(pairs.remove_columns("images")[:])] == ["not labelled"] * 3


def test_undecoded_images_and_formats():
    image = picture(3)
    files = {}
    for kind in ("PNG", "JPEG", "BMP"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files[kind] = {"bytes": buffer.getvalue(), "path": None}
    assert data_url(files["PNG"]).startswith("data:image/png") and data_url(files["JPEG"]).startswith(
        "data:image/jpeg"
    )
    assert data_url(files["BMP"]).startswith("data:image/png")  # browsers and servers may not know it
    assert digests_of([image]) == digests_of([files["PNG"]]) == digests_of([files["BMP"]]) != digests_of([picture(4)])
    assert [len(digest) for digest in digests_of([image, picture(4)])] == [32, 32]  # part of keys in votes and caches
    plain = Dataset.from_dict({"images": [[files["PNG"]]]}, features=Features({"images": List(Image(decode=False))}))
    assert digests_of(images_of(plain[:])[0]) == digests_of([image])
    with pytest.raises(TrlRealError, match="'https://evil.example/x.png', which cannot be read"):
        data_url("https://evil.example/x.png")
