"""The official Python clients against a server: chat, responses, embeddings; messages, streams, tools, thinking, counts.

    pip install openai==3.57.0 anthropic==2.14.0
    WELS_API_KEY=… python scripts/clients/dialects.py http://127.0.0.1:8080
"""

import os
import sys

import anthropic
import openai

base, key = sys.argv[1].rstrip("/"), os.environ["WELS_API_KEY"]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key)
claude = anthropic.Anthropic(base_url=base, auth_token=key)
model = client.models.list().data[0].id
assert claude.models.list().data[0].id == model
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
greedy = {"temperature": 0}  # not among the parameters of anthropic 2.14.0
question = "What is the weather in Paris? Use the tool."


def responses():
    whole = client.responses.create(model=model, input="Say hello.", max_output_tokens=16, temperature=0)
    assert whole.output_text, whole
    with client.responses.stream(model=model, input="Say hello.", max_output_tokens=16, temperature=0) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert deltas == final.output_text == whole.output_text, (deltas, final, whole)
    tool = {"type": "function", "name": "get_weather", "parameters": parameters, "strict": False}
    call = client.responses.create(model=model, input=question, tools=[tool], tool_choice="required", temperature=0)
    item = next(item for item in call.output if item.type == "function_call")
    again = client.responses.create(
        model=model,
        input=[
            {"role": "user", "content": question},
            *call.output,
            {"type": "function_call_output", "call_id": item.call_id, "output": "Sunny, 21 degrees"},
        ],
        tools=[tool],
        max_output_tokens=32,
        temperature=0,
    )
    assert again.output, again
    cached = again.usage.input_tokens_details.cached_tokens / call.usage.input_tokens
    parsed = client.responses.create(
        model=model,
        input="A city and its country, as JSON.",
        text={"format": {"type": "json_schema", "name": "city", "schema": parameters}},
        temperature=0,
        max_output_tokens=64,
    )
    return f"text, stream, tool {item.arguments}, second turn ({cached:.0%} of the first prompt cached), {parsed.output_text}"


def messages():
    say = [{"role": "user", "content": "Say hello."}]
    whole = claude.messages.create(model=model, messages=say, max_tokens=16, extra_body=greedy)
    with claude.messages.stream(model=model, messages=say, max_tokens=16, extra_body=greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text, (text, final, whole)
    counted = claude.messages.count_tokens(model=model, messages=say).input_tokens
    used = final.usage
    assert counted == used.input_tokens + used.cache_read_input_tokens, (counted, used)
    tools = [{"name": "get_weather", "input_schema": parameters}]
    ask = [{"role": "user", "content": question}]
    call = claude.messages.create(
        model=model, messages=ask, tools=tools, tool_choice={"type": "any"}, max_tokens=64, extra_body=greedy
    )
    use = next(block for block in call.content if block.type == "tool_use")
    assert isinstance(use.input["city"], str), call
    ask += [
        {"role": "assistant", "content": call.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 21 degrees"}]},
    ]
    again = claude.messages.create(model=model, messages=ask, tools=tools, max_tokens=32, extra_body=greedy)
    cached = again.usage.cache_read_input_tokens / (call.usage.input_tokens + call.usage.cache_read_input_tokens)
    stop = claude.messages.create(
        model=model, messages=[{"role": "user", "content": "Count: one, two, three"}], max_tokens=32,
        stop_sequences=["two"], extra_body=greedy,
    )
    thinking = {"type": "enabled", "budget_tokens": 1024}
    claude.messages.create(model=model, messages=say, max_tokens=16, thinking=thinking)
    try:
        claude.messages.create(model="nobody", messages=say, max_tokens=1)
    except anthropic.NotFoundError:
        pass
    return f"text, stream, {counted} counted, tool {use.input}, second turn ({cached:.0%} cached), {stop.stop_reason}"


def embeddings():
    found = client.embeddings.create(model=model, input=["a cat", "a kitten", "the law of large numbers"])
    cat, kitten, law = (entry.embedding for entry in found.data)
    near = [sum(a * b for a, b in zip(cat, other)) for other in (kitten, law)]
    assert near[0] > near[1], near
    return f"{len(cat)} numbers; a cat is nearer to a kitten ({near[0]:.3f}) than to a law ({near[1]:.3f})"


def chat():
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    say = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(
        model=model, messages=say, tools=[tool], temperature=0, reasoning_effort="low", metadata={"a": "b"},
        store=True, prompt_cache_key="k", verbosity="low", max_tokens=32000,
    )
    calls = reply.choices[0].message.tool_calls
    return f"tools by choice: {[call.function.arguments for call in calls or []] or reply.choices[0].message.content}"


for check in (chat, responses, messages, embeddings):
    print(f"{check.__name__}: {check()}")
