"""Requests and answers through the real SDKs, against a server on this machine that caches prefixes as documented."""

import copy
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise

import anthropic
import pytest

import dars.models.anthropic as provider
from dars.aci.base import Observation, Tool
from dars.config import DarsConfig
from dars.env.memory import MemoryEnvironment
from dars.errors import CassetteMiss, ModelError, TaskError
from dars.models import (
    AnthropicModel,
    CachePolicy,
    CassetteModel,
    HumanModel,
    ModelRequest,
    OpenAIModel,
    ScriptedModel,
    ToolCall,
    Usage,
    price,
    read_rows,
)
from dars.models.openai import written_call
from dars.models.registry import Row
from dars.search import Engine
from dars.search.turns import Prompts
from dars.testing import FakeMessagesServer, Reply

TOOLS = [
    {"name": name, "description": name, "input_schema": {"type": "object"}, "strict": True}
    for name in ("submit", "bash")
]  # not in order: requests sort them
SYSTEM = "You mend programs. " * 20
LONG = CachePolicy(return_s=600)
SHORT = CachePolicy(return_s=60)


def path(turns, observation="it printed something " * 10):
    """Messages of a path with so many actions."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "the issue " * 30}]}]
    for i in range(turns):
        call = {"type": "tool_use", "id": f"toolu_{i}", "name": "bash", "input": {"command": f"step {i}"}}
        thought = {"type": "thinking", "thinking": f"thought {i}", "signature": f"signed {i}"}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{i}", "content": f"{i}: {observation}"}
        messages += [{"role": "assistant", "content": [thought, call]}, {"role": "user", "content": [result]}]
    return messages


def act(turns, role="act", extra=(), **settings):
    """A request at the end of a path."""
    messages = path(turns)
    messages[-1] = {
        **messages[-1],
        "content": [*messages[-1]["content"], *({"type": "text", "text": t} for t in extra)],
    }
    at = (0,) * turns
    return ModelRequest(role, at, system=SYSTEM, messages=messages, tools=TOOLS, max_tokens=1000, **settings)


def model_for(server, **settings):
    return AnthropicModel(api_key="the-key", base_url=server.url, **settings)


@contextmanager
def serving(responder=lambda body: ToolCall("bash", {"command": "ls"}), **settings):
    with FakeMessagesServer(responder, **{"clock": lambda: 0.0, **settings}) as server:
        yield server, model_for(server)


def tokens(block):
    """As the server counts them."""
    return len(json.dumps({k: v for k, v in block.items() if k != "cache_control"}, ensure_ascii=False)) // 4


def size(request, blocks_from_end=0):
    """Tokens of a whole request, the last blocks of its last turn left out."""
    head = [*sorted(TOOLS, key=lambda tool: tool["name"]), {"type": "text", "text": SYSTEM}]
    said = [block for message in request.messages for block in message["content"]]
    return sum(map(tokens, [*head, *said[: len(said) - blocks_from_end]]))


def marked(body):
    """Lifetimes of the breakpoints of a request in their order."""
    blocks = [*body.get("tools", ()), *body.get("system", ()), *(b for m in body["messages"] for b in m["content"])]
    found = [block["cache_control"].get("ttl", "5m") for block in blocks if "cache_control" in block]
    return found + ([body["cache_control"].get("ttl", "5m")] if "cache_control" in body else [])


def sent(value):
    """Bytes of a value in a request."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def unmarked(value):
    """The same without breakpoints."""
    if isinstance(value, dict):
        return {key: unmarked(item) for key, item in value.items() if key != "cache_control"}
    return [unmarked(item) for item in value] if isinstance(value, list) else value


# --- what the SDK does ----------------------------------------------------------------------------------------------


def test_sdk_takes_no_sampling_keys_and_refuses_long_answers_unstreamed():
    with serving() as (server, model):
        ask = {"model": model.name, "messages": path(0)}
        for key in ("temperature", "top_p", "top_k"):
            with pytest.raises(TypeError, match=key):
                model.client.messages.create(max_tokens=10, **{key: 1}, **ask)
        with pytest.raises(ValueError, match="Streaming is required"):
            model.client.messages.create(max_tokens=21_334, **ask)
        assert not server.requests


def test_key_goes_into_the_authorization_header():
    with serving() as (server, model):
        model.complete(act(0))
        assert server.requests[0].headers["authorization"] == "Bearer the-key"
        assert "x-api-key" not in server.requests[0].headers


def test_missing_credentials_are_named(monkeypatch, tmp_path):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError, match="ANTHROPIC_API_KEY"):
        AnthropicModel(base_url="http://127.0.0.1:9").complete(act(0))


# --- the server refuses what the API refuses ------------------------------------------------------------------------


def test_server_rejects_malformed_requests():
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_0", "content": ""}]}
    late = {"role": "user", "content": [{"type": "text", "text": "so"}, *path(1)[-1]["content"]]}
    cached = path(2)
    for message, lifetime in zip(cached[::2], ("5m", "1h", "5m"), strict=True):
        message["content"][0]["cache_control"] = {"type": "ephemeral", "ttl": lifetime}
    many = path(4)
    for message in many[::2]:
        message["content"][0]["cache_control"] = {"type": "ephemeral"}
    wrong = {
        "temperature: Extra": {"messages": path(0), "extra_body": {"temperature": 0.5}},
        "top_k: Extra": {"messages": path(0), "extra_body": {"top_k": 5}},
        "maximum of 4": {"messages": many},
        "must not come after": {"messages": cached},
        "without tool_result": {"messages": path(1)[:-1]},
        "do not match": {"messages": [*path(1)[:-1], {"role": "user", "content": "well?"}]},
        "do not match the tool_use": {"messages": [*path(0), {"role": "assistant", "content": "no"}, result]},
        "have to come first": {"messages": [*path(1)[:-1], late]},
        "alternate": {"messages": [*path(0), *path(0)]},
        "first message": {"messages": path(1)[1:]},
    }
    with serving() as (server, model):
        for message, keys in wrong.items():
            with pytest.raises(anthropic.BadRequestError, match=message):
                model.client.messages.create(model=model.name, max_tokens=10, **keys)
        assert len(server.requests) == len(wrong)
        assert server.usage_total == Usage()


# --- layout ---------------------------------------------------------------------------------------------------------


def test_requests_of_a_path_are_prefixes_of_one_another_byte_for_byte():
    with serving() as (server, model):
        for turns in range(6):
            model.complete(act(turns))
    bodies = [seen.body for seen in server.requests]
    assert all(b'"messages":' + sent(seen.body["messages"]) + b"," in seen.raw for seen in server.requests)
    for parent, child in pairwise(bodies):
        assert sent(child["messages"]).startswith(sent(parent["messages"])[:-1])
        for same in ("system", "tools", "tool_choice", "model"):
            assert json.dumps(child[same]) == json.dumps(parent[same])
    assert all(len(marked(body)) <= 4 and not {"temperature", "top_p", "top_k"} & set(body) for body in bodies)
    assert [tool["name"] for tool in bodies[0]["tools"]] == ["bash", "submit"]
    assert bodies[0]["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert bodies[3]["diagnostics"] == {"previous_message_id": "msg_000002"}


@pytest.mark.parametrize(
    ("policy", "branch", "lifetimes"),
    [
        (LONG, 4, ["1h", "1h", "1h", "5m"]),
        (SHORT, 4, ["5m", "5m", "5m", "5m"]),
        (LONG, -1, ["1h", "1h", "1h"]),
        (LONG, None, ["5m", "5m", "5m"]),
    ],
)
def test_branch_points_last_an_hour_where_the_policy_says_so(policy, branch, lifetimes):
    with serving() as (server, _):
        model_for(server, cache_policy=policy).complete(act(4, long_lived=branch))
    body = server.requests[0].body
    assert marked(body) == lifetimes
    assert unmarked(body["messages"]) == path(4)


def test_an_hour_pays_iff_the_extra_price_of_writing_is_below_that_of_writing_again():
    assert LONG.an_hour(new=153, prefix=100)
    assert not LONG.an_hour(new=154, prefix=100)
    assert not SHORT.an_hour(new=0, prefix=100)


def test_single_questions_are_not_cached_and_force_their_schema():
    schema = {"type": "object", "properties": {"index": {"type": "integer"}}, "additionalProperties": False}
    with serving(lambda body: '{"index": 1}') as (server, model):
        response = model.complete(ModelRequest("critic", (0,), messages=path(0), schema=schema))
    body = server.requests[0].body
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert marked(body) == []
    assert not {"tools", "tool_choice"} & set(body)
    assert (json.loads(response.text), response.stop) == ({"index": 1}, "end_turn")


def test_of_several_calls_in_one_answer_the_first_is_kept():
    uses = [{"type": "tool_use", "id": f"toolu_{n}", "name": "bash", "input": {"command": "ls"}} for n in "ab"]
    with serving(lambda body: [{"type": "text", "text": "both"}, *uses]) as (_, model):
        response = model.complete(act(0))
        said = {"role": "assistant", "content": list(response.content)}
        seen = {"type": "tool_result", "tool_use_id": response.call.id, "content": "calc.py"}
        again = ModelRequest("act", (0,), system=SYSTEM, messages=[*path(0), said, {"role": "user", "content": [seen]}],
                             tools=TOOLS)  # fmt: skip
        assert model.complete(again).call is not None  # the server refuses calls without a result
    assert response.call.id == "toolu_a"
    assert response.content == [{"type": "text", "text": "both"}, uses[0]]


def test_temperature_reaches_only_models_that_take_it():
    rows = {"old": Row(temperature=True), "new": Row()}
    with serving() as (server, _):
        for name in rows:
            model_for(server, model=name, rows=rows).complete(act(0, temperature=0.8))
    assert server.requests[0].body["temperature"] == 0.8
    assert server.requests[0].headers["anthropic-version"] == "2023-06-01"
    assert "temperature" not in server.requests[1].body
    with serving() as (server, _):  # with thinking the API takes the temperature 1 alone
        thinking = {"type": "enabled", "budget_tokens": 1024}
        model = model_for(server, model="old", rows=rows, thinking=thinking)
        model.complete(act(0, temperature=0.8))
    assert not model.capabilities.temperature
    assert "temperature" not in server.requests[0].body


def test_chat_model_that_refuses_the_temperature_is_asked_without_it_where_its_row_says_so():
    wrong = {"error": {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}}
    with chat_server((400, wrong), chat("stop", "ok")) as (url, seen):
        with pytest.raises(ModelError, match=r"--rows: temperature: false"):
            OpenAIModel("o9", base_url=url, api_key="none").complete(act(0, temperature=0.0))
        model = OpenAIModel("o9", base_url=url, api_key="none", rows={"o9": Row(temperature=False)})
        model.complete(act(0, temperature=0.0))
    assert ["temperature" in body for _, body in seen] == [True, False]
    assert model.greedy is None


# --- cache and price ------------------------------------------------------------------------------------------------


def test_every_step_of_a_path_reads_what_the_last_one_wrote_and_costs_what_it_should():
    with serving() as (_, model):
        sizes = [size(act(turns)) for turns in range(4)]
        for turns in range(4):
            usage = (response := model.complete(act(turns))).usage
            read = sizes[turns - 1] if turns else 0
            assert usage[:4] == (0, read, sizes[turns] - read, 0)
            dollars = (0.1 * read + 1.25 * (sizes[turns] - read)) * 2e-6 + usage.output * 10e-6
            assert response.cost_usd == pytest.approx(dollars, abs=1e-12)
            assert response.cache_miss == ""


@pytest.mark.parametrize(("waited", "hit"), [(299, True), (301, False)])
def test_entries_end_after_five_minutes_without_use(waited, hit):
    now = [0.0]
    with serving(clock=lambda: now[0]) as (_, model):
        model.complete(act(2))
        now[0] = 299.0
        model.complete(act(2))  # reading renews
        now[0] += waited
        assert (model.complete(act(2)).usage.cache_read > 0) == hit


def test_an_hour_has_to_be_asked_for_when_the_prefix_is_first_written():
    """What is in the cache for five minutes is only read by a later request for an hour."""
    for first, hit in ((-1, True), (None, False)):
        now = [0.0]
        with serving(clock=lambda now=now: now[0]) as (server, model):
            written = model.complete(act(2, long_lived=first)).usage
            model.complete(act(3, long_lived=4))
            now[0] = 3000.0
            assert (model.complete(act(2, long_lived=4)).usage.cache_read == size(act(2))) == hit
            assert written[2:4] == ((0, size(act(2))) if first else (size(act(2)), 0))
            assert server.usage_total.cache_write_1h == size(act(2))


def test_look_back_ends_after_twenty_blocks():
    for turns, hit in ((6, True), (7, False)):  # three blocks in every step: 18 or 21 after what was written
        with serving() as (_, model):
            model.complete(act(1))
            usage = model.complete(act(1 + turns)).usage
            assert usage.cache_read == size(act(1 if hit else 0))  # the issue has a breakpoint of its own


def test_prefixes_below_the_least_length_are_not_cached():
    for least, written in ((size(act(1)), True), (size(act(1)) + 1, False)):
        with serving(min_tokens=least) as (_, model):
            usage = model.complete(act(1)).usage
            assert (usage.cache_write_5m, usage.input) == ((size(act(1)), 0) if written else (0, size(act(1))))


def test_changed_history_is_diagnosed():
    with serving() as (_, model):
        model.complete(act(1))
        changed = copy.deepcopy(act(2))
        changed.messages[2]["content"][0]["content"] = "[left out]"
        assert model.complete(changed).cache_miss == "messages_changed"
        assert model.complete(act(2)).cache_miss == "messages_changed"  # against the one just sent
        assert model.complete(act(3)).cache_miss == ""


# --- candidates -----------------------------------------------------------------------------------------------------


def test_candidates_share_feedback_that_only_the_first_has_written():
    """The first is answered before the others are sent, and these are in flight together."""
    began, together = [], threading.Barrier(3, timeout=10)

    def responder(body):
        mine = body["messages"][-1]["content"][-1]["text"]
        began.append(mine)
        if mine.startswith("candidate") and mine != "candidate 0 of 4":
            together.wait()
        call = {"type": "tool_use", "id": "toolu_x", "name": "bash", "input": {"command": mine}}
        return Reply([call], delay_s=0.1 * (mine == "candidate 0 of 4"))  # long enough to be overtaken

    with serving(responder) as (_, model):
        model.complete(act(0))
        told = "what happened before " * 50
        requests = [act(2, "candidate", extra=(told, f"candidate {i} of 4"), sample=i) for i in range(4)]
        responses = model.complete_many(requests)
        assert began[1] == "candidate 0 of 4"
    shared = size(requests[0], blocks_from_end=1)
    assert [r.call.input["command"] for r in responses[1:]] == [f"candidate {i} of 4" for i in (1, 2, 3)]
    assert responses[0].usage.cache_write_5m == shared - size(act(0))
    own = tokens({"type": "text", "text": "candidate 0 of 4"})
    assert [r.usage[:4] for r in responses[1:]] == [(own, shared, 0, 0)] * 3


def test_equal_candidates_share_everything_and_unshared_ones_nothing():
    barrier = threading.Barrier(3, timeout=10)
    with serving() as (server, model):
        responses = model.complete_many([act(1, "candidate", sample=i) for i in range(3)])
        assert [r.usage.cache_read for r in responses] == [0, size(act(1)), size(act(1))]
        assert all("cache_control" in seen.body for seen in server.requests)
    with serving(lambda body: (barrier.wait(), "no")[1]) as (_, model):
        responses = model.complete_many([act(1, "candidate", sample=i) for i in range(3)], share_prefix=False)
        assert [r.usage.cache_read for r in responses] == [0, 0, 0]


def test_alternatives_go_on_from_the_history_without_feedback():
    with serving() as (_, model):
        model.complete(act(2))
        model.complete_many([act(2, "candidate", extra=("feedback", str(i)), sample=i) for i in range(2)])
        response = model.complete(act(3))
        assert (response.usage.cache_read, response.usage.input) == (size(act(2)), 0)
        assert response.cache_miss == ""


def test_a_whole_search_reads_its_own_prefixes_and_accounts_for_every_token():
    kinds = ("create", "append", "edit", "submit")

    def responder(body):
        if "tools" not in body:
            return '{"scores": [1, 2, 3], "notes": [], "index": 1}'
        said = json.dumps(body["messages"])
        kind = kinds[min(3, said.count('"tool_result"'))]
        return ToolCall(kind, {"why": body["messages"][-1]["content"][-1].get("text", "")})

    def render(template, **values):
        return f"{template} {values.get('number', '')}" * 5

    tools = {kind: Tool(kind, {"type": "object"}, kind, lambda env, args, state: Observation("it was done " * 9))
             for kind in kinds}  # fmt: skip
    declared = tuple(tools[kind].declaration() for kind in sorted(kinds))
    with serving(responder) as (server, model):
        prompts = Prompts(SYSTEM, "the issue " * 30, declared, render)
        config = DarsConfig(dedupe={"actions": False, "states": False})
        engine = Engine(model, MemoryEnvironment({}), tools, prompts, config)
        assert engine.run() == "done"
    state = engine.state
    assert len(state.tree.leaves()) == 12  # of the paper's policy on these four decisions
    assert state.calls == len(server.requests)
    assert state.usage == server.usage_total
    assert state.cost_usd == pytest.approx(price(server.usage_total, model.name), rel=1e-9)
    on_paths = [seen.body for seen in server.requests if "tools" in seen.body]
    assert all(len(marked(body)) <= 4 for body in on_paths)
    prefixes = {json.dumps(unmarked(body["messages"])) for body in on_paths}
    for node in state.tree.nodes.values():
        if node.id > 1 and not node.expansion:
            *_, result = messages = path_of(engine, node.parent)
            assert json.dumps(messages) in prefixes
            assert node.usage.cache_read >= sum(map(tokens, declared))
            assert node.usage.input == 0
            assert result["content"][0]["type"] == "tool_result"


def path_of(engine, node_id):
    """Messages of a path, put together anew."""
    out = [{"role": "user", "content": [{"type": "text", "text": engine.prompts.issue}]}]
    for node in engine.state.tree.path(node_id)[1:]:
        use = next(block for block in node.assistant if block["type"] == "tool_use")
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": node.observation}
        out += [{"role": "assistant", "content": node.assistant}, {"role": "user", "content": [result]}]
    return out


# --- answers --------------------------------------------------------------------------------------------------------

THOUGHT = [
    {"type": "thinking", "thinking": "two halves", "signature": "c2lnbmVk"},
    {"type": "text", "text": "Now é."},
    {"type": "tool_use", "id": "toolu_x", "name": "bash", "input": {"command": "ls", "b": [1, {"a": None}]}},
]


@pytest.mark.parametrize("max_tokens", [21_333, 21_334])
def test_answers_are_verbatim_whether_streamed_or_not(max_tokens):
    with serving(lambda body: Reply(THOUGHT, thinking_tokens=3)) as (server, model):
        request = ModelRequest("act", (), messages=path(0), tools=TOOLS, max_tokens=max_tokens)
        response = model.complete(request)
        assert server.requests[0].body.get("stream", False) == (max_tokens == 21_334)
        assert list(response.content) == THOUGHT
        assert response.call == ToolCall("bash", THOUGHT[2]["input"], "toolu_x")
        assert (response.text, response.stop, response.usage.thinking) == ("Now é.", "tool_use", 3)
        assert response.usage == server.usage_total
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_x", "content": "a"}]}
        turns = [*path(0), {"role": "assistant", "content": response.content}, result]
        model.complete(ModelRequest("act", (0,), messages=turns, tools=TOOLS))
        assert server.requests[1].body["messages"][1]["content"] == THOUGHT


@pytest.mark.parametrize(
    ("reply", "stop", "detail"),
    [
        (Reply(stop="refusal", detail="cyber"), "refusal", "cyber"),
        (Reply(THOUGHT[1:2], stop="max_tokens"), "max_tokens", ""),
        (Reply(stop="model_context_window_exceeded"), "context", ""),
        (Reply(THOUGHT[1:2], stop="stop_sequence"), "end_turn", ""),
        (Reply(stop="something_new"), "error", "something_new"),
        (Reply(status=400, detail="prompt is too long: 9 > 8"), "context", "prompt is too long: 9 > 8"),
    ],
)  # fmt: skip
def test_reasons_to_stop_are_mapped(reply, stop, detail):
    with serving(lambda body: reply) as (_, model):
        response = model.complete(act(0))
        assert (response.stop, response.detail, response.call) == (stop, detail, None)


def test_only_passing_errors_are_retried():
    with serving() as (server, model):
        server.failures += [529, 429, 500, 408]
        assert model.complete(act(0)).call is not None
        assert [int(seen.headers["x-stainless-retry-count"]) for seen in server.requests] == [0, 1, 2, 3, 4]
        server.requests.clear()
        server.failures += [400]
        with pytest.raises(ModelError, match="claude-sonnet-5-5: 400 invalid_request_error"):
            model.complete(act(0))
        assert len(server.requests) == 1
        server.failures += [529] * 3
        with pytest.raises(ModelError, match="529 overloaded_error"):
            model_for(server, max_retries=2).complete(act(0))
        assert len(server.requests) == 4
    with pytest.raises(ModelError, match=r"claude-sonnet-5-5: Connection error"):
        model_for(server, max_retries=0).complete(act(0))


def test_slow_answers_are_waited_for():
    with serving(lambda body: Reply([{"type": "text", "text": "at last"}], delay_s=0.05)) as (_, model):
        assert model.complete(act(0)).text == "at last"


def test_halves_of_characters_in_an_answer_do_not_keep_the_next_request_from_being_sent(tmp_path):
    with serving(lambda body: [{"type": "tool_use", "id": "t", "name": "bash", "input": {"command": "\ud800"}}]) as (
        server, model,
    ):  # fmt: skip
        response = CassetteModel(tmp_path / "a", model, "record").complete(act(0))
        assert response.call.input == {"command": "\ufffd"}
        result = {"type": "tool_result", "tool_use_id": "t", "content": "none"}
        turns = [{"role": "assistant", "content": list(response.content)}, {"role": "user", "content": [result]}]
        model.complete(ModelRequest("act", (0,), messages=[*path(0), *turns], tools=TOOLS))
        assert len(server.requests) == 2
        # The stream's helper refuses what it cannot read: an answer without a call, which is asked for again.
        long = model.complete(ModelRequest("act", (), messages=path(0), tools=TOOLS, max_tokens=30_000))
    assert (long.call, long.stop) == (None, "end_turn")
    surrogate = ModelRequest("act", (), messages=[{"role": "user", "content": "\udce9"}])
    recorded = CassetteModel(tmp_path / "b", ScriptedModel(lambda request: "\udce9"), "record").complete(surrogate)
    assert CassetteModel(tmp_path / "b").complete(surrogate) == recorded


def test_no_more_tokens_are_asked_for_than_a_model_gives():
    rows = {"small": Row(input=1, output=1, max_output=5000), "unknown": Row()}
    with serving() as (server, _):
        for name, asked in (("small", 8000), ("small", 4000), ("unknown", 8000)):
            model_for(server, model=name, rows=rows).complete(
                ModelRequest("act", (), messages=path(0), max_tokens=asked)
            )
        assert [seen.body["max_tokens"] for seen in server.requests] == [5000, 4000, 8000]


def test_tokens_are_counted_only_near_the_window():
    exact = size(act(3))
    for window, counted, stop in ((100 * exact, 0, "tool_use"), (exact + 1, 1, "tool_use"), (exact, 1, "context")):
        with serving() as (server, _):
            model = model_for(server, rows={"claude-sonnet-5-5": Row(context=window)})
            response = model.complete(act(3))
        paths = [seen.path for seen in server.requests]
        assert paths.count("/v1/messages/count_tokens") == counted
        assert paths.count("/v1/messages") == (stop != "context")
        assert response.stop == stop
    assert str(exact) in response.detail


def test_requests_of_no_tokens_only_fill_the_cache():
    with serving() as (_, model):
        body = model.layout(act(1))
        warm = model.client.messages.create(**{**body, "max_tokens": 0})
        assert (warm.stop_reason, warm.usage.output_tokens) == ("max_tokens", 0)
        assert model.complete(act(1)).usage.cache_read == size(act(1))


# --- prices ---------------------------------------------------------------------------------------------------------


def test_prices_are_those_of_the_table():
    usage = Usage(input=1000, cache_read=20_000, cache_write_5m=3000, cache_write_1h=4000, output=500, thinking=400)
    inputs = 1000 + 0.1 * 20_000 + 1.25 * 3000 + 2 * 4000
    table = {"sonnet-5-5": (2, 10), "opus-5-5": (4, 20), "haiku-5-5": (0.1, 0.5), "fable-5-1": (10, 50)}
    for name, (c_in, c_out) in table.items():
        assert price(usage, f"claude-{name}") == pytest.approx((inputs * c_in + 500 * c_out) / 1e6, rel=1e-12)
    assert price(usage, "unheard-of") is None


def test_rows_of_a_file_replace_the_shipped_ones(tmp_path):
    file = tmp_path / "rows.yaml"
    file.write_text("mine: {input: 1, output: 2}\nclaude-opus-5-5: {input: 0, output: 1}\n")
    rows = read_rows(file)
    assert price(Usage(input=10, output=1_000_000), "claude-opus-5-5", rows) == 1.0
    assert price(Usage(output=1_000_000), "mine", rows) == 2.0
    assert rows["claude-sonnet-5-5"] == read_rows()["claude-sonnet-5-5"]
    for text, message in (("[1]", "rows by name"), ("a: {inptu: 1}", r"a\.inptu.*fields are input"), ("a: {", "YAML")):
        file.write_text(text)
        with pytest.raises(TaskError, match=message):
            read_rows(file)


# --- recordings -----------------------------------------------------------------------------------------------------


def numbered():
    """A model whose answers differ every time."""
    numbers = count()
    return ScriptedModel(lambda request: ToolCall("bash", {"n": next(numbers), "é": [None, 1.5]}))


def test_recordings_give_the_same_answers_in_any_order(tmp_path):
    requests = [act(0), act(1), act(0), act(1, "candidate", sample=2), act(0)]
    with serving(lambda body: Reply(THOUGHT)) as (server, model):
        recorder = CassetteModel(tmp_path / "a", model, "record")
        recorded = [recorder.complete(request) for request in requests]
        asked = len(server.requests)
        player = CassetteModel(tmp_path / "a")
        assert player.complete_many([requests[i] for i in (3, 1, 0, 2, 4)]) == [recorded[i] for i in (3, 1, 0, 2, 4)]
        assert len(server.requests) == asked
    assert (player.name, player.capabilities) == (model.name, model.capabilities)
    assert player.context_window == model.context_window
    with pytest.raises(CassetteMiss, match="act request at the root"):
        player.complete(act(0))


def test_adding_to_a_recording_asks_only_for_what_is_missing(tmp_path):
    first = CassetteModel(tmp_path / "a", numbered(), "auto").complete_many([act(0), act(1)])
    again = CassetteModel(tmp_path / "a", numbered(), "auto").complete_many([act(1), act(2), act(0)])
    assert [r.call.input["n"] for r in first + again] == [0, 1, 1, 0, 0]
    assert CassetteModel(tmp_path / "a").complete_many([act(0), act(1), act(2)]) == [*first, again[1]]


def test_recording_begun_for_a_model_that_never_answered_becomes_that_of_another(tmp_path):
    with serving() as (_, model):
        CassetteModel(tmp_path / "a", model, "auto", ignore=r"\d+ s")
    player = CassetteModel(tmp_path / "a", numbered(), "auto")
    assert (player.name, player.capabilities) == ("scripted", ScriptedModel.capabilities)
    assert player.ignore.pattern == r"\d+ s"
    player.complete(act(0))
    assert CassetteModel(tmp_path / "a").name == "scripted"


def test_requests_that_have_not_been_sent_when_there_is_no_more_to_ask_are_not(tmp_path):
    """One by one all but the first, or all but the first together; a recording gives what was given."""
    requests = [act(1, "candidate", sample=i) for i in range(4)]

    def until(stop):
        heard = []
        return heard, lambda response: heard.append(response) or len(heard) != stop

    def check(model, share_prefix, stop, expected):
        file = tmp_path / f"{model.name}-{share_prefix}-{stop}"
        for asked in ([], [model, "record"], [None]):
            player = CassetteModel(file, *asked) if asked else model
            heard, more = until(stop)
            assert player.complete_many(requests, share_prefix, more) == heard
            assert len(heard) == expected

    for stop in (1, 2, 3, 4, 9):
        check(numbered(), True, stop, min(stop, 4))
        with serving() as (_, model):
            check(model, True, stop, 1 if stop == 1 else 4)
            check(model, False, stop, 4)
        answers = [chat("stop", "ok")] * 40
        with chat_server(*answers) as (url, _):
            model = OpenAIModel("local", base_url=url, api_key="none")
            check(model, True, stop, 1 if stop == 1 else 4)
            check(model, False, stop, 4)


def test_recordings_survive_a_cut_at_any_byte(tmp_path):
    whole = tmp_path / "whole"
    recorded = CassetteModel(whole, numbered(), "record").complete_many([act(0), act(1), act(2)])
    data = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    file = tmp_path / "cut"
    for cut in sorted({*range(0, len(data), 37), *ends, *(end - 1 for end in ends)}):
        file.write_bytes(data[:cut])
        kept = max(0, sum(end <= cut for end in ends) - 1)
        model = CassetteModel(file, numbered(), "auto")
        answers = model.complete_many([act(0), act(1), act(2)])
        assert answers[:kept] == recorded[:kept]
        assert [r.call.input["n"] for r in answers[kept:]] == list(range(3 - kept))
        assert CassetteModel(file).complete_many([act(0), act(1), act(2)]) == answers


def test_recordings_refuse_misuse(tmp_path):
    file = tmp_path / "a"
    for inner, mode, message in (
        (None, "replay", "no recording"),
        (None, "record", "inner"),
        (None, "auto", "no inner model"),
        (numbered(), "rewind", "replay, record or auto"),
    ):
        with pytest.raises(TaskError, match=message):
            CassetteModel(file, inner, mode)
    CassetteModel(file, numbered(), "record").complete(act(0))
    with pytest.raises(TaskError, match="answers already"):
        CassetteModel(file, numbered(), "record")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"{torn\n" + lines[1])
    with pytest.raises(ModelError, match="a:2 is no line"):
        CassetteModel(file)


def test_what_is_to_be_ignored_does_not_tell_requests_apart(tmp_path):
    def timed(seconds):
        return ModelRequest("act", (), messages=path(1, observation=f"exit 0, {seconds} s"))

    CassetteModel(tmp_path / "a", numbered(), "record", ignore=r"\d+\.\d+ s").complete(timed(0.25))
    assert CassetteModel(tmp_path / "a").complete(timed(1.5)).call.input["n"] == 0  # the file says what is ignored
    with pytest.raises(CassetteMiss):
        CassetteModel(tmp_path / "a", ignore="").complete(timed(1.5))


# --- chat completions -----------------------------------------------------------------------------------------------


@contextmanager
def chat_server(*answers):
    """Chat completions on this machine: (status, body) in turn; yields its URL and the requests it saw."""
    seen, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            status, body = left.pop(0)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", seen
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def chat(finish="stop", text=None, calls=()):
    calls = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
    message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    details = {"prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 5}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, **details}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return 200, {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }


def test_chat_requests_carry_tools_results_and_temperature():
    with chat_server(chat("tool_calls", "so", [("call_1", "bash", '{"command": "ls"}')])) as (url, seen):
        model = OpenAIModel("local", base_url=url, api_key="none", rows={"local": Row(input=1, output=2)})
        response = model.complete(act(1, "candidate", extra=("feedback",), temperature=0.8))
    assert response.call == ToolCall("bash", {"command": "ls"}, "call_1")
    assert (response.stop, response.text) == ("tool_use", "so")
    assert response.usage == Usage(input=40, cache_read=60, output=20, thinking=5)
    assert response.cost_usd == pytest.approx((40 + 6 + 40) / 1e6)
    where, body = seen[0]
    assert where == "/v1/chat/completions"
    assert (body["temperature"], body["max_tokens"], body["parallel_tool_calls"]) == (0.8, 1000, False)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["bash", "submit"]
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"command": "step 0"}
    assert body["messages"][3]["tool_call_id"] == body["messages"][2]["tool_calls"][0]["id"]
    assert body["messages"][4]["content"] == "feedback"


def test_only_the_provider_that_renamed_the_limit_gets_the_new_name(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    names = [OpenAIModel("m", base_url=url, api_key="none").limit for url in (None, "http://127.0.0.1:8000/v1")]
    assert names == ["max_completion_tokens", "max_tokens"]


def test_chat_answers_of_all_kinds():
    broken = chat("tool_calls", None, [("c", "bash", "{no json")])
    written = chat("stop", 'I look.\n```json\n{"name": "bash", "arguments": {"command": "ls"}}\n```')
    long = (400, {"error": {"message": "too many", "code": "context_length_exceeded"}})
    llama = "the request exceeds the available context size. try increasing the context size or enable context shift"
    longer = (400, {"error": {"code": 400, "message": llama, "type": "exceed_context_size_error", "n_ctx": 4096}})
    old = (400, {"error": {"code": 400, "message": llama, "type": "invalid_request_error"}})
    bad = (400, {"error": {"message": "no such field", "code": None}})
    refused = chat("stop")
    refused[1]["choices"][0]["message"]["refusal"] = "I will not."
    answers = (
        refused,
        broken,
        written,
        chat("length", "cut"),
        chat("content_filter"),
        long,
        longer,
        old,
        (500, {}),
        chat("stop", "ok"),
        bad,
    )
    with chat_server(*answers) as (url, seen):
        model = OpenAIModel("local", base_url=url, api_key="none")
        first = model.complete(act(0))
        got = [model.complete(act(0)) for _ in range(8)]
        with pytest.raises(ModelError, match=r"local: 400: .*no such field"):
            model.complete(act(0))
    assert [r.stop for r in got] == ["tool_use", "tool_use", "max_tokens", "refusal", *["context"] * 3, "end_turn"]
    assert [i for i, r in enumerate(got) if r.call is not None] == [1]
    assert got[1].content[-1] == {"type": "tool_use", "id": "call_c1", "name": "bash", "input": {"command": "ls"}}
    assert (first.stop, first.detail) == ("refusal", "I will not.")
    assert got[0].cost_usd is None
    assert len(seen) == len(answers)  # the 500 was asked again, the 400 not


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ('<tool_call>\n{"name": "bash", "arguments": {"a": {"b": 1}}}\n</tool_call>', {"a": {"b": 1}}),
        ('{"name": "bash", "parameters": {"a": 1}}', {"a": 1}),
        ('```\n{"name": "bash", "input": {}}\n```', {}),
        ('```json\n{"name": "other"}\n```\n```json\n{"name": "bash"}\n```', {}),
        ('{"name": "rm", "arguments": {}}', None),
        ('{"name": "bash", "arguments": [1]}', None),
        ("bash ls", None),
    ],
)
def test_calls_written_into_the_text_are_found(text, args):
    call = written_call(text, {"bash"})
    assert (call and call.input) == args


# --- people ---------------------------------------------------------------------------------------------------------


def test_a_person_is_asked_until_the_arguments_can_be_read():
    lines, shown = iter(["bash {", "bash [1]", 'bash {"command": "ls"}', "what is this?"]), []
    model = HumanModel(ask=lambda prompt: next(lines), show=shown.append)
    assert model.complete(act(1)).call.input == {"command": "ls"}
    assert model.complete(act(1)).text == "what is this?"
    assert path(1)[-1]["content"][0]["content"] in shown
    plain = HumanModel(ask=lambda prompt: 'bash\t{"command": "ls"}', show=shown.append)
    question = ModelRequest("act", (), messages=[{"role": "user", "content": "words alone"}], tools=TOOLS)
    assert plain.complete(question).call.input == {"command": "ls"}
    assert "words alone" in shown

    def ended(prompt):
        raise EOFError

    with pytest.raises(ModelError, match="input ended"):
        HumanModel(ask=ended, show=shown.append).complete(act(0))


def test_guard_on_unstreamed_answers_is_that_of_the_sdk():
    client = anthropic.Anthropic(api_key="none")
    for limit in (21_333, 21_334, 8192, 128_000):
        ours = provider.FULL_OUTPUT_S * limit / provider.FULL_OUTPUT > provider.MAX_WAIT_S
        try:
            client._calculate_nonstreaming_timeout(limit, None)
            theirs = False
        except ValueError:
            theirs = True
        assert ours == theirs
