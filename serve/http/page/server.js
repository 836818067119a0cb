// What the page asks the server.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Returns [{id, parent}]; the base's `parent` is null.
export async function listModels(token) {
  const response = await fetch("/v1/models", { headers: headers(token) });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

// Yields the pieces of text of a streamed answer, and returns why it ended.
export async function* streamAnswer(body, token, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(token) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  let finish = null;
  for await (const event of events(response)) {
    if (event.error) throw new ServerError(200, event.error.message);
    const choice = event.choices[0];
    finish = choice?.finish_reason ?? finish;
    if (choice?.delta.content) yield choice.delta.content;
  }
  return finish;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError(200, "The connection ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

function headers(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const said =
    body?.error?.code === "context_length_exceeded"
      ? "The conversation is too long for the model: begin a new one, or allow shorter answers."
      : body?.error?.message;
  return new ServerError(response.status, said ?? `The server answered ${response.status}.`);
}
