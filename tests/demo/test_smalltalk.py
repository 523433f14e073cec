"""The built-in small talk: what is drawn, what is held out, and how replies are judged."""

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import pytest

from smallgpt.demo import smalltalk
from smallgpt.demo.judge import Judge, judged
from smallgpt.demo.smalltalk import END_MARKS, Line, Node, Turn
from tests.helpers.commands import refused_command, smallgpt

TRAINING = 15_000
Dialogue = tuple[Turn, ...]


@pytest.fixture(scope="module")
def training() -> list[list[str]]:
    """Training dialogues as lists of utterances."""
    return [dialogue.split("\n") for dialogue in smalltalk.generate(TRAINING, seed=1)]


@pytest.fixture(scope="module")
def held_out() -> list[Dialogue]:
    return smalltalk.held_out(5000, seed=2)


def nodes(scripts: Sequence[Node] = smalltalk.templates().scripts) -> list[Node]:
    return [found for node in scripts for found in (node, *nodes(node.then))]


def situations(dialogue: Dialogue) -> set[str]:
    return {turn.node.situation for turn in dialogue}


def lines(node: Node) -> list[Line]:
    return [line for phrasing in node.users for line in phrasing]


def typed(line: Line) -> Iterator[str]:
    """Every text a user line can take, without final punctuation."""
    lists = (smalltalk.templates().slots[kind] for kind in line.slots.values())
    for values in itertools.product(*lists):
        yield line.text.format_map(dict(zip(line.slots, values, strict=True))).rstrip(END_MARKS)


def judge_all(
    dialogues: Iterable[Dialogue], respond: Callable[[list[str]], str]
) -> dict[str, tuple[int, int]]:
    """How the replies of `respond` are judged, by situation; one dialogue after the other."""
    counts = dict[str, tuple[int, int]]()
    for dialogue in dialogues:
        talk = judged(dialogue, counts)
        history = next(talk)
        with suppress(StopIteration):
            while True:
                history = talk.send(respond(history))
    return counts


def share(dialogues: Sequence[Dialogue], respond: Callable[[list[str]], str]) -> float:
    """Of the replies that fit."""
    fitting, total = (sum(n) for n in zip(*judge_all(dialogues, respond).values(), strict=True))
    assert total == sum(map(len, dialogues))
    return fitting / total


# -- what is drawn ---------------------------------------------------------------------------


def test_the_text_is_that_of_the_seed_well_formed_and_small_enough_to_learn(
    training: list[list[str]],
) -> None:
    texts = ["\n".join(utterances) for utterances in training]
    assert list(smalltalk.generate(500, seed=1)) == texts[:500]
    assert list(smalltalk.generate(500, seed=2)) != texts[:500]
    assert len(set(texts)) == TRAINING
    for utterances in training:
        assert len(utterances) in (2, 4, 6, 8, 10), utterances
        for utterance in utterances:
            assert utterance and utterance == utterance.strip()
            assert not set("[]{}|") & set(utterance), utterance
            assert utterance[0] not in "，。！？~", utterance
    characters = Counter(itertools.chain.from_iterable(map("".join, training)))
    assert len(characters) <= 1300
    assert 40 <= sum(characters.values()) / TRAINING <= 70


def test_the_bot_may_have_another_name() -> None:
    ours = "\n\n".join(smalltalk.generate(3000, seed=1))
    texts = list(smalltalk.generate(3000, seed=1, name="小禾"))
    theirs = "\n\n".join(texts)
    assert len(texts) == 3000 and "我叫小禾" in theirs and "小积" not in theirs
    assert "积木的积" in ours and "积累，所以叫" in ours and not re.search("积|禾木", theirs)
    done = smallgpt("data", "smalltalk", "--dialogues", "30", "--name", "小禾")
    assert done.stdout == "\n\n".join(texts[:30]) + "\n"
    for wrong in (" ", "小 禾"):
        assert "is not a name" in refused_command("data", "smalltalk", "--name", wrong)
    assert set(theirs.replace("小禾", "小积").split("\n\n")) >= {
        text for text in ours.split("\n\n")[:2000] if not re.search("积[木少累]", text)
    }


def test_there_are_200_000_dialogues() -> None:
    """Counted over the first two turns of single scripts alone, held out or not."""

    def ways(node: Node) -> int:  # a typed line has at least three ways to end
        return 3 * sum(len(list(typed(line))) for line in lines(node)) * sum(map(len, node.bots))

    scripts = [script for script in smalltalk.templates().scripts if not script.needs]
    total = sum(ways(script) * ways(node) for script in scripts for node in script.then)
    assert total > 10 * 200_000


def test_every_situation_memory_and_changes_of_topic_have_their_share(
    held_out: list[Dialogue],
) -> None:
    drawn = Counter(s for dialogue in held_out for s in situations(dialogue))
    assert drawn.keys() == {node.situation for node in nodes()}
    assert len(drawn) >= 45
    assert min(drawn.values()) >= 10, drawn.most_common()[-5:]
    asked = [{name for turn in dialogue for name in turn.node.needs} for dialogue in held_out]
    assert 0.25 < sum(map(bool, asked)) / len(held_out) < 0.33
    assert len(set().union(*asked)) >= 8
    changing = [len(situations(d)) > 1 and not a for d, a in zip(held_out, asked, strict=True)]
    assert 0.2 < sum(changing) / len(held_out) < 0.3


NEWCOMERS = """
    早上好呀 你叫什么名字 你是谁 你好 谢谢 再见 晚安 讲个笑话 今天天气真好 我好累
    你吃饭了吗 昨晚睡得好吗 在吗 你会做什么 我饿了 你几岁了 你是机器人吗 推荐一部电影 我失恋了
    我爱你
    我生日快到了 我感冒了 周末干什么好 拜拜 哈哈 嗯 对不起 新年快乐 我是老师 我叫小雨
"""


def test_what_newcomers_type_opens_a_dialogue() -> None:
    scripts = smalltalk.templates().scripts
    openings = {text for script in scripts for line in lines(script) for text in typed(line)}
    assert openings >= set(NEWCOMERS.split())


def test_asked_for_its_name_the_bot_says_it() -> None:
    for node in nodes():
        if node.situation in ("你叫什么名字", "你是谁", "初次见面") and node.then:
            root = node in smalltalk.templates().scripts
            assert not root or all("小积" in b.text for form in node.bots for b in form)


# -- what fits where -------------------------------------------------------------------------


def test_no_line_opens_two_scripts_or_branches() -> None:
    """So a user line, with what came before, settles which replies are allowed."""

    def check(siblings: Sequence[Node], after: str) -> None:
        owner: dict[str, Node] = {}
        for node in siblings:
            for text in {text for line in lines(node) for text in typed(line)}:
                other = owner.setdefault(text, node)
                exclusive = node.needs & other.lacks or other.needs & node.lacks
                assert other is node or exclusive, f"{text!r} after {after!r}"
        for node in siblings:
            check(node.then, after=f"{node.situation}: {lines(node)[0].text}")

    check(smalltalk.templates().scripts, after="")


def test_a_typed_line_comes_from_one_template() -> None:
    """So a held-out combination cannot slip into training under another template."""
    templates = defaultdict(set)
    for line in itertools.chain.from_iterable(map(lines, nodes())):
        for text in typed(line):
            templates[text].add(line.text.rstrip(END_MARKS))
    assert not {text: found for text, found in templates.items() if len(found) > 1}


def test_a_new_topic_is_not_mistaken_for_an_answer(held_out: list[Dialogue]) -> None:
    for dialogue in held_out:
        for before, turn in itertools.pairwise(dialogue):
            if turn.node not in before.node.then:
                answers = {t for n in before.node.then for ln in lines(n) for t in typed(ln)}
                assert turn.user.rstrip(END_MARKS) not in answers


# -- held-out combinations -------------------------------------------------------------------


def test_training_never_holds_a_held_out_combination(
    training: list[list[str]], held_out: list[Dialogue]
) -> None:
    """Checked on the text: single lines and pairs of user lines in a row."""
    seen = set()
    for utterances in training:
        users = [utterance.rstrip(END_MARKS) for utterance in utterances[::2]]
        seen |= {("", user) for user in users} | set(itertools.pairwise(users))
    for dialogue in held_out:
        pairs = [t.pair for t in dialogue if t.pair and smalltalk.is_held_out(t.pair)]
        said = {"", *(turn.user.rstrip(END_MARKS) for turn in dialogue)}
        assert pairs and said >= set(itertools.chain.from_iterable(pairs))
        assert "" not in [line for _, line in pairs]
        assert seen.isdisjoint(pairs)


def test_training_can_hold_every_line_alone() -> None:
    """Each resolved phrasing has a value, or a line before it, that is not held out."""

    def check(node: Node, before: list[str]) -> None:
        for line in lines(node):
            texts = list(typed(line))
            pairs = [("", text) for text in texts]
            if not line.slots:
                pairs = [(text, texts[0]) for text in before]
            assert not pairs or not all(map(smalltalk.is_held_out, pairs)), line.text
        before = [next(typed(line)) for line in lines(node)]
        for child in node.then:
            check(child, before)

    for script in smalltalk.templates().scripts:
        check(script, before=[])


def test_training_holds_every_phrasing_and_value(training: list[list[str]]) -> None:
    users = {user.rstrip(END_MARKS) for utterances in training for user in utterances[::2]}
    for node in nodes():
        for phrasing in node.users:
            texts = (text for line in phrasing for text in typed(line))
            assert not users.isdisjoint(texts), phrasing[0].text
    text = "\n".join(map("\n".join, training))
    for kind, values in smalltalk.templates().slots.items():
        assert not [value for value in values if value not in text], kind


def test_about_a_tenth_is_held_out() -> None:
    pairs = [("", str(number)) for number in range(20_000)]
    assert 0.09 < sum(map(smalltalk.is_held_out, pairs)) / len(pairs) < 0.11


# -- judging ---------------------------------------------------------------------------------


def test_the_bot_lines_fit_everywhere(held_out: list[Dialogue]) -> None:
    turns = [turn for dialogue in held_out[:1000] for turn in dialogue]
    replies = iter(turns)
    counts = judge_all(held_out[:1000], lambda history: f" {next(replies).bot}\n")
    expected = Counter(turn.node.situation for turn in turns)
    assert counts == {name: (count, count) for name, count in expected.items()}


def test_bots_that_do_not_listen_score_low(held_out: list[Dialogue]) -> None:
    some = held_out[:500]
    assert share(some, lambda history: history[-1]) < 0.01
    replies = [turn.bot for dialogue in some for turn in dialogue]
    random.Random(0).shuffle(replies)
    assert share(some, lambda history: replies.pop()) < 0.05


def test_respond_sees_the_conversation_so_far(held_out: list[Dialogue]) -> None:
    seen: list[list[str]] = []

    def respond(history: list[str]) -> str:
        seen.append(history)
        return "好"

    judge_all(held_out[:1], respond)
    users = [turn.user for turn in held_out[0]]
    said = [text for user in users for text in (user, "好")]
    assert seen == [said[: 2 * n + 1] for n in range(len(users))]


def remembering(variable: str, dialogues: list[Dialogue]) -> Dialogue:
    """A dialogue that asks for `variable`, with nothing after the question."""
    return next(
        dialogue[: index + 1]
        for dialogue in dialogues
        for index, turn in enumerate(dialogue)
        if variable in turn.node.needs
    )


def verdicts(dialogue: Dialogue, replies: list[str]) -> list[bool]:
    judge = Judge(dialogue)
    return [judge.fits(reply) for reply in replies]


def test_a_wrong_name_is_a_misfit(held_out: list[Dialogue]) -> None:
    dialogue = remembering("name", held_out)
    name = next(turn.said["name"] for turn in dialogue if "name" in turn.said)
    *replies, last = [turn.bot for turn in dialogue]
    for wrong in {"小雨", "阿强"} - {name}:
        found = verdicts(dialogue, [*replies, last.replace(name, wrong)])
        assert found == [True] * len(replies) + [False]


def test_what_the_bot_chose_is_taken_from_its_own_reply(held_out: list[Dialogue]) -> None:
    dialogue = remembering("film", held_out)
    replies = [turn.bot for turn in dialogue]
    film = next(re.findall("《.*?》", reply)[0] for reply in replies if "《" in reply)
    other = next(f for f in smalltalk.templates().slots["film"] if f != film)
    changed = [reply.replace(film, other) for reply in replies]
    wrong_at_the_end = [True] * (len(replies) - 1) + [False]
    assert verdicts(dialogue, [*changed[:-1], replies[-1]]) == wrong_at_the_end
    assert all(verdicts(dialogue, changed))
    # A misfit that names one film still sets it …
    chosen = next(i for i, reply in enumerate(changed) if other in reply)
    wrong_at_the_end[chosen] = False
    changed[chosen] = f"嗯{other}嗯"
    assert verdicts(dialogue, [*changed[:-1], replies[-1]]) == wrong_at_the_end


# -- templates that are wrong ----------------------------------------------------------------


def test_the_lines_of_a_turn_set_the_same_slots() -> None:
    """So what is said later, and which scripts may follow, does not hang on the phrasing; and a
    user never repeats what only the bot, or an earlier dialogue, may know."""

    def check(node: Node, by_user: set[str], by_bot: set[str]) -> None:
        by_bot = by_bot | node.needs
        said = {frozenset(line.slots.keys() - by_user) for line in lines(node)}
        assert len(said) == 1 and by_bot.isdisjoint(*said), lines(node)[0].text
        by_user = by_user.union(*said)
        told = {frozenset(b.slots.keys() - by_user - by_bot) for form in node.bots for b in form}
        assert len(told) == 1, lines(node)[0].text
        for child in node.then:
            check(child, by_user, by_bot.union(*told))

    for script in smalltalk.templates().scripts:
        check(script, set(), set())


@pytest.mark.parametrize("phrasing", ["[你好|您好", "你好|您好", "我叫{name", "想喝{drink}"])
def test_a_broken_template_is_named(phrasing: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown slot in '{re.escape(phrasing)}'"):
        smalltalk.lines_of(phrasing, {"name": ["小雨"]})
