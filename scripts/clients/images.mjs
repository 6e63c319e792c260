// Draws and shows pictures with the `openai` package of npm, unmodified, at a server of Wels with a Janus model.
//
//     npm install openai@6.49.0
//     wels serve JANUS --no-key &
//     node images.mjs http://127.0.0.1:PORT/v1 MODEL

import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 3_600_000 });
const ask = { model, prompt: "a red circle left of a blue square", n: 2, seed: 7, cfg: 5 };

const drawn = await client.images.generate({ ...ask, response_format: "b64_json" });
const files = drawn.data.map(({ b64_json }) => b64_json);
assert.equal(files.length, 2);
assert.ok(files.every((file) => Buffer.from(file, "base64").subarray(1, 4).toString() === "PNG"));
assert.ok(drawn.usage.output_tokens > 0);
const alone = await client.images.generate({ ...ask, n: 1, seed: 8 });
assert.equal(alone.data[0].b64_json, files[1], "the second picture, alone");
console.log("drawn: ok");

const completed = [];
let partial = 0;
for await (const event of await client.images.generate({ ...ask, stream: true, partial_images: 3 })) {
  if (event.type === "image_generation.partial_image") partial++;
  else if (event.type === "image_generation.completed") completed[event.index] = event.b64_json;
  else assert.fail(event.type);
}
assert.deepEqual(completed, files, "streamed, the same pictures");
assert.ok(partial > 0);
console.log("streamed: ok");

const seen = (url) => {
  const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: "What is it?" }];
  return client.chat.completions.create({ model, messages: [{ role: "user", content }], max_tokens: 16 });
};
const reply = await seen(`data:image/png;base64,${files[0]}`);
assert.ok(reply.usage.prompt_tokens > 0);
const image = { type: "input_image", image_url: `data:image/png;base64,${files[0]}`, detail: "auto" };
const input = [{ role: "user", content: [image, { type: "input_text", text: "What is it?" }] }];
const response = await client.responses.create({ model, input, max_output_tokens: 16 });
assert.equal(response.usage.input_tokens, reply.usage.prompt_tokens, "the same prompt");
console.log("seen: ok");

const refused = async (attempt, param) =>
  assert.rejects(attempt, (error) => error instanceof OpenAI.BadRequestError && error.param.startsWith(param));
await refused(seen("https://example.org/cat.png"), "messages[0].content[0]");
await refused(client.images.generate({ ...ask, size: "1024x1536" }), "size");
await refused(client.images.generate({ ...ask, stream: true, size: "1024x1536" }), "size");
console.log("refused: ok");
