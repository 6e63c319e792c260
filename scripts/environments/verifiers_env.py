#!/usr/bin/env python3
"""Play an environment of `verifiers` (0.1) as a program: docs/environments.md, "A program as the environment".

    VERIFIERS_ENV=wordle [VERIFIERS_ARGS='{"num_train_examples": 1000}'] python verifiers_env.py

Reads a line of JSON a question and answers each with one. Items are the rows of the environment's dataset, of the
evaluation dataset where held-out ones are asked for. The environment's own rollout runs in this process against a
client that hands each of its requests to the caller: the messages that are new since the last one are what is said
between the turns. A call of a tool is what stands between <tool_call> and </tool_call>, an object with `name` and
`arguments`; the tools stand in the first message. An episode's reward is the rubric's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import re
import sys
import time
from types import SimpleNamespace
from typing import Any

CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def plain(value: Any) -> Any:
    """A message as plain data."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    return dict(value)


def shown(message: dict[str, Any]) -> dict[str, str]:
    """A message as the caller takes one: a role and a text."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    role = message.get("role", "user")
    return {"role": "user" if role == "tool" else role, "content": content}


class Client:
    """What the environment takes for OpenAI's client; each request waits for a turn of the model."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()
        self.turns: asyncio.Queue[str] = asyncio.Queue()
        self.count = 0
        self.base_url = "http://localhost/"
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    async def create(self, *, messages: list[Any], model: str = "", **_: Any) -> Any:
        from openai.types.chat import ChatCompletion

        await self.requests.put([plain(message) for message in messages])
        text = await self.turns.get()
        self.count += 1
        message: dict[str, Any] = {"role": "assistant", "content": text}
        calls = []
        for i, found in enumerate(CALL.findall(text)):
            try:
                call = json.loads(found)
                function = {"name": str(call["name"]), "arguments": json.dumps(call.get("arguments", {}))}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            calls.append({"id": f"call_{self.count}_{i}", "type": "function", "function": function})
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        whole = {"id": f"turn-{self.count}", "object": "chat.completion", "created": int(time.time())}
        return ChatCompletion.model_validate(whole | {"model": model or "wels", "choices": [choice], "usage": usage})


class Episode:
    """A rollout under way."""

    def __init__(self, environment: Any, row: dict[str, Any], seed: int) -> None:
        self.client = Client()
        self.seen = 0
        random.seed(seed)
        self.task = asyncio.ensure_future(rollout(environment, self.client, row))

    async def next(self) -> list[dict[str, Any]] | None:
        """The messages of the environment since the last turn; none once the rollout is over."""
        request = asyncio.ensure_future(self.client.requests.get())
        await asyncio.wait({request, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            request.cancel()
            return None
        messages = request.result()
        new = messages[self.seen :]
        # The model's own turn will stand before what is said to it.
        self.seen = len(messages) + 1
        return new


async def rollout(environment: Any, client: Client, row: dict[str, Any]) -> float:
    """The environment's own rollout, and the rubric's reward of it; by what this version of the library takes."""
    parameters = inspect.signature(environment.rollout).parameters
    sampling = {"sampling_args": {}}
    if "input" in parameters:
        state = await environment.rollout(row, client, "wels", sampling_args={})
        score = environment.rubric.score_rollout
        scored = score(state) if len(inspect.signature(score).parameters) == 1 else score(state, asyncio.Semaphore(1))
        result = await scored
        return float(state.get("reward") if state.get("reward") is not None else result["reward"])
    known = {key: row[key] for key in ("prompt", "answer", "task", "info", "example_id") if key in row}
    known = {key: value for key, value in known.items() if key in parameters}
    completion, state = await environment.rollout(client, "wels", **known, **sampling)
    fields = {"prompt": row["prompt"], "completion": completion, "answer": row.get("answer", ""), "state": state}
    fields |= {"task": row.get("task", "default"), "info": row.get("info") or {}}
    score = environment.rubric.score_rollout
    accepted = inspect.signature(score).parameters
    result = await score(**{key: value for key, value in fields.items() if key in accepted})
    return float(result["reward"] if isinstance(result, dict) else result.reward)


def with_tools(messages: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, str]]:
    """The first messages, with the tools in words."""
    first = [shown(message) for message in messages]
    info = row.get("info")
    info = json.loads(info) if isinstance(info, str) and info else info or {}
    tools = info.get("oai_tools")
    if tools:
        words = "\n".join(json.dumps(tool) for tool in tools)
        text = f"Tools:\n{words}\nCall one as <tool_call>{{\"name\": …, \"arguments\": {{…}}}}</tool_call>."
        if first and first[0]["role"] == "system":
            first[0]["content"] += "\n\n" + text
        else:
            first.insert(0, {"role": "system", "content": text})
    return first


async def serve() -> None:
    """Answers lines until there are none."""
    import verifiers

    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what environments print is not for the caller
    arguments = json.loads(os.environ.get("VERIFIERS_ARGS", "{}"))
    environment = verifiers.load_environment(os.environ["VERIFIERS_ENV"], **arguments)
    episodes: dict[str, Episode] = {}
    rows: Any = None
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        said: dict[str, Any] = {"id": asked["id"]}
        name = asked.get("episode", "")
        if "hello" in asked:
            held_out = asked["hello"]["split"] == "held_out"
            rows = environment.get_eval_dataset() if held_out else environment.get_dataset()
            said["items"] = len(rows)
        elif "reset" in asked:
            row = dict(rows[asked["reset"]["item"]])
            episodes[name] = Episode(environment, row, asked["reset"]["seed"])
            first = await episodes[name].next()
            if first is None:
                episodes.pop(name).task.result()
                raise RuntimeError("the rollout ended before its first turn")
            said["messages"] = with_tools(first, row)
        elif "step" in asked:
            episode = episodes[name]
            await episode.client.turns.put(asked["step"])
            new = await episode.next()
            if new is None:
                said |= {"done": True, "reward": episodes.pop(name).task.result()}
            else:
                said["observation"] = {
                    "role": "user",
                    "content": "\n".join(shown(message)["content"] for message in new),
                }
        else:
            episode = episodes.pop(name, None)
            if episode is not None:
                episode.task.cancel()
            said["reward"] = 0.0
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
