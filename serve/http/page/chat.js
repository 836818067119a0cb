// The page's state is one object, which is kept in the browser's own store. Names and texts come from strangers:
// they are only ever set as text, never as HTML.

import { listModels, streamAnswer } from "/page/server.js";

const STORE = "jlora.conversation";
const TOKEN = "jlora.token";
const MOST_TURNS = 200;
const NOTES = { AbortError: "Stopped.", TypeError: "The connection was lost." };
const $ = (id) => document.getElementById(id);
const token = () => $("token").value.trim();

// turns: [{question, answers: [{model, text, state: "running" | "done" | "cut" | "failed", note}]}]
const state = { turns: [], first: "", second: "", compare: false, temperature: 0.8, length: 256 };
let running = null; // the AbortController of the answers that are being written

// ---- what is kept over a reload

function keep() {
  state.turns = state.turns.slice(-MOST_TURNS);
  for (;;) {
    try {
      localStorage.setItem(STORE, JSON.stringify(state));
      return;
    } catch {
      if (state.turns.length < 2) return; // the browser keeps nothing at all
      state.turns.shift(); // it is full
    }
  }
}

function recall() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE) ?? '{"turns": []}');
    if (stored.turns.every(isTurn)) Object.assign(state, stored);
    for (const answer of state.turns.flatMap((turn) => turn.answers)) {
      if (answer.state === "running") Object.assign(answer, { state: "cut", note: "Cut: the page was closed." });
    }
    $("token").value = sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    state.turns = []; // what is stored is not ours, or nothing can be
  }
}

function isTurn({ question, answers }) {
  const texts = [question, ...answers.flatMap(({ model, text, note }) => [model, text, note])];
  return answers.length > 0 && texts.every((text) => typeof text === "string");
}

// ---- asking and stopping

async function loadModels() {
  try {
    fillPickers(await listModels(token()));
    showProblem("");
  } catch (error) {
    showProblem(`The characters cannot be listed. ${error.message}`);
    if (error.status === 401) $("settings").open = true;
  }
}

// The conversation as the character at a side of the page has seen it: where only one answered, that answer is both's.
function messagesFor(side, last) {
  const messages = [];
  for (const turn of state.turns.slice(0, last)) {
    const text = (turn.answers[side] ?? turn.answers[0]).text;
    if (text) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: text });
  }
  return [...messages, { role: "user", content: state.turns[last].question }];
}

async function ask(question) {
  const models = state.compare ? [state.first, state.second] : [state.first];
  const turn = { question, answers: models.map((model) => ({ model, text: "", state: "running", note: "" })) };
  state.turns.push(turn);
  running = new AbortController();
  const drawn = drawTurn(turn);
  showRunning(true);
  $("status").textContent = `${models.join(" and ")} ${models.length > 1 ? "are" : "is"} answering`;
  keep();
  const last = state.turns.length - 1;
  const keeping = setInterval(keep, 1000);
  await Promise.all(turn.answers.map((answer, side) => write(answer, drawn[side], messagesFor(side, last))));
  clearInterval(keeping);
  running = null;
  keep();
  showRunning(false);
  // A screen reader hears each answer once, whole, and not every token of it.
  $("status").textContent = turn.answers.map(({ model, text, note }) => `${model}: ${text} ${note}`).join("\n");
}

async function write(answer, article, messages) {
  const body = { model: answer.model, messages, temperature: state.temperature, max_tokens: state.length };
  try {
    const pieces = streamAnswer(body, token(), running.signal);
    let step = await pieces.next();
    for (; !step.done; step = await pieces.next()) {
      answer.text += step.value;
      drawAnswer(answer, article);
    }
    answer.state = "done";
    if (step.value === "length") answer.note = "Cut: the longest answer was reached.";
    else if (!answer.text) answer.note = "No answer: the character said nothing.";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "cut" : "failed";
    answer.note = NOTES[error.name] ?? error.message;
  }
  drawAnswer(answer, article);
}

// ---- drawing

function element(name, classes, text = "") {
  const made = document.createElement(name);
  made.className = classes;
  made.textContent = text;
  return made;
}

// Characters that can be chosen have different colours as long as there are enough of them.
function tone(name) {
  const place = [...$("first").options].findIndex((option) => option.value === name);
  return `tone-${Math.max(place, 0) % 6}`;
}

function drawTurn(turn) {
  const section = element("section", "turn");
  const question = element("p", "question", turn.question);
  question.dir = "auto";
  const answers = element("div", turn.answers.length > 1 ? "answers two" : "answers");
  const articles = turn.answers.map((answer) => {
    const article = element("article", "");
    const text = element("p", "text");
    text.dir = "auto";
    article.append(element("h2", "", answer.model), text, element("p", "note"));
    article.setAttribute("aria-label", answer.model);
    answers.append(article);
    drawAnswer(answer, article);
    return article;
  });
  section.append(question, answers);
  $("log").append(section);
  $("empty").hidden = true;
  section.scrollIntoView({ block: "end" });
  return articles;
}

function drawAnswer(answer, article) {
  const main = document.querySelector("main");
  const atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  const [, text, note] = article.children;
  article.className = `answer ${answer.state} ${tone(answer.model)}`;
  article.setAttribute("aria-busy", String(answer.state === "running"));
  text.textContent = answer.text;
  note.textContent = answer.note;
  note.hidden = !answer.note;
  if (atEnd) main.scrollTop = main.scrollHeight; // but leave a reader who has scrolled up alone
}

function fillPickers(models) {
  for (const [id, other] of [["first", 0], ["second", 1]]) {
    const characters = models.filter((model) => model.parent !== null).map((model) => model.id);
    const base = models.filter((model) => model.parent === null).map((model) => model.id);
    const names = [...characters, ...base];
    if (!names.includes(state[id])) state[id] = names[Math.min(other, names.length - 1)];
    $(id).replaceChildren(group("Characters", characters), group("Without a character", base));
    $(id).value = state[id];
  }
  for (const article of document.querySelectorAll(".answer")) {
    article.className = article.className.replace(/tone-\d/, tone(article.getAttribute("aria-label")));
  }
}

function group(label, names) {
  const made = document.createElement("optgroup");
  made.label = label;
  made.append(...names.map((name) => new Option(name, name)));
  made.hidden = names.length === 0;
  return made;
}

function showRunning(is) {
  $("stop").hidden = !is;
  $("send").disabled = is;
}

function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function showSettings() {
  $("compare").checked = state.compare;
  $("second").disabled = !state.compare;
  $("temperature").value = state.temperature;
  $("length").value = state.length;
}

function fitQuestion() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

// ---- what the user does

function send() {
  const question = $("question").value.trim();
  if (!question || running || !state.first) return;
  $("question").value = "";
  fitQuestion();
  ask(question);
}

function change(id, key, read) {
  $(id).addEventListener("change", () => {
    if ($(id).validity.valid) state[key] = read($(id));
    showSettings();
    keep();
  });
}

change("first", "first", (picker) => picker.value);
change("second", "second", (picker) => picker.value);
change("compare", "compare", (box) => box.checked);
change("temperature", "temperature", (field) => Number(field.value));
change("length", "length", (field) => Number(field.value) || 256);

$("token").addEventListener("change", () => {
  try {
    sessionStorage.setItem(TOKEN, token());
  } catch {
    // it lasts as long as the page
  }
  loadModels();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("input", fitQuestion);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("question").focus();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  state.turns = [];
  keep();
  $("log").replaceChildren();
  $("empty").hidden = false;
  $("question").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  $("settings").open = false;
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") loadModels(); // characters may have come or gone
});
addEventListener("pagehide", keep);

recall();
showSettings();
$("empty").hidden = state.turns.length > 0;
state.turns.forEach(drawTurn);
loadModels();
