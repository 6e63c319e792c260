"""Draws and shows pictures with the `openai` package, unmodified, at a server of Wels with a Janus model.

    wels serve JANUS --no-key &
    python images.py http://127.0.0.1:PORT/v1 MODEL
"""

from __future__ import annotations

import base64
import sys

from openai import BadRequestError, OpenAI


def main(base_url: str, model: str) -> None:
    """Draws two pictures, whole and as a stream, asks about one, and is refused twice."""
    client = OpenAI(base_url=base_url, api_key="none", timeout=3600.0)
    prompt = "a red circle left of a blue square"
    drawn = client.images.generate(
        model=model, prompt=prompt, n=2, response_format="b64_json", extra_body={"seed": 7, "cfg": 5}
    )
    assert drawn.data is not None and len(drawn.data) == 2
    files = [picture.b64_json for picture in drawn.data]
    assert all(file and base64.b64decode(file).startswith(b"\x89PNG") for file in files)
    assert drawn.usage is not None and drawn.usage.output_tokens > 0
    again = client.images.generate(model=model, prompt=prompt, extra_body={"seed": 8})
    assert again.data is not None and again.data[0].b64_json == files[1], "the second picture, alone"

    completed: dict[int, str | None] = {}
    partial = 0
    for event in client.images.generate(
        model=model, prompt=prompt, n=2, stream=True, partial_images=3, extra_body={"seed": 7, "cfg": 5}
    ):
        if event.type == "image_generation.completed":
            completed[event.index] = event.b64_json  # type: ignore[attr-defined]
            assert event.usage.output_tokens > 0
        else:
            assert event.type == "image_generation.partial_image"
            assert base64.b64decode(event.b64_json).startswith(b"\x89PNG")
            partial += 1
    assert [completed[0], completed[1]] == files, "streamed, the same pictures"
    assert partial > 0

    def ask(url: str) -> str:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        messages = [{"role": "user", "content": parts}]
        reply = client.chat.completions.create(model=model, messages=messages, max_tokens=16)  # type: ignore[arg-type]
        return f"{reply.choices[0].message.content!r} {reply.usage}"

    print(ask(f"data:image/png;base64,{files[0]}"))
    attempts = [
        lambda: ask("https://example.org/cat.png"),
        lambda: client.images.generate(model=model, prompt="x", size="1024x1536"),
    ]
    for attempt in attempts:
        try:
            attempt()
        except BadRequestError as error:
            print("refused:", error.message)
        else:
            raise SystemExit("what cannot be done was not refused")
    print("images: ok", drawn.usage)


if __name__ == "__main__":
    main(*sys.argv[1:3])
