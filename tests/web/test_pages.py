"""What the pages of runs answer, with a model."""

import dataclasses
import functools
import html.parser
import json

import numpy as np
import pytest

import jaxgpt
from jaxgpt.errors import UserError
from jaxgpt.web import export
from jaxgpt.web.pages.chain import ChainPage
from jaxgpt.web.pages.memory import MemoryPage
from jaxgpt.web.pages.task import TaskPage
from jaxgpt.web.pages.text import TextPage
from jaxgpt.web.requests import parse
from tests.conftest import refusal
from tests.web.servers import fresh


class Listener:
    """Keeps events; stops listening after some of a type."""

    def __init__(self, until="", count=1):
        self.events, self.until, self.left = [], until, count

    def __call__(self, event):
        if event:
            self.events.append(event)
            self.left -= event["type"] == self.until
        return self.left > 0

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]


def ask(page, action, **body):
    """The events that answer a request, the last of them "done"."""
    listener = Listener()
    page.actions[action](parse(action, body), listener)
    assert listener.events[-1]["type"] == "done"
    json.dumps(listener.events, allow_nan=False)
    return listener


@pytest.fixture(scope="module")
def page(trained):
    return TextPage(jaxgpt.load(trained))


PIECES = [{"text": "my lord"}, {"gap": 9}, {"text": ", no"}, {"gap": 5}]


def test_a_page_says_what_its_run_can_do(page):
    about = page.describe()
    assert about["gaps_anywhere"] and about["longest"] == 32
    assert {sampler["name"]: bool(sampler["note"]) for sampler in about["samplers"]}[
        "burst"
    ]
    for order in about["orders"][:-1]:
        assert sorted(order["ranks"]) == list(range(16))
    filled = ask(page, "fill", pieces=about["example"])
    assert filled.events[-1]["samples"][0]["generated"] > 0


def test_a_filling_is_shown_as_it_comes_and_is_that_of_python(page):
    body = {"pieces": PIECES, "num_samples": 2, "seed": 3}
    body["sampling"] = {"temperature": 0.7, "order": "left-to-right"}
    listener = ask(page, "fill", **body)
    (start,) = listener.of("start")
    assert "".join(text for *_, text in start["pieces"]) == "my lord, no"
    assert start["known"] == [True] * 7 + [False] * 9 + [True] * 4 + [False] * 5
    expected = page.run.infill(
        "my lord<missing:9>, no<missing:5>",
        num_samples=2,
        seed=3,
        **body["sampling"],
    )
    done = listener.events[-1]
    for row, sample in enumerate(done["samples"]):
        assert sample["text"] == expected[row].text
        assert sample["log_prob"] == pytest.approx(expected[row].log_prob)
        cells = {start: text for start, _, text in start["pieces"]}
        ids, total = {}, 0.0
        for frame in listener.of("frame"):
            for first, _, text, tokens, log_p in frame["rows"][row]:
                cells[first], ids[first] = text, tokens[0]
                total += sum(log_p)
        assert "".join(cells[place] for place in sorted(cells)) == sample["text"]
        assert total == pytest.approx(sample["log_prob"], abs=1e-4)
        assert sorted(sample["rank"]) == list(range(25))
        assert max(sample["steps"]) == sample["passes"]


@pytest.mark.parametrize("sampler", ["ar", "exact-burst", "burst"])
def test_alternatives_have_the_probabilities_that_tokens_were_drawn_with(page, sampler):
    listener = ask(
        page, "fill", pieces=PIECES, sampling={"sampler": sampler, "top_k": 8}
    )
    drawn = {}
    for frame in listener.of("frame"):
        for first, _, _, tokens, log_p in frame["rows"][0]:
            drawn[first] = tokens[0], np.exp(log_p[0])
    (found,) = listener.of("alternatives")
    assert found["tokens"].keys() == drawn.keys()
    for place, alternatives in found["tokens"].items():
        p = [each for *_, each in alternatives]
        assert p == sorted(p, reverse=True) and len(p) == 8 and sum(p) < 1 + 1e-6
        of_token = {other: each for other, _, each in alternatives}
        token, expected = drawn[place]
        assert of_token[token] == pytest.approx(expected, rel=1e-3)
        for other, text, _ in alternatives:
            assert text == page.run.decode(np.array([other]))


def test_fixed_tokens_stay_and_the_rest_is_filled_anew(page):
    fixed = page.run.encode("q")[0].item()
    pieces = [PIECES[0], {"gap": 3}, {"tokens": [fixed]}, {"gap": 5}, *PIECES[2:]]
    done = ask(page, "fill", pieces=pieces).events[-1]
    text = done["samples"][0]["text"]
    assert (text[:7], text[10], text[16:20]) == ("my lord", "q", ", no")


def test_who_stops_listening_stops_the_model(page):
    listener = Listener("frame", 2)
    body = {"pieces": PIECES, "sampling": {"sampler": "ar"}}
    page.actions["fill"](parse("fill", body), listener)
    assert len(listener.of("frame")) == 2 and not listener.of("done")


@pytest.mark.parametrize(
    "pieces, said",
    [
        ([], "no gap"),
        ([{"text": "my lord"}], "no gap"),
        ([{"gap": 33}], "33 tokens, but only 32 fit"),
        ([{"text": "é"}, {"gap": 2}], "'é'"),
        ([{"tokens": [65]}, {"gap": 2}], "in [-1, 64]"),
    ],
)
def test_what_cannot_be_filled_is_said(page, pieces, said):
    request = parse("fill", {"pieces": pieces})
    assert said in refusal(page.fill, request, Listener())


def test_scores_are_those_of_python(page):
    text = "What say you?"
    done = ask(page, "score", text=text, order="right-to-left").events[-1]
    assert "".join(piece[2] for piece in done["pieces"]) == text
    T = len(text)
    straight = page.run.score(text)[0]
    backwards = page.run.score(text, order=np.arange(T)[::-1])[0]
    for name, expected in (("left-to-right", straight), ("right-to-left", backwards)):
        found = np.array(done["nll"][name], float)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert done["nll"]["left-to-right"][0] is None
    assert None not in done["nll"]["random"]
    assert "2 to 32 tokens, got 1" in refusal(
        page.score, parse("score", {"text": "a"}), Listener()
    )


def test_a_causal_run_continues_and_says_where_its_gap_must_be():
    page = TextPage(fresh("teeny_char.py:tiny"))
    about = page.describe()
    assert not about["gaps_anywhere"] and about["orders"] == about["samplers"] == []
    done = ask(page, "fill", pieces=[{"tokens": [3, 1]}, {"gap": 4}]).events[-1]
    assert done["samples"][0]["generated"] == 4
    request = parse("fill", {"pieces": [{"gap": 4}, {"tokens": [3]}]})
    assert "left to right" in refusal(page.fill, request, Listener())


def test_a_run_without_a_tokenizer_is_given_token_ids():
    run = fresh("sigma_char.py:tiny")
    page = TextPage(dataclasses.replace(run, tokenizer=None))
    pieces = [{"text": "3, 1 and 4"}, {"gap": 2}, {"text": "5"}]
    listener = ask(page, "fill", pieces=pieces)
    assert [text for *_, text in listener.of("start")[0]["pieces"]] == [
        *("3 ", "1 ", "4 ", "5 "),
    ]
    assert listener.events[-1]["samples"][0]["text"] is None
    assert len(ask(page, "score", text="3 1 4").events[-1]["pieces"]) == 3


def test_masked_diffusion_fills_any_gap_and_scores_nothing():
    page = TextPage(fresh("masked_diffusion.py:tiny"))
    about = page.describe()
    assert about["gaps_anywhere"] and not about["scores"] and not about["orders"]
    assert {choice["name"]: bool(choice["note"]) for choice in about["samplers"]} == {
        "ancestral": False,
        "top-k-unmasking": True,
        "entropy-bounded-unmasking": True,
    }
    listener = ask(page, "fill", pieces=[{"gap": 3}, {"tokens": [5]}, {"gap": 2}])
    assert listener.events[-1]["samples"][0]["generated"] == 5
    assert not listener.of("alternatives") and "score" not in page.actions


def test_a_problem_is_solved_and_judged():
    page = TaskPage(fresh("sigma_task.py:maze-tiny"))
    grid = page.describe()["grid"]
    problem = ask(page, "problem", seed=1).events[-1]
    assert sum(problem["known"]) == grid["rows"] * grid["columns"]
    body = {name: problem[name] for name in ("tokens", "known")}
    listener = ask(page, "solve", **body)
    done = listener.events[-1]
    assert set(done["verdict"]) == {"accuracy", "optimal"}
    assert done["picture"].startswith("data:image/png;base64,")
    last = listener.of("frame")[-1]
    assert all(last["decoded"])
    given = sum(problem["known"])
    assert last["tokens"][:given] == problem["tokens"][:given]
    for wrong in (
        {"tokens": body["tokens"][1:], "known": body["known"]},
        {"tokens": [9] * len(body["tokens"]), "known": body["known"]},
        {"tokens": body["tokens"], "known": [True] * len(body["known"])},
    ):
        refusal(page.solve, parse("solve", wrong), Listener())


def test_the_model_of_a_graph_stands_beside_what_is_exact():
    page = ChainPage(fresh("gssm.py:easy-tiny"))
    done = ask(page, "sequence", seed=2).events[-1]
    exact, model = np.array(done["exact"]), np.array(done["model"])
    np.testing.assert_allclose(exact.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(model.sum(-1), 1, atol=1e-4)
    process = page.system.process
    tokens = np.array([done["tokens"]])
    expected = process.score(tokens, "float64", "predictive")[0]
    np.testing.assert_allclose(exact[:-1], expected, atol=1e-6)
    assert min(done["kl"]) >= 0
    again = ask(page, "sequence", tokens=done["tokens"][:3]).events[-1]
    np.testing.assert_allclose(again["exact"], exact[:3], atol=1e-6)
    np.testing.assert_allclose(again["model"], model[:3], atol=1e-5)
    for tokens in ([99], [0] * 1000):
        refusal(page.sequence, parse("sequence", {"tokens": tokens}), Listener())


def test_a_memory_is_filled_asked_and_emptied():
    page = MemoryPage(fresh("memory_recall.py:tiny"))
    assert ask(page, "memories").events[-1]["documents"] == {}
    text = ",".join(["3", "1", "4", "1", "5", "9", "2", "6"] * 4)
    kept = ask(page, "remember", name="digits", text=text).events[-1]["documents"]
    assert kept["digits"] > 0
    assert "forget it first" in refusal(
        page.remember, parse("remember", {"name": "digits", "text": text}), Listener()
    )
    pieces = [{"text": "3,1,4"}, {"gap": 6}]
    done = ask(page, "fill", pieces=pieces).events[-1]
    assert len(done["tokens"]) == 6
    found = [entry for token in done["tokens"] for entry in token["memories"]]
    assert "digits" in {entry["document"] for entry in found}
    left = ask(page, "forget", name="digits").events[-1]["documents"]
    assert "digits" not in left
    for wrong in ([{"gap": 3}, {"text": "1"}], [{"text": "1"}], [{"gap": 10_000}]):
        refusal(page.fill, parse("fill", {"pieces": wrong}), Listener())
    refusal(page.forget, parse("forget", {"name": "digits"}), Listener())


class Scripts(html.parser.HTMLParser):
    """The elements of a page, and the text in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_an_exported_page_needs_nothing_and_holds_text_as_text(page, tmp_path):
    path = tmp_path / "page.html"
    read = functools.partial(page.run.reader.template)
    given = read("<missing:4>my lord<missing:5>")
    assert export.export(page.run, path, "<missing:4>my lord<missing:5>", 0) < 1e6
    text = path.read_text()
    assert "import " not in text.split("<script")[-1].split("function")[0]
    found = Scripts(text)
    for tag, attributes in found.tags:
        assert not attributes.keys() & {"src", "href"}, tag
    recorded = json.loads(found.scripts[0])
    assert len(recorded["fillings"]) == 3 - (page.usual_order() == "random")
    for filling in recorded["fillings"]:
        assert filling["known"] == given.known.tolist()
        assert len(filling["pieces"]) == 9 and "my lord" in filling["sample"]["text"]
    assert "</script" not in export._json("</script><script>alert(1)</script>")


def test_an_export_is_of_one_run_that_writes(tmp_path):
    page = tmp_path / "page.html"
    task = fresh("sigma_task.py:maze-tiny")
    with pytest.raises(UserError, match="runs that write texts"):
        export.export(task, page, "", 0)
    assert not page.exists()
