"""Libraries of others against a server: LangChain (DeepSeek, OpenAI, Anthropic), litellm with three providers, llm.

    pip install langchain-deepseek==1.1.1 langchain-openai==1.7.4 langchain-anthropic==1.7.10 litellm==1.110.2 llm==0.36
    WELS_API_KEY=… python scripts/clients/libraries.py http://127.0.0.1:8080
"""

import os
import subprocess
import sys
import tempfile
import warnings

base, key = sys.argv[1].rstrip("/"), os.environ["WELS_API_KEY"]
warnings.simplefilter("error", UserWarning)  # of values that do not fit a library's own models

import json  # noqa: E402
import urllib.request  # noqa: E402

import litellm  # noqa: E402
from langchain_anthropic import ChatAnthropic  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from langchain_deepseek import ChatDeepSeek  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAIEmbeddings  # noqa: E402

listing = urllib.request.Request(f"{base}/v1/models", headers={"authorization": f"Bearer {key}"})
model = json.load(urllib.request.urlopen(listing))["data"][0]["id"]
question = "What is the weather in Paris? Use the tool."
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}, 21 degrees"


def langchain(name, chat):
    whole = chat.invoke("Say hello.")
    streamed = "".join(piece.text for piece in chat.stream("Say hello."))
    assert whole.text and streamed == whole.text, (whole, streamed)
    assert whole.usage_metadata["input_tokens"] > 0 and whole.usage_metadata["output_tokens"] > 0, whole
    asked = chat.bind_tools([get_weather], tool_choice="any").invoke(question)
    call = asked.tool_calls[0]
    result = get_weather.invoke(call)
    last = chat.bind_tools([get_weather]).invoke([("user", question), asked, result])
    assert call["name"] == "get_weather" and (last.text or last.tool_calls), (call, last)
    print(f"{name}: text, stream, usage, tool {call['args']}, second turn")


def litellm_provider(provider, address):
    ask = dict(model=f"{provider}/{model}", api_base=address, api_key=key, max_tokens=24, temperature=0)
    say = [{"role": "user", "content": "Say hello."}]
    whole = litellm.completion(messages=say, **ask)
    streamed = litellm.completion(messages=say, stream=True, **ask)
    text = "".join(piece.choices[0].delta.content or "" for piece in streamed)
    assert text and text == whole.choices[0].message.content, (text, whole)
    assert whole.usage.prompt_tokens > 0, whole
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
    asked = litellm.completion(
        messages=[{"role": "user", "content": question}], tools=tools, tool_choice="required", **{**ask, "max_tokens": 64}
    )
    call = asked.choices[0].message.tool_calls[0].function
    assert call.name == "get_weather" and "city" in json.loads(call.arguments), call
    print(f"litellm, {provider}: text, stream, usage, tool {call.arguments}")


def llm():
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/extra-openai-models.yaml", "w") as file:
            file.write(f"- model_id: wels\n  model_name: {model}\n  api_base: {base}/v1\n")
            file.write("  api_key_name: wels\n  supports_schema: true\n")
        with open(f"{folder}/keys.json", "w") as file:
            json.dump({"wels": key}, file)
        environment = {**os.environ, "LLM_USER_PATH": folder}
        command = [f"{os.path.dirname(sys.executable)}/llm", "-m", "wels", "-o", "max_tokens", "96", "-o", "temperature", "0"]

        def run(*arguments):
            ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout.strip()

        whole, streamed = run("--no-stream", "Say hello."), run("Say hello.")
        assert whole and whole == streamed, (whole, streamed)
        city = json.loads(run("--schema", "city, population int", "A city, as JSON."))
        assert {"city", "population"} <= set(city), city
    print(f"llm: text, stream, schema {city}")


settings = {"model": model, "max_tokens": 64, "temperature": 0}
langchain("langchain-deepseek", ChatDeepSeek(api_base=f"{base}/v1", api_key=key, **settings))
langchain("langchain-openai, chat", ChatOpenAI(base_url=f"{base}/v1", api_key=key, **settings))
langchain("langchain-openai, responses", ChatOpenAI(base_url=f"{base}/v1", api_key=key, use_responses_api=True, **settings))
langchain("langchain-anthropic", ChatAnthropic(base_url=base, api_key=key, **settings))
vector = OpenAIEmbeddings(base_url=f"{base}/v1", api_key=key, model=model, check_embedding_ctx_length=False).embed_query("a")
print(f"langchain-openai, embeddings: {len(vector)} numbers")
litellm_provider("openai", f"{base}/v1")
litellm_provider("deepseek", f"{base}/v1")
litellm_provider("anthropic", base)
llm()
