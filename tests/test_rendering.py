"""Conversation -> tokens with weights: worked by hand on bytes, cross-checked by rendering prefixes with three templates."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from chat_templates import PLAIN, QWEN3, QWEN25
from hypothesis import given
from hypothesis import strategies as st
from test_dialects import DIALECTS, NAMES, actions
from tiny import byte_tokenizer

from project.dialects import ANSWER_TOKEN, SEARCH_TOKEN, Action, get_dialect
from project.errors import InputError, RenderingError
from project.modules.policy import load_tokenizer
from project.records import Conversation, Document, Message, ToolCall
from project.rendering import DEFAULT_WEIGHTS, KIND_INDEX, KINDS, Renderer, carries_tools, prepare_tokenizer

TEMPLATES = {"seeker": None, "qwen2.5": QWEN25, "qwen3": QWEN3}


def renderer(dialect="tags", template=None, history="append", merges=(), **weights) -> Renderer:
    dialect = get_dialect(dialect) if isinstance(dialect, str) else dialect
    tokenizer = byte_tokenizer(template, merges)
    prepare_tokenizer(tokenizer, dialect)
    return Renderer(tokenizer, dialect, history, DEFAULT_WEIGHTS | weights)


def unprepared(template: str, history="append") -> Renderer:
    return Renderer(byte_tokenizer(template), get_dialect("tools"), history)


def expert(dialect) -> Conversation:
    """Two searches, the second with two queries at once, then a second question and its answer."""
    one, two = (
        Action("First the country.", ("capital Ulaanbaatar",)),
        Action("Now the money.", ("Mongolia currency", "tögrög 🙂")),
    )
    passages = [[Document("Ulaanbaatar lies in Mongolia.", "Ulaanbaatar"), Document("Its river is the Tuul.")], []]
    messages = (
        *dialect.opening("Which currency is used where Ulaanbaatar is the capital?"),
        dialect.write(one),
        *dialect.results(passages[:1], one),
        dialect.write(two),
        *dialect.results(passages, two),
        dialect.write(Action("I have it.", answer="Mongolian tögrög")),
        Message("user", "Question: 2+2?"),
        dialect.write(Action("Easy.", answer="4")),
    )
    return Conversation("expert", messages, dialect.tools)


def pieces_of(sample, tokenizer) -> list[tuple[str, str, float]]:
    """Return the runs of equal kind and weight: (text, kind, weight)."""
    marks = list(zip(sample.kinds, sample.weights, strict=True))
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(marks), 1) if a != b), len(marks)]
    return [(tokenizer.decode(sample.ids[a:b]), str(KINDS[marks[a][0]]), marks[a][1]) for a, b in pairwise(cuts)]


# --- weights by hand ------------------------------------------------------------------------------------------------

TAGS = Conversation(
    "hand",
    (
        Message("system", "Sé"),
        Message("user", "U"),
        Message("assistant", "<think>\nx\n</think>\n<|SEARCH|>\n<search>\nq\n</search>"),
        Message("user", "<information>\nR\n</information>"),
        Message("assistant", "Well: <answer>\na\n</answer>"),
    ),
)


def test_weights_by_hand():
    r = renderer()
    (sample,) = r.samples(TAGS)
    expected = [
        ("<|im_start|>system\n", "header", 0.0),
        ("Sé", "system", 0.0),
        ("<|im_end|>\n<|im_start|>user\n", "header", 0.0),
        ("U", "user", 0.0),
        ("<|im_end|>\n<|im_start|>assistant\n", "header", 0.0),
        ("<think>\nx\n</think>\n", "think", 1.5),
        ("<|SEARCH|>\n", "decision", 2.0),
        ("<search>\nq\n</search>", "search", 1.0),
        ("<|im_end|>", "end", 1.0),
        ("\n<|im_start|>user\n", "header", 0.0),
        ("<information>\nR\n</information>", "result", 0.0),
        ("<|im_end|>\n<|im_start|>assistant\n", "header", 0.0),
        ("Well: ", "text", 1.0),
        ("<answer>\na\n</answer>", "answer", 1.0),
        ("<|im_end|>", "end", 1.0),
    ]
    assert pieces_of(sample, r.tokenizer) == expected
    # One token a byte: é is two; the control tokens and the decision are one each.
    sizes = [(8, 8), (3, 3), (1 + 1 + 1 + 5, 8), (1, 1), (1 + 1 + 1 + 10, 13), (19, 19), (1 + 1, 2), (20, 20), (1, 1)]
    counts = [len(r.encode(text)) for text, _, _ in expected]
    assert counts[:9] == [size for _, size in sizes]
    assert len(sample.ids) == len(sample.kinds) == len(sample.weights) == sum(counts)
    # 19 of think, 2 of decision, 20 of search, 6 of text, 20 of answer, 2 ends: 28.5 + 4 + 20 + 6 + 20 + 2
    assert sum(sample.weights) == 80.5


def test_weights_are_those_given():
    (sample,) = renderer(think=0.0, decision=0.5, result=1.0, user=1.0, header=1.0).samples(TAGS)
    by_kind = {(str(KINDS[k]), w) for k, w in zip(sample.kinds, sample.weights, strict=True)}
    assert {("think", 0.0), ("decision", 0.5), ("result", 0.0), ("user", 0.0), ("header", 0.0), ("end", 1.0)} <= by_kind
    with pytest.raises(InputError, match=r"span kinds \['thinking'\]; known are system, user"):
        renderer(thinking=1.0)


def test_message_weight_multiplies():
    messages = list(TAGS.messages)
    messages[2], messages[4] = replace(messages[2], weight=0.0), replace(messages[4], weight=0.5)
    r = renderer()
    (sample,) = r.samples(replace(TAGS, messages=tuple(messages)))
    trained = [(text, weight) for text, _, weight in pieces_of(sample, r.tokenizer) if weight > 0]
    assert trained == [("Well: ", 0.5), ("<answer>\na\n</answer>", 0.5), ("<|im_end|>", 0.5)]


@pytest.mark.parametrize(("think", "between"), [(1.5, ("think", 1.5)), (0.5, ("search", 1.0))])
def test_a_straddling_token_takes_the_larger_weight(think, between):
    r = renderer(get_dialect("tags", decision_tokens=False), merges=[("Ċ", "<")], think=think)
    assistant = Message("assistant", "<think>x</think>\n<search>q\n</search>")
    (sample,) = r.samples(Conversation("c", (Message("user", "U"), assistant)))
    merged = r.tokenizer.convert_tokens_to_ids("Ċ<")
    found = [(str(KINDS[k]), w) for i, k, w in zip(sample.ids, sample.kinds, sample.weights, strict=True) if i == merged]
    # header's newline with the thought's `<`; the thought's newline with the search's `<`; one inside the search
    assert found == [("think", think), between, ("search", 1.0)]


def test_offsets_without_leading_spaces():
    """GPT-2's own post-processor leaves a token's leading space out of its offsets: the space still counts as touched."""
    from tokenizers import processors

    r = renderer(merges=[("Ġ", "<")], search=0.5, text=1.0)
    r.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    (sample,) = r.samples(Conversation("c", (Message("user", "U"), Message("assistant", "so <search>q</search>"))))
    place = sample.ids.index(r.tokenizer.convert_tokens_to_ids("Ġ<"))
    assert (KINDS[sample.kinds[place]], sample.weights[place]) == ("text", 1.0)


# --- the whole conversation, against a second method ----------------------------------------------------------------


def rows_of(messages) -> list[dict]:
    """Return messages as `apply_chat_template` takes them, arguments as objects."""
    rows = []
    for message in messages:
        calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
        rows.append({"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {}))
    return rows


def rendered(tokenizer, conversation, count, *, generate=False) -> str:
    tools = list(conversation.tools) or None
    rows = rows_of(conversation.messages[:count])
    return tokenizer.apply_chat_template(rows, tools=tools, tokenize=False, add_generation_prompt=generate)


def trained_by_prefixes(tokenizer, conversation) -> tuple[list[int], list[bool]]:
    """Second method: the characters by which the text grows from prompt to prompt with its assistant turn are trained."""
    text = rendered(tokenizer, conversation, len(conversation.messages)).removesuffix("\n")
    turns = []
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            start = rendered(tokenizer, conversation, i, generate=True)
            end = rendered(tokenizer, conversation, i + 1).removesuffix("\n")
            assert text.startswith(start)
            assert text.startswith(end)
            turns.append(range(len(start), len(end)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [any(a in turn for turn in turns) for a, _ in encoded["offset_mapping"]]


@pytest.mark.parametrize("template", ["seeker", "qwen2.5"])
@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_cross_check_by_prefixes(template, dialect):
    r = renderer(dialect, TEMPLATES[template])
    assert not r.rewrites_history
    (sample,) = r.samples(expert(dialect))
    ids, trained = trained_by_prefixes(r.tokenizer, expert(dialect))
    assert sample.ids == ids
    assert [weight > 0 for weight in sample.weights] == trained


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_template_history_is_what_inference_sees(template, dialect):
    r = renderer(dialect, TEMPLATES[template], "template")
    conversation = expert(dialect)
    turns = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    samples = r.samples(conversation)
    assert [sample.id for sample in samples] == [f"expert#{i}" for i in turns]
    for i, sample in zip(turns, samples, strict=True):
        prompt = r.encode(rendered(r.tokenizer, conversation, i, generate=True))
        whole = r.encode(rendered(r.tokenizer, conversation, i + 1).removesuffix("\n"))
        assert sample.ids == whole
        assert [weight > 0 for weight in sample.weights] == [place >= len(prompt) for place in range(len(whole))]
        assert sample.ids[: len(prompt)] == prompt


THOUGHTS = ("First the country.", "Now the money.", "I have it.", "Easy.")


@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_qwen3_history_in_both_modes(dialect):
    """`append` keeps every thought and trains it once; `template` shows each turn the thoughts that Qwen3 would."""
    appended = renderer(dialect, QWEN3)
    assert appended.rewrites_history
    (sample,) = appended.samples(expert(dialect))
    text = appended.tokenizer.decode(sample.ids)
    assert [text.count(thought) for thought in THOUGHTS] == [1] * 4
    trained = "".join(part for part, _, weight in pieces_of(sample, appended.tokenizer) if weight > 0)
    assert [trained.count(thought) for thought in THOUGHTS] == [1] * 4
    assert text == "".join(piece.text for piece in appended.chain(expert(dialect)))

    followed = renderer(dialect, QWEN3, "template")
    seen = [[t in followed.tokenizer.decode(s.ids) for t in THOUGHTS] for s in followed.samples(expert(dialect))]
    if dialect.name == "tools":  # results are no user messages: thoughts stay until the next question
        assert seen == [
            [True, False, False, False],
            [True, True, False, False],
            [True, True, True, False],
            [False] * 3 + [True],
        ]
    else:
        assert seen == [[place == turn for place in range(4)] for turn in range(4)]
    # A turn's past is shown with its kinds, and not trained.
    last = followed.samples(expert(dialect))[-1]
    past = {(str(KINDS[k]), w) for k, w in zip(last.kinds, last.weights, strict=True)}
    assert {("search", 0.0), ("result", 0.0), ("end", 0.0), ("end", 1.0)} <= past


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_rollouts_build_the_same_text(template, dialect):
    """`prompt`, the generated text and `between`, as a rollout appends them, are the tokens that SFT trained on."""
    r = renderer(dialect, TEMPLATES[template])
    conversation = expert(dialect)
    ids, waiting = [], []
    for message in conversation.messages:
        if message.role != "assistant":
            waiting.append(message)
            continue
        context = r.between(waiting) if ids else r.prompt(waiting, conversation.tools)
        ids += r.encode(context.text)
        generated = r.encode(r.turn(message).text)
        assert generated[-1] == r.end_id
        sampled = r.decode(generated)
        assert r.turn(dialect.message(sampled)).text == r.turn(message).text, "kept to the letter when read back"
        ids += generated
        waiting = []
    assert r.samples(conversation)[0].ids == ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_parse_of_rendered_turn_is_identity(template, dialect):
    r = renderer(dialect, TEMPLATES[template])

    @given(actions)
    def check(action):
        assert dialect.parse(r.decode(r.encode(r.turn(dialect.write(action)).text))) == action

    check()


# --- what a template must carry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("history", ["append", "template"])
def test_trap_03_end_of_turn_trained(template, history):
    """Every trained turn ends with the end-of-turn token, with weight 1: without it the model never stops."""
    dialect = get_dialect("tools")
    r = renderer(dialect, TEMPLATES[template], history)
    ends = []
    for sample in r.samples(expert(dialect)):
        assert (sample.ids[-1], sample.weights[-1], KINDS[sample.kinds[-1]]) == (r.end_id, 1.0, "end")
        ends += [
            w
            for i, w, k in zip(sample.ids, sample.weights, sample.kinds, strict=True)
            if i == r.end_id and k == KIND_INDEX["end"]
        ]
    assert sum(ends) == 4
    assert (r.end_text, r.end_id) == ("<|im_end|>", 257)


def test_trap_14_results_are_never_trained():
    """Whatever the weights say, what the environment wrote has weight 0; also results inside an agent's own message."""
    r = renderer(result=5.0)
    for conversation in (TAGS, expert(r.dialect)):
        (sample,) = r.samples(conversation)
        assert {w for k, w in zip(sample.kinds, sample.weights, strict=True) if KINDS[k] == "result"} == {0.0}
    whole = Message("assistant", "<search>q</search><information>R</information><answer>a</answer>")
    (sample,) = renderer().samples(Conversation("c", (Message("user", "U"), whole)))
    assert 0.0 in {w for k, w in zip(sample.kinds, sample.weights, strict=True) if KINDS[k] == "result"}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "é", '"']), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("history", ["append", "template"])
def test_trap_17_arguments_are_encoded_once(template, history):
    """Stored as a JSON string, shown as an object: the call that the model is trained to write reads back to the same."""
    dialect = get_dialect("tools")
    r = renderer(dialect, TEMPLATES[template], history)

    @given(st.lists(st.dictionaries(st.sampled_from(["query", "queries", "n"]), values, max_size=3), min_size=1, max_size=3))
    def check(arguments):
        calls = tuple(ToolCall("search", a, f"call_{i}") for i, a in enumerate(arguments))
        stored = Conversation("c", (*dialect.opening("q"), Message("assistant", "<think>t</think>", calls)), dialect.tools)
        read = Conversation.from_row(json.loads(json.dumps(stored.to_row())))
        (sample,) = r.samples(read)
        trained = "".join(text for text, _, weight in pieces_of(sample, r.tokenizer) if weight > 0)
        texts = [part.partition("\n</tool_call>")[0] for part in trained.split("<tool_call>\n")[1:]]
        assert [json.loads(text) for text in texts] == [{"name": "search", "arguments": a} for a in arguments]

    check()


def test_trap_17_a_string_would_be_encoded_twice():
    """What Qwen2.5's template does to arguments that stay a string: the test above can fail."""
    call = {"type": "function", "function": {"name": "search", "arguments": '{"query": "q"}'}}
    rows = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = byte_tokenizer(QWEN25).apply_chat_template(rows, tokenize=False)
    inside = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert json.loads(inside)["arguments"] == '{"query": "q"}'


NO_SCHEMA = QWEN25.replace("{%- if tools %}", "{%- if false %}")
NO_CALL = QWEN25.replace("{%- for tool_call in message.tool_calls %}", "{%- for tool_call in [] %}")
NO_ARGUMENTS = QWEN25.replace("{{- tool_call.arguments | tojson }}", "{{- '{}' }}")
NO_RESULT = QWEN25.replace('{%- elif message.role == "tool" %}', '{%- elif message.role == "nobody" %}')
NO_TOOL_ROLE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no role tool') }}{% endif %}{% endfor %}" + PLAIN
)
DROPPING = {
    "plain": PLAIN,
    "schema": NO_SCHEMA,
    "call": NO_CALL,
    "arguments": NO_ARGUMENTS,
    "result": NO_RESULT,
    "role": NO_TOOL_ROLE,
}


@pytest.mark.parametrize("name", DROPPING)
def test_trap_17_a_dropping_template_is_replaced(name):
    tokenizer = byte_tokenizer(DROPPING[name])
    assert not carries_tools(tokenizer)
    assert prepare_tokenizer(tokenizer, get_dialect("tools")) == []
    assert carries_tools(tokenizer)
    own = byte_tokenizer()
    prepare_tokenizer(own, get_dialect("tools"))
    assert tokenizer.chat_template == own.chat_template


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("history", ["append", "template"])
def test_trap_17_a_dropping_template_is_refused(name, history):
    with pytest.raises(RenderingError, match=r"the chat template (drops|hides|refuses)") as error:
        unprepared(DROPPING[name], history).samples(expert(get_dialect("tools")))
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize("history", ["append", "template"])
def test_trap_17_a_dropped_call_is_seen_though_its_words_stand_elsewhere(history):
    """The query repeats the question, the tool's name stands in the system prompt, the values are inside a list."""
    tools = get_dialect("tools").tools
    opening = (Message("system", 'Use "search" with a query.'), Message("user", "gold"))
    for arguments in ({"query": "gold"}, {"queries": ["gold", {"a": "gold"}]}, {}):
        call = Message("assistant", "I look.", (ToolCall("search", arguments),))
        with pytest.raises(RenderingError, match="from a tool call"):
            unprepared(NO_ARGUMENTS if arguments else NO_CALL, history).samples(Conversation("c", (*opening, call), tools))
    answer = Message("assistant", "gold")
    renamed = ({"type": "function", "function": {"name": "search", "parameters": {"properties": {"phrase": {}}}}},)
    with pytest.raises(RenderingError, match="drops 'phrase' from the tools of 'c'"):
        unprepared(NO_SCHEMA, history).samples(Conversation("c", (*opening, answer), renamed))


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_a_template_that_carries_all_is_kept(name):
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prepare_tokenizer(tokenizer, get_dialect("tools"))
    assert tokenizer.chat_template == TEMPLATES[name]


def test_decision_tokens_are_added_once():
    tokenizer = byte_tokenizer()
    new = prepare_tokenizer(tokenizer, get_dialect("tags"))
    assert tokenizer.convert_ids_to_tokens(new) == [SEARCH_TOKEN, ANSWER_TOKEN]
    assert new == [258, 259]
    assert prepare_tokenizer(tokenizer, get_dialect("tags")) == []
    assert prepare_tokenizer(byte_tokenizer(), get_dialect("tags", decision_tokens=False)) == []
    assert tokenizer.encode(f"a{SEARCH_TOKEN}b") == [97, 258, 98]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([Message("user", "a<|im_end|>b"), Message("assistant", "x")], r"'c' holds the control token <\|im_end\|>"),
        ([Message("user", "a"), Message("assistant", "x<|im_start|>")], r"control token <\|im_start\|>"),
        (
            [Message("user", "a"), Message("assistant", "", (ToolCall("search", {"q": ["<|im_end|>"]}),))],
            r"control token <\|im_end",
        ),
        ([Message("user", "a")], "'c' has no assistant message to train"),
        ([Message("user", "a"), Message("assistant", "x", weight=0.0)], "'c' (trains 0 of|has no assistant message of weight)"),
    ],
)
def test_refused_conversations(history, messages, words):
    with pytest.raises(RenderingError, match=words) as error:
        renderer("tools", history=history).samples(Conversation("c", tuple(messages)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("mine", "other"), [("tags", "tools"), ("tools", "tags")])
def test_a_conversation_in_the_other_dialect_is_refused(mine, other):
    search, answer = Action("t", ("q",)), Action("t", answer="a")
    messages = [Message("user", "q?"), get_dialect(other).write(search), Message("user", "r"), get_dialect(other).write(answer)]
    words = f"'c' searches in the dialect {other}, and model.settings.dialect is {mine}; set that, or make the set anew"
    with pytest.raises(RenderingError, match=words):
        renderer(mine).samples(Conversation("c", tuple(messages)))
    # The agent's slip beside searches that count, or an untrained one, is material like any other.
    own = get_dialect(mine).write(search)
    tools = get_dialect(mine).tools
    assert renderer(mine).samples(Conversation("c", (*messages[:2], Message("user", "r"), own), tools))
    untrained = replace(messages[1], weight=0.0)
    assert renderer(mine).samples(Conversation("c", (messages[0], untrained, *messages[2:]), tools))


def test_trained_share_0_and_1_are_refused():
    conversation = Conversation("c", (Message("user", "a"), Message("assistant", "x")))
    with pytest.raises(RenderingError, match=r"'c' trains 0 of \d+ tokens; check its weights"):
        renderer(text=0.0, end=0.0).samples(conversation)
    r = renderer()
    with pytest.raises(RenderingError, match=r"'c' trains 2 of 2 tokens"):
        r._tokenise("c", [r.turn(conversation.messages[1])])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (PLAIN.partition("{% if add")[0], "adds no generation prompt"),
        (PLAIN.replace("<|im_end|>\n", "END"), "ends an assistant's turn with no special token"),
        ("{{ raise_exception('never') }}", r"refuses messages of the roles \[user\]: never"),
    ],
)
def test_useless_templates_are_refused(template, words):
    with pytest.raises(RenderingError, match=words):
        unprepared(template)


# --- the real tokenizer of the embedded default ---------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=NAMES)
def test_default_model(default_model_dir, dialect):
    tokenizer, new = load_tokenizer(str(default_model_dir), dialect)
    assert len(new) == 2 * dialect.decision_tokens
    assert carries_tools(tokenizer), "its own template drops tools"
    r = Renderer(tokenizer, dialect)
    assert not r.rewrites_history
    (sample,) = r.samples(expert(dialect))
    ids, trained = trained_by_prefixes(tokenizer, expert(dialect))
    assert sample.ids == ids
    assert [weight > 0 for weight in sample.weights] == trained
    runs = pieces_of(sample, tokenizer)
    assert [text for text, kind, _ in runs if kind == "end"] == ["<|im_end|>"] * 4
    weights = {kind: weight for _, kind, weight in runs}
    assert weights | {"think": 1.5, "search": 1.0, "answer": 1.0, "result": 0.0, "user": 0.0, "system": 0.0} == weights
    if dialect.decision_tokens:
        assert [text.strip() for text, kind, _ in runs if kind == "decision"] == [SEARCH_TOKEN] * 2 + [ANSWER_TOKEN] * 2
        assert set(new) <= set(sample.ids), "one token each, and not their pieces"
    assert len(Renderer(tokenizer, dialect, "template").samples(expert(dialect))) == 4


# --- what a sampled turn's tokens count by their kind


def test_the_tokens_of_a_sampled_turn_count_by_their_kind():
    r = renderer(get_dialect("tags", decision_tokens=False))
    text = "<think>\nü\n</think>\n<search>\nx\n</search>"
    ids = [*text.encode(), r.end_id]
    found = r.turn_weights(ids, {"think": 0.25, "end": 3.0})
    thought = len("<think>\nü\n</think>\n".encode())
    assert found == [0.25] * thought + [1.0] * (len(ids) - thought - 1) + [3.0]
    assert r.turn_weights(ids[:-1], {"end": 3.0}) == [1.0] * (len(ids) - 1)  # cut off before its end
    assert r.turn_weights([], {}) == []


@given(st.text(max_size=40))
def test_any_sampled_text_gets_a_weight_a_token(text):
    r = renderer(get_dialect("tags", decision_tokens=False))
    ids = [*text.encode(errors="replace"), r.end_id]
    assert len(r.turn_weights(ids, {"text": 2.0})) == len(ids)


def test_tokens_that_would_be_merged_again_are_placed_one_by_one(default_model_dir):
    """A model may sample a word as two tokens, which the tokenizer would make one: its place in the text is the same."""
    dialect = get_dialect("tags")
    tokenizer, _ = load_tokenizer(str(default_model_dir), dialect)
    r = Renderer(tokenizer, dialect)
    text = f"<think>\nthe river\n</think>\n{SEARCH_TOKEN}\n<search>\nriver\n</search>"
    head, tail = text.split("iver", 1)
    whole = [*r.encode(text), r.end_id]
    split = [*r.encode(head), *r.encode("iver"), *r.encode(tail), r.end_id]
    assert r.decode(split) == r.decode(whole) == text
    assert split != whole
    for ids in (whole, split):
        found = r.turn_weights(ids, {"think": 0.5, "decision": 4.0, "search": 2.0, "end": 3.0})
        assert len(found) == len(ids)
        assert [w for w, before in zip(found, [None, *found], strict=False) if w != before] == [0.5, 4.0, 2.0, 3.0]
