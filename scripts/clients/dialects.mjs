// The official Node clients against a server: Responses, embeddings, Messages, streams, tools.
//
//     npm i openai@6.49.0 @anthropic-ai/sdk@1.14.0
//     WELS_API_KEY=… node scripts/clients/dialects.mjs http://127.0.0.1:8080
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const base = process.argv[2].replace(/\/$/, "");
const key = process.env.WELS_API_KEY;
const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: key });
const claude = new Anthropic({ baseURL: base, authToken: key, apiKey: null });
const model = (await openai.models.list()).data[0].id;
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const question = "What is the weather in Paris? Use the tool.";
const say = [{ role: "user", content: "Say hello." }];
const seed = 1;

const whole = await openai.responses.create({ model, input: "Say hello.", max_output_tokens: 16, seed });
let text = "";
const stream = await openai.responses.create({ model, input: "Say hello.", max_output_tokens: 16, seed, stream: true });
for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
assert.strictEqual(text, whole.output_text);
const tool = { type: "function", name: "get_weather", parameters, strict: false };
const call = await openai.responses.create({ model, input: question, tools: [tool], tool_choice: "required", seed });
console.log("responses:", JSON.stringify(text), call.output.find((item) => item.type === "function_call").arguments);

const vectors = await openai.embeddings.create({ model, input: ["a cat", "a law"] });
console.log("embeddings:", vectors.data.map((entry) => entry.embedding.length).join(" and "), "numbers");

const message = await claude.messages.create({ model, messages: say, max_tokens: 16, seed });
const final = await claude.messages.stream({ model, messages: say, max_tokens: 16, seed }).finalMessage();
assert.deepStrictEqual(final.content, message.content);
const tools = [{ name: "get_weather", input_schema: parameters }];
const ask = [{ role: "user", content: question }];
const used = await claude.messages.create({ model, messages: ask, tools, tool_choice: { type: "any" }, max_tokens: 64, seed });
const counted = await claude.messages.countTokens({ model, messages: say });
console.log("messages:", final.content[0].text, JSON.stringify(used.content.at(-1).input), counted.input_tokens, "tokens");
