from __future__ import annotations

import base64
import http.client
import io
import os
import re
import signal
import socket
import sqlite3
import threading
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

import run_all
from xuqlib import __main__ as cli
from xuqlib.study.data.loading import Examples
from xuqlib.study.human_study.page import page, pairs_of
from xuqlib.study.human_study.pairs import Pair, PairStudy
from xuqlib.study.human_study.raters import krippendorff_alpha, results
from xuqlib.study.human_study.serving import ADDRESS, StudyServer


def some_pairs(count=10):
    """Pairs whose first map has more of `size` in every other one."""
    facts = [{"size": (1.0, 0.0) if i % 2 else (0.0, 1.0), "other": (float(i), 2.0)} for i in range(count)]
    return [Pair(f"pair {i}", i, "a", "b", f"example {i}", facts[i], None, b"A", b"B") for i in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.db"


def tell(study, rater, count, choice="left"):
    for _ in range(count):
        study.answer(rater, study.next(rater), choice, 1.5)


def test_a_rater_goes_on_at_the_fourth_pair_after_a_restart_that_followed_three_answers(path):
    study = PairStudy(path, some_pairs())
    order = study.queue("Ann")
    tell(study, "Ann", 3)
    del study
    again = PairStudy(path)
    assert again.next("Ann") == order[3]
    assert again.progress("Ann") == (3, 11)
    assert again.progress("Ben") == (0, 11)
    assert list(again.answers()["pair"]) == [shown.pair.id for shown in order[:3]]


def test_every_pair_comes_once_and_a_share_twice_with_sides_swapped(path):
    queue = PairStudy(path, some_pairs(40), repeats=0.25).queue("Ann")
    first, second = queue[:40], queue[40:]
    assert {shown.pair.id for shown in first} == {f"pair {i}" for i in range(40)}
    assert [shown.pair for shown in second] == [shown.pair for shown in first[:10]]
    assert all(a.flipped != b.flipped for a, b in zip(first, second, strict=False))
    assert {shown.showing for shown in first} == {1} and {shown.showing for shown in second} == {2}


def test_order_and_sides_differ_between_raters_and_sides_are_balanced(path):
    study = PairStudy(path, some_pairs(100))
    ann, ben = (study.queue(name)[:100] for name in ("Ann", "Ben"))
    assert [shown.pair.id for shown in ann] != [shown.pair.id for shown in ben]
    sides = [{shown.pair.id: shown.flipped for shown in queue} for queue in (ann, ben)]
    assert sides[0] != sides[1]
    assert 30 < sum(sides[0].values()) < 70
    assert study.queue("Ann")[:100] == ann


def test_an_answer_says_which_map_was_preferred_whatever_its_side(path):
    study = PairStudy(path, some_pairs(20), repeats=0)
    wanted = {}
    while shown := study.next("Ann"):
        wanted[shown.pair.id] = "a" if shown.pair.example < 10 else "b"
        left = "b" if shown.flipped else "a"
        study.answer("Ann", shown, "left" if left == wanted[shown.pair.id] else "right")
    table = study.answers().set_index("pair")
    assert len(table) == 20 and table["left"].nunique() == 2 and table["choice"].nunique() == 2
    preferred = table["first"].where(table["prefers_first"] == 1, table["second"])
    assert preferred.to_dict() == wanted


def test_an_undone_answer_is_asked_again_and_stays_in_the_file(path):
    study = PairStudy(path, some_pairs())
    assert not study.undo("Ann")
    tell(study, "Ann", 2)
    tell(study, "Ben", 1)
    waiting = study.queue("Ann")[1]
    assert study.undo("Ann")
    assert study.next("Ann") == waiting
    assert len(study.answers()) == 2
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT choice FROM answers").fetchall() == [("left",)] * 3 + [("undone",)]
    file.close()


def test_of_two_answers_to_the_same_question_the_last_counts(path):
    study = PairStudy(path, some_pairs())
    shown = study.next("Ann")
    study.answer("Ann", shown, "left")
    study.answer("Ann", shown, "cannot say")
    table = study.answers()
    assert list(table["choice"]) == ["cannot say"] and list(table["prefers_first"]) == [0.5]


@pytest.mark.parametrize(("rater", "choice"), [("Ann", "both"), (" ", "left"), ("simulated 1", "left")])
def test_an_unknown_choice_and_a_name_that_is_no_persons_are_refused(path, rater, choice):
    study = PairStudy(path, some_pairs())
    with pytest.raises(ValueError, match="choice|person's name"):
        study.answer(rater, study.queue("Ann")[0], choice)
    assert study.answers().empty


def test_the_export_holds_answers_and_facts_and_without_answers_only_a_header(path, tmp_path):
    study, file = PairStudy(path, some_pairs()), tmp_path / "answers.csv"
    study.export(file)
    assert pd.read_csv(file).empty
    tell(study, "Ann", 2, "right")
    study.export(file)
    table, shown = pd.read_csv(file), study.queue("Ann")[0]
    assert list(table) == list(study.answers())
    assert len(table) == 2 and list(table["rater"]) == ["Ann"] * 2 and list(table["seconds"]) == [1.5] * 2
    assert table.loc[0, "size_first"] == shown.pair.facts["size"][0]
    assert table.loc[0, "other_second"] == 2
    assert pd.to_datetime(table["at"], utc=True).is_monotonic_increasing


def test_a_study_without_answers_gives_no_number(path):
    study = PairStudy(path, some_pairs())
    assert results(study.answers(), ["size"]).to_dict("list") == {"what": ["no answers yet"]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to be killed in an instant")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child touches nothing but the file
def test_a_kernel_killed_in_the_middle_of_the_fourth_answer_leaves_three(path):
    study = PairStudy(path, some_pairs())
    child = os.fork()
    if child == 0:
        try:
            tell(study, "Ann", 3)
            with study._file("IMMEDIATE") as file:
                file.execute("INSERT INTO answers VALUES (NULL, 'Ann', 'pair 0', 2, 0, 'left', '', 0)")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    study = PairStudy(path)
    assert study.progress("Ann")[0] == 3
    tell(study, "Ann", 1)
    assert study.progress("Ann")[0] == 4


def test_several_writers_at_once_lose_no_answer_and_begin_the_study_once(path):
    errors, pairs = [], some_pairs(8)

    def write(rater):
        try:
            tell(PairStudy(path, pairs, repeats=0), rater, 8)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(f"rater {i}",)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    study = PairStudy(path, pairs, repeats=0)
    assert study.answers().groupby("rater").size().to_dict() == {f"rater {i}": 8 for i in range(4)}


def spoil(path, how):
    if how == "text":
        path.write_text("rater,choice\n" * 100)
    elif how == "cut":
        PairStudy(path, some_pairs(200))
        path.write_bytes(path.read_bytes()[:8192])
    elif how == "scratched":  # where reading the pairs alone would not notice
        tell(PairStudy(path, some_pairs(100)), "A" * 100, 60)
        path.write_bytes(path.read_bytes()[:-2048] + b"?" * 2048)
    else:
        if how == "newer":
            PairStudy(path, some_pairs())
        with sqlite3.connect(path) as file:
            file.execute("CREATE TABLE other (id)" if how == "foreign" else "PRAGMA user_version = 2")
        file.close()


@pytest.mark.parametrize("how", ["text", "cut", "scratched", "newer", "foreign"])
@pytest.mark.parametrize("pairs", [some_pairs(), ()], ids=["with pairs", "without"])
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence_and_left_alone(path, how, pairs):
    spoil(path, how)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^study.db cannot be read as a study \(.*\); name another file$"):
        PairStudy(path, pairs)
    assert path.read_bytes() == before


def test_no_file_without_pairs_and_no_folder_are_refused(path):
    with pytest.raises(ValueError, match="pass pairs to begin one"):
        PairStudy(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="unable to open"):
        PairStudy(path / "missing" / "study.db", some_pairs())


def test_other_pairs_than_those_in_the_file_are_refused(path):
    PairStudy(path, some_pairs())
    PairStudy(path, some_pairs())
    with pytest.raises(ValueError, match="begun with other pairs"):
        PairStudy(path, some_pairs(9))


def test_simulated_answers_have_the_alpha_of_their_rule_and_leave_the_file_empty(path):
    study = PairStudy(path, some_pairs(400))
    told = study.simulated(4, "size", accuracy=0.8, seed=0)
    table = told[told["showing"] == 1].pivot(index="rater", columns="pair", values="prefers_first")
    assert krippendorff_alpha(table) == pytest.approx(0.36, abs=0.06)  # (2 * 0.8 - 1) ** 2
    frame = results(told, ["size"]).set_index("what")
    assert frame.loc["prefer the map with more size", "value"] == pytest.approx(0.8, abs=0.03)
    assert 0.45 < frame.loc["chose the left side", "value"] < 0.55
    assert frame.loc["same answer twice", "value"] == pytest.approx(0.8**2 + 0.2**2, abs=0.1)
    assert (study.simulated(2, "size", accuracy=1, silent=1, seed=0)["prefers_first"] == 0.5).all()
    assert list(told) == list(study.answers()) and told["rater"].str.startswith("simulated").all()
    assert study.answers().empty


# Building pairs


def examples(name="planted", count=2):
    x = torch.zeros(count, 1, 4, 6)
    x[:, :, 0, 0] = 1
    return Examples(name=name, split="test", x=x, y=torch.zeros(count), index=torch.arange(count) + 5)


def build(name="planted", seed=0, count=2, **options):
    maps = {"up": torch.zeros(count, 1, 4, 6), "down": torch.ones(count, 4, 6), "flat": torch.zeros(count, 1, 4, 6)}
    maps["up"][:, :, 1, 2] = 2.0
    facts = {"sum": {each: values.flatten(1).sum(1) for each, values in maps.items()}}
    return pairs_of(examples(name, count), maps, facts, captions=["caption"] * count, seed=seed, **options)


def pixels(png):
    return np.asarray(PIL.Image.open(io.BytesIO(png)))[20::42, 20::42]


def test_every_two_maps_of_every_example_make_a_pair_with_their_own_facts():
    pairs = build()
    names = [{pair.first, pair.second} for pair in pairs[:3]]
    assert len(pairs) == 6 and len({pair.id for pair in pairs}) == 6 and pairs[-1].example == 6
    assert names == [{"down", "flat"}, {"down", "up"}, {"flat", "up"}]
    sums = {"up": 2.0, "down": 24.0, "flat": 0.0}
    assert all(pair.facts == {"sum": (sums[pair.first], sums[pair.second])} for pair in pairs)


def test_a_pair_holds_the_right_pictures():
    pair = build()[1]
    up = pixels(pair.first_map if pair.first == "up" else pair.second_map).astype(int)
    assert up.shape == (4, 6, 3)
    assert (abs(up[0, 0] - 0xB0) <= 2).all()  # 0 is the grey in the middle of the scale
    bright = up[1, 2].sum()
    assert bright > up[0, 0].sum() + 100 and (np.delete(up.sum(2).ravel(), 8) == up[0, 0].sum()).all()
    assert (pixels(pair.picture)[0, 0] == 255).all() and (pixels(pair.picture)[1:] == 0).all()


def test_which_map_comes_first_is_left_to_chance_by_seed():
    ups = [pair.first == "up" for pair in build(count=60) if "up" in pair[2:4]]
    assert 0.3 < np.mean(ups) < 0.7
    assert build(seed=0) == build(seed=0)
    assert [pair.first for pair in build(count=9)] != [pair.first for pair in build(count=9, seed=1)]


def test_pictures_of_people_are_not_kept():
    assert all(pair.picture is None and pair.first_map for pair in build("fer_plus"))


def test_a_map_with_undefined_pixels_is_drawn_with_them_in_grey():
    maps = {name: torch.full((1, 4, 6), float("nan")) for name in ("a", "b")}
    pair = pairs_of(examples(count=1), maps, {}, captions=["c"], kinds={"a": "ratio", "b": "spread"})[0]
    assert (pixels(pair.first_map) == 0xD0).all() and (pixels(pair.second_map) == 0xD0).all()


def test_maps_without_a_partner_or_a_metric_are_refused():
    one = {"a": torch.zeros(2, 4, 6)}
    two = {**one, "b": torch.zeros(2, 4, 6)}
    for maps, facts, captions in [(one, {}, "cc"), (two, {}, "c"), (two, {"m": {"a": [0, 0]}}, "cc")]:
        with pytest.raises(ValueError, match="pass two maps or more"):
            pairs_of(examples(), maps, facts, captions=list(captions))


# The page, without a browser


def parts(box):
    name, text, row, buttons, progress = box.children
    buttons = {button.description: button for button in buttons.children}
    columns = [SimpleNamespace(column=column, image=column.children[1]) for column in row.children]
    return SimpleNamespace(name=name, text=text, columns=columns, buttons=buttons, progress=progress)


@pytest.fixture
def study(path):
    return PairStudy(path, build(), repeats=0.5)


def test_a_name_brings_the_first_pair_and_no_names_of_maps(study):
    shown = parts(page(study))
    assert all(button.disabled for button in shown.buttons.values())
    assert all(column.column.layout.display == "none" for column in shown.columns)
    shown.name.value = "  Ann  <b> "
    pair, _, flipped = study.queue("Ann <b>")[0]
    maps = (pair.second_map, pair.first_map) if flipped else (pair.first_map, pair.second_map)
    assert [column.image.value for column in shown.columns] == [pair.picture, *maps]
    assert "caption" in shown.text.value and shown.progress.value == "Ann &lt;b&gt;: 0 of 9 answered"
    assert [button.disabled for button in shown.buttons.values()] == [False] * 3 + [True]
    assert not any(name in shown.text.value + shown.progress.value for name in ("up", "down", "flat"))


def test_clicking_through_keeps_every_answer_and_says_when_it_is_all(study):
    shown = parts(page(study, shortest=0))
    shown.name.value = "Ann"
    for i, each in enumerate(study.queue("Ann")):
        assert shown.columns[1].image.value == (each.pair.second_map if each.flipped else each.pair.first_map)
        shown.buttons[("left", "right", "cannot say")[i % 3]].click()
        assert len(study.answers()) == i + 1
    assert list(study.answers()["choice"]) == ["left", "right", "cannot say"] * 3
    assert "all" in shown.text.value and all(column.column.layout.display == "none" for column in shown.columns)
    assert [button.disabled for button in shown.buttons.values()] == [True] * 3 + [False]
    shown.buttons["undo last answer"].click()
    assert study.progress("Ann") == (8, 9) and not shown.buttons["left"].disabled


def test_a_new_page_goes_on_where_the_rater_stopped_and_another_rater_begins(study):
    shown = parts(page(study, shortest=0))
    shown.name.value = "Ann"
    shown.buttons["left"].click()
    again = parts(page(PairStudy(study.path, repeats=0.5)))
    again.name.value = "Ann"
    assert again.progress.value == "Ann: 1 of 9 answered"
    again.name.value = "Ben"
    assert again.progress.value == "Ben: 0 of 9 answered"
    again.name.value = ""
    assert all(button.disabled for button in again.buttons.values())


def test_a_second_click_by_mistake_answers_nothing(study):
    shown = parts(page(study, shortest=60))
    shown.name.value = "Ann"
    shown.buttons["left"].click()
    assert study.answers().empty


def test_the_picture_of_a_person_is_not_on_the_page(path):
    shown = parts(page(PairStudy(path, build("fer_plus"))))
    shown.name.value = "Ann"
    assert [column.column.layout.display for column in shown.columns] == ["none", "flex", "flex"]
    assert not shown.columns[0].image.value


def test_an_answer_that_cannot_be_kept_is_said_on_the_page(study):
    shown = parts(page(study, shortest=0))
    shown.name.value = "simulated Ann"
    shown.buttons["left"].click()
    assert "Not kept" in shown.progress.value and study.answers().empty


# The page alone, given out by a server


@pytest.fixture
def server(study):
    with StudyServer(study, shortest=0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, fields=None, path="/", **headers):
    """Status and text of an answer; a form is sent as a browser sends that of the page itself."""
    connection = http.client.HTTPConnection(ADDRESS, server.server_port, timeout=10)
    host = f"{ADDRESS}:{server.server_port}"
    own = {"Host": host} | ({} if fields is None else {"Origin": f"http://{host}"}) | headers
    body = None if fields is None else urlencode(fields)
    connection.request("GET" if fields is None else "POST", path, body, {k: v for k, v in own.items() if v is not None})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def form(text):
    return dict(re.findall('type="hidden" name="([a-z]+)" value="([^"]*)"', text))


def pictures(text):
    return [base64.b64decode(each) for each in re.findall('src="data:image/png;base64,([^"]+)"', text)]


def test_the_page_alone_asks_what_the_study_asks_and_keeps_each_answer_in_its_file(server, study):
    _, text = ask(server, {"rater": " Ann  <b> ", "choice": ""})
    for i, each in enumerate(study.queue("Ann <b>")):
        maps = (
            (each.pair.second_map, each.pair.first_map) if each.flipped else (each.pair.first_map, each.pair.second_map)
        )
        assert pictures(text) == [each.pair.picture, *maps] and f"Ann &lt;b&gt;: {i} of 9 answered" in text
        assert not re.search(r"\b(up|down|flat)\b", text)
        fields = {**form(text), "rater": "Ann <b>", "choice": ("left", "right", "cannot say")[i % 3]}
        _, text = ask(server, fields)
        _, again = ask(server, fields)  # a form that is sent twice counts once
        assert again == text and len(study.answers()) == i + 1
    answers = PairStudy(study.path, repeats=0.5).answers()
    assert list(answers["choice"]) == ["left", "right", "cannot say"] * 3
    assert answers["seconds"].between(0, 60).all() and "Thank you" in text
    _, text = ask(server, {**form(text), "rater": "Ann <b>", "choice": "undo"})
    assert study.progress("Ann <b>") == (8, 9) and 'value="left"' in text


def test_the_page_alone_answers_to_no_other_origin_and_under_no_other_name(server, study):
    begin = {"rater": "Ann", "choice": ""}
    _, text = ask(server, begin)
    answer = {**form(text), "choice": "left"}
    port = server.server_port
    foreign = ["http://example.org", "null", "", None, f"http://{ADDRESS}:{port + 1}", f"https://{ADDRESS}:{port}"]
    for origin in [*foreign, f"http://localhost:{port}"]:  # the last is not under the name that was asked
        assert ask(server, answer, Origin=origin)[0].status == 403
    for host in ("example.org", f"example.org:{port}", ADDRESS, f"{ADDRESS}:{port + 1}", ""):
        assert ask(server, Host=host)[0].status == 403
        assert ask(server, answer, Host=host, Origin=f"http://{host}")[0].status == 403
    assert ask(server, Origin="http://example.org")[0].status == 403
    assert study.answers().empty
    host = f"localhost:{port}"
    assert ask(server, answer, Host=host, Origin=f"http://{host}")[0].status == 200 and len(study.answers()) == 1
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_alone_says_who_may_show_it_and_refuses_what_it_does_not_know(server, study):
    found, text = ask(server)
    assert found.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert found.headers["X-Content-Type-Options"] == "nosniff" and found.headers["Cache-Control"] == "no-store"
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "form-action 'self'" in policy and "unsafe" not in policy
    assert ask(server, path="/study.db")[0].status == 404
    assert ask(server, {"rater": "A" * 5000})[0].status == 413
    for name in ("", "  ", "simulated 1"):
        assert "a name that is a person&#x27;s" in ask(server, {"rater": name, "choice": "left", "token": "end"})[1]
    _, text = ask(server, {"rater": "Ann", "choice": ""})
    ask(server, {**form(text), "choice": "both"})
    ask(server, {**form(text), "choice": "left", "token": "0" * 20})
    assert study.answers().empty
    server.shortest = 60
    ask(server, {**form(text), "choice": "left"})  # nobody has looked yet
    assert study.answers().empty


def test_an_answer_that_the_file_does_not_take_is_said_on_the_page_alone(server, study, monkeypatch):
    _, text = ask(server, {"rater": "Ann", "choice": ""})

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(study, "answer", full)
    assert "Not kept: database or disk is full" in ask(server, {**form(text), "choice": "left"})[1]


def test_the_command_of_the_page_names_what_is_missing(path, capsys):
    assert cli.main(["study-page", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"no study {path}; notebook 16 begins one: run_all.py --only 16 -p store={path}" in told
    known = run_all.known_parameters(next((run_all.files.ROOT / "notebooks").glob("16_*.ipynb")))
    assert {"store", "repeats"} <= set(known)
    PairStudy(path, some_pairs())
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["study-page", str(path), "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
    assert cli.main(["study-page", str(path), "--port", "65536"]) == 2
    path.write_text("something else")
    assert cli.main(["study-page", str(path)]) == 2
    assert "cannot be read as a study" in capsys.readouterr().err
