"""The `openai` Python package, unmodified, against a running server.

    pip install openai==3.54.0
    python openai_python.py http://127.0.0.1:8080/v1 KEY

Chat, streaming, several answers, log-probabilities, tools, JSON schema, completions, models, errors. Says what it
checked and ends with 0, or stops at the first thing that is wrong.
"""

import json
import sys

import openai


def chat(client, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fish."}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=24, seed=1, temperature=0)
    assert whole.choices[0].finish_reason in ("stop", "length")
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens

    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=24, seed=1, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    text, last = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        last = chunk
    assert text == (whole.choices[0].message.content or ""), "a stream says what a whole reply says"
    assert last.choices == [] and last.usage.completion_tokens == usage.completion_tokens

    several = client.chat.completions.create(
        model=model, messages=messages, max_tokens=8, n=3, logprobs=True, top_logprobs=2, stop=["\n\n"]
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    for choice in several.choices:
        tokens = choice.logprobs.content + (getattr(choice.logprobs, "reasoning_content", None) or [])
        assert tokens and all(len(token["top_logprobs"] if isinstance(token, dict) else token.top_logprobs) == 2 for token in tokens)


def tools(client, model):
    switch = {
        "type": "function",
        "function": {
            "name": "switch",
            "description": "Turns the light on or off.",
            "parameters": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            },
        },
    }
    messages = [{"role": "user", "content": "Turn the light on."}]
    asked = dict(model=model, messages=messages, tools=[switch], temperature=0, max_tokens=200)
    reply = client.chat.completions.create(tool_choice="required", **asked)
    call = reply.choices[0].message.tool_calls[0]
    assert call.function.name == "switch"
    if reply.choices[0].finish_reason == "tool_calls":
        assert isinstance(json.loads(call.function.arguments)["on"], bool)

    name, arguments = "", ""
    named = {"type": "function", "function": {"name": "switch"}}
    for chunk in client.chat.completions.create(tool_choice=named, stream=True, **asked):
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == ("switch", call.function.arguments)

    answered = messages + [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    client.chat.completions.create(model=model, messages=answered, tools=[switch], max_tokens=8)


def schema(client, model):
    wanted = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Is water wet?"}], max_tokens=200, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}},
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content)["ok"], bool)


def refused(kind, call, param=None):
    try:
        call()
    except kind as error:
        assert param is None or error.param == param, error
        return
    raise AssertionError(f"no {kind.__name__}")


def main():
    base, key = sys.argv[1:]
    client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    for check in (chat, tools, schema):
        check(client, model)
        print(f"{check.__name__}: ok")
    texts = client.completions.create(model=model, prompt=["a fish", "a net"], max_tokens=4, logprobs=1)
    assert len(texts.choices) == 2
    hello = [{"role": "user", "content": "hi"}]
    create = client.chat.completions.create
    refused(openai.BadRequestError, lambda: create(model=model, messages=hello, extra_body={"sed": 1}), "sed")
    refused(openai.BadRequestError, lambda: create(model=model, messages=hello, temperature=9), "temperature")
    refused(openai.NotFoundError, lambda: create(model="other", messages=hello), "model")
    stranger = openai.OpenAI(base_url=base, api_key="wels-no", max_retries=0)
    refused(openai.AuthenticationError, lambda: stranger.models.list())
    print(f"completions, models, errors: ok (openai {openai.__version__})")


main()
