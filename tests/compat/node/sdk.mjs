// Calls a site with the unmodified Node SDK and prints what came back as one JSON object.
// Environment: BASE_URL, API_KEY, MODEL. The order of calls is the order of the upstream's scripts.
import OpenAI from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey, MODEL: model } = process.env;
const client = new OpenAI({ apiKey, baseURL });
const once = new OpenAI({ apiKey, baseURL, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: { type: "object", properties: { city: { type: "string" } } },
    },
  },
];
const found = {};

async function textOf(stream) {
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, usage };
}

async function refusal(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code };
  }
}

async function answers() {
  for (const status of [429, 503]) {
    const retried = await client.chat.completions.create({ model, messages });
    found[`after${status}`] = retried.choices[0].message.content;
  }
  const streamed = await client.chat.completions.create({ model, messages, stream: true });
  found.streamAfter429 = await textOf(streamed);

  const { data, response } = await client.chat.completions
    .create({ model, messages })
    .withResponse();
  found.chat = {
    text: data.choices[0].message.content,
    points: response.headers.get("x-suanpan-points"),
    requestId: data._request_id,
  };
  found.stream = await textOf(
    await client.chat.completions.create({
      model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  const tool = await client.chat.completions.create({ model, messages, tools });
  found.tool = tool.choices[0].message.tool_calls[0].function;
  const pieces = await client.chat.completions.create({ model, messages, tools, stream: true });
  found.toolStreamed = { id: "", name: "", arguments: "" };
  for await (const chunk of pieces) {
    const call = chunk.choices[0]?.delta?.tool_calls?.[0];
    found.toolStreamed.id += call?.id ?? "";
    found.toolStreamed.name += call?.function?.name ?? "";
    found.toolStreamed.arguments += call?.function?.arguments ?? "";
  }
  const picture = { type: "image_url", image_url: { url: "data:image/png;base64,iVBORw0KGgo=" } };
  const seen = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: [{ type: "text", text: "What is this?" }, picture] }],
  });
  found.vision = seen.choices[0].message.content;
  const schema = { type: "object", properties: { name: { type: "string" } } };
  const structured = await client.chat.completions.parse({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "city", schema, strict: true } },
  });
  found.structured = structured.choices[0].message.content;
}

async function refusals() {
  const create = (body) => once.chat.completions.create({ model, messages, ...body });
  found.rateLimit = await refusal(() => create({}));
  found.unknownModel = await refusal(() => create({ model: "nobody-knows-it" }));
  found.badRequest = await refusal(() => create({ messages: [] }));
  const stranger = new OpenAI({ apiKey: "sk-nobody", baseURL, maxRetries: 0 });
  found.unknownKey = await refusal(() => stranger.chat.completions.create({ model, messages }));
  found.brokenStream = await refusal(async () => textOf(await create({ stream: true })));
  const models = [];
  for await (const entry of client.models.list()) models.push(entry.id);
  found.models = models;
}

await answers();
await refusals();
console.log(JSON.stringify(found));
