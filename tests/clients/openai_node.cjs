// The OpenAI Node SDK's raw calls. CommonJS, because only `require` looks where NODE_PATH says.
"use strict";
const { OpenAI, BadRequestError, RateLimitError } = require("openai");
const { VERSION } = require("openai/version");

const ENDS = ["completed", "succeeded", "success", "done", "failed", "error", "cancelled"];

async function refusal(kind, call) {
  try {
    await call();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error("not refused");
}

async function main() {
  const baseURL = process.env.WAVE_BASE_URL;
  const client = new OpenAI({ baseURL, apiKey: process.env.WAVE_KEY });
  const body = { model: "gemini-2.5-flash-image-preview", prompt: "一只狐狸", n: 2 };
  let task = await client.post("/tasks", { body });
  while (!ENDS.includes(task.status)) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    task = await client.get(`/tasks/${task.task_id}`);
  }
  const impossible = await refusal(BadRequestError, () =>
    client.post("/tasks", { body: { ...body, action: "search_grounded" } }),
  );
  const poor = new OpenAI({ baseURL, apiKey: process.env.WAVE_POOR_KEY });
  const capped = await refusal(RateLimitError, () => poor.post("/tasks", { body }));
  const lossy = new OpenAI({ baseURL: process.env.WAVE_LOSSY_URL, apiKey: process.env.WAVE_KEY });
  const retried = await lossy.post("/tasks", { body: { ...body, prompt: "lost" } });
  const said = {
    version: VERSION,
    task_id: task.task_id,
    status: task.status,
    pictures: task.result.images.flatMap((image) => image.url),
    impossible: { status: impossible.status, code: impossible.code, param: impossible.param },
    retried: retried.task_id,
    cap: { status: capped.status, code: capped.code },
  };
  console.log(JSON.stringify(said));
}

main();
