// The `openai` package of npm, unmodified, against a running server.
//
//     npm install openai@6.49.0
//     node openai_node.mjs http://127.0.0.1:8080/v1 KEY
//
// Chat, streaming, tools, JSON schema, errors. Says what it checked and ends with 0, or stops at the first thing that is
// wrong.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const ask = { model, messages: [{ role: "user", content: "Name a fish." }], max_tokens: 24, seed: 1, temperature: 0 };

const whole = await client.chat.completions.create(ask);
let text = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content ?? "");
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
console.log("chat: ok");

const parameters = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "switch", parameters } }];
const runner = client.chat.completions.stream({ ...ask, max_tokens: 200, tools, tool_choice: "required" });
const called = (await runner.finalChatCompletion()).choices[0];
assert.equal(called.message.tool_calls[0].function.name, "switch");
if (called.finish_reason === "tool_calls") assert.equal(typeof JSON.parse(called.message.tool_calls[0].function.arguments).on, "boolean");
console.log("tools: ok");

const json_schema = { name: "answer", schema: parameters, strict: true };
const shaped = (await client.chat.completions.create({ ...ask, max_tokens: 200, response_format: { type: "json_schema", json_schema } })).choices[0];
if (shaped.finish_reason === "stop") assert.equal(typeof JSON.parse(shaped.message.content).on, "boolean");
console.log("schema: ok");

await assert.rejects(client.chat.completions.create({ ...ask, sed: 1 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "sed");
console.log("errors: ok");
