// Vercel's AI SDK against a server, by its providers for DeepSeek, Anthropic, OpenAI (Responses and chat) and servers
// like OpenAI's: text, stream, usage, tools over two steps.
//
//     npm i ai@6.0.326 @ai-sdk/deepseek@2.0.69 @ai-sdk/anthropic@3.0.140 @ai-sdk/openai @ai-sdk/openai-compatible zod
//     WELS_API_KEY=… node scripts/clients/ai_sdk.mjs http://127.0.0.1:8080
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createDeepSeek } from "@ai-sdk/deepseek";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.argv[2].replace(/\/$/, "")}/v1`;
const apiKey = process.env.WELS_API_KEY;
const list = await fetch(`${baseURL}/models`, { headers: { authorization: `Bearer ${apiKey}` } });
const id = (await list.json()).data[0].id;

const models = {
  deepseek: createDeepSeek({ baseURL, apiKey })(id),
  anthropic: createAnthropic({ baseURL, apiKey })(id),
  "openai, responses": createOpenAI({ baseURL, apiKey })(id),
  "openai, chat": createOpenAI({ baseURL, apiKey }).chat(id),
  "openai-compatible": createOpenAICompatible({ name: "wels", baseURL, apiKey, includeUsage: true })(id),
};
for (const [name, model] of Object.entries(models)) {
  const say = { model, prompt: "Say hello.", maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
  const whole = await generateText(say);
  const stream = streamText(say);
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.ok(text && text === whole.text, `${name}: ${text} | ${whole.text}`);
  assert.ok((await stream.usage).inputTokens > 0 && whole.usage.outputTokens > 0, name);
  const asked = [];
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => asked.push(city) && `Sunny in ${city}, 21 degrees`,
  });
  const result = await generateText({
    ...say, prompt: "What is the weather in Paris? Use the tool.", tools: { weather }, maxOutputTokens: 64,
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }), stopWhen: stepCountIs(2),
  });
  assert.ok(asked.length > 0 && result.steps.length === 2 && result.text, `${name}: ${asked} | ${result.text}`);
  console.log(`@ai-sdk/${name}: ${JSON.stringify(text)}, tool ${asked}, second step`);
}
