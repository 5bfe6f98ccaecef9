// The page: asks v1/stream about a photograph and draws each event as it comes.

const OWN = "own labels";
const CALM = window.matchMedia("(prefers-reduced-motion: reduce)");
const at = (id) => document.getElementById(id);
const percent = (p, digits = 1) => `${(100 * p).toFixed(digits)} %`;

const state = {
  image: null, // the chosen File
  taxonomies: new Map(), // name to labels
  maxBytes: Infinity,
  request: null, // AbortController of the request that runs
  answer: null, // the newest provisional or final event
};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- what is asked

async function loadModel() {
  const response = await fetch("v1/model");
  if (!response.ok) throw new Error(`the service answers with status ${response.status}`);
  const model = await response.json();
  state.maxBytes = model.limits.max_body_bytes;
  state.taxonomies = new Map(model.taxonomies.map((taxonomy) => [taxonomy.name, taxonomy.labels]));
  const option = (taxonomy) => element("option", { value: taxonomy.name, textContent: taxonomy.name });
  const calibrated = model.taxonomies.filter((taxonomy) => taxonomy.calibrated_modes.length > 0);
  const others = model.taxonomies.filter((taxonomy) => taxonomy.calibrated_modes.length === 0);
  const own = element("option", { value: OWN, textContent: "your own labels" });
  const groups = [
    element("optgroup", { label: "Calibrated" }, ...calibrated.map(option)),
    element("optgroup", { label: "Not calibrated" }, own, ...others.map(option)),
  ];
  at("taxonomy").replaceChildren(...groups.filter((group) => group.children.length > 0));
  at("taxonomy").value = model.default_taxonomy;
  at("taxonomy").disabled = false;
  showLabels();
}

function showLabels() {
  const name = at("taxonomy").value;
  at("own").hidden = name !== OWN;
  at("members").hidden = name === OWN;
  at("members").textContent = (state.taxonomies.get(name) ?? []).join(", ");
}

function question() {
  const form = new FormData();
  form.append("image", state.image, "image");
  if (at("taxonomy").value === OWN) form.append("labels", at("labels").value);
  else form.append("taxonomy", at("taxonomy").value);
  form.append("mode", document.querySelector("input[name=mode]:checked").value);
  form.append("coverage", String(at("coverage").value / 100));
  return form;
}

function take(files) {
  const image = [...files].find((file) => file.type.startsWith("image/"));
  if (!image) return showFault("That is no photograph this page can read.");
  state.image = image;
  const preview = at("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.alt = "The chosen photograph; choose another";
  preview.hidden = false;
  at("invitation").hidden = true;
  at("hint").textContent = "choose, drop or paste another";
  document.querySelector("button[type=submit]").disabled = false;
  const below = at("answer").getBoundingClientRect().top > window.innerHeight - 200;
  if (below) at("answer").scrollIntoView({ behavior: CALM.matches ? "auto" : "smooth" });
  return ask();
}

// ---- asking

async function ask() {
  if (!state.image || at("taxonomy").disabled) return;
  state.request?.abort();
  if (state.image.size > state.maxBytes) {
    return showFault(`The photograph has ${state.image.size} bytes, at most ${state.maxBytes} are allowed.`);
  }
  const request = new AbortController();
  state.request = request;
  begin();
  try {
    const response = await fetch("v1/stream", { method: "POST", body: question(), signal: request.signal });
    if (!response.ok) throw new Error(await reason(response));
    for await (const event of events(response.body)) show(event);
    if (at("answer").ariaBusy === "true") throw new Error("The connection ended before the answer.");
  } catch (error) {
    if (request.signal.aborted) return;
    showFault(error instanceof TypeError ? "The service cannot be reached." : error.message);
  }
}

async function reason(response) {
  if (response.status === 503) return `The service is busy; try again in ${response.headers.get("Retry-After") ?? "a few"} s.`;
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answers with status ${response.status}.`;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// ---- the answer

function begin() {
  at("answer").ariaBusy = "true";
  at("status").textContent = "looking at the photograph";
  at("fault").hidden = true;
  at("sections").replaceChildren();
  at("reasoning").hidden = true;
  at("stated").textContent = "";
}

function showFault(message) {
  at("answer").ariaBusy = "false";
  at("status").textContent = "";
  at("fault").textContent = message;
  at("fault").hidden = false;
  at("empty").hidden = true;
  at("result").hidden = true;
}

function show(event) {
  if (event.event === "error") throw new Error(event.error.message);
  if (event.event === "section") return addSection(event.tag, event.text);
  state.answer = event;
  at("empty").hidden = true;
  at("result").hidden = false;
  drawAnswer(event);
  if (event.event === "provisional") {
    at("status").textContent = `first impression: ${event.prediction.label}; now reasoning`;
  } else {
    finish(event);
  }
}

function addSection(tag, text) {
  at("reasoning").hidden = false;
  at("sections").append(element("dt", { textContent: tag }), element("dd", { textContent: text || "(nothing)" }));
}

const sureness = ({ confidence, calibrated }) => `${percent(confidence)} ${calibrated ? "sure" : "of the weight"}`;

const addNote = (text) => at("notes").append(element("li", { textContent: text }));

function drawAnswer({ prediction, calibrator, unusual_image: unusual, out_of_time: late }) {
  at("label").textContent = prediction.label;
  at("confidence").textContent = sureness(prediction);
  at("notes").replaceChildren();
  if (!prediction.calibrated) addNote("Not calibrated for these labels: read the percentages and the set as a ranking, not as probabilities.");
  if (unusual) addNote("This photograph does not look like those the probabilities were calibrated on.");
  if (late) addNote("Time ran out before the reasoning was complete.");
  const made = prediction.bundle;
  at("made-by").textContent =
    `${made.name} ${made.version}, ${made.precision}, ${made.engine}, ${prediction.mode} mode, ` +
    `${Math.round(prediction.timing_ms.total)} ms. ${calibrator ? `Calibrated for ${prediction.taxonomy}: ${calibrator}.` : "No calibrator."}`;
  drawBars(prediction.distribution);
  drawSet();
}

const ranked = (distribution) => Object.entries(distribution).sort((a, b) => b[1] - a[1]);

function drawBars(distribution) {
  const rows = ranked(distribution).map(([label, p]) => {
    const bar = element("div", { className: "bar" });
    bar.style.width = `${100 * p}%`;
    const row = element(
      "tr",
      {},
      element("th", { scope: "row", textContent: label, title: label }),
      element("td", {}, element("div", { className: "track" }, bar)),
      element("td", { className: "share", textContent: percent(p) }),
      element("td", { className: "mark" }),
    );
    row.dataset.label = label;
    return row;
  });
  at("bars").replaceChildren(...rows);
}

function drawSet() {
  const asked = at("coverage").value / 100;
  at("coverage-value").textContent = percent(asked, 0);
  at("coverage").ariaValueText = percent(asked, 0);
  if (!state.answer) return;
  const { prediction, set_sizes: sizes } = state.answer;
  const size = sizes.find((entry) => Math.abs(entry.coverage - asked) < 1e-6).size;
  [...at("bars").children].forEach((row, rank) => {
    row.classList.toggle("inside", rank < size);
    row.lastElementChild.textContent = rank < size ? "✓" : "";
    row.lastElementChild.ariaLabel = rank < size ? "in the set" : "not in the set";
  });
  at("set").textContent = ranked(prediction.distribution).slice(0, size).map(([label]) => label).join(", ");
  at("promise").textContent = prediction.calibrated
    ? `For photographs like those of the calibration, such sets hold what people say at least ${Math.round(100 * asked)} times in a hundred.`
    : "Without a calibrator the set promises nothing.";
}

function finish({ prediction }) {
  at("answer").ariaBusy = "false";
  at("status").textContent = `${prediction.label}, ${sureness(prediction)}`;
  if (prediction.reasoning) {
    at("sections").replaceChildren();
    Object.entries(prediction.reasoning).forEach(([tag, text]) => addSection(tag, text));
  } else if (at("sections").children.length > 0) {
    addNote("The reasoning below does not have its five parts in order; the answer is conditioned on it all the same.");
  }
  if (prediction.verbalized_confidence !== null) {
    at("reasoning").hidden = false;
    at("stated").textContent = `The model itself states a confidence of ${prediction.verbalized_confidence.toFixed(2)}.`;
  }
}

// ---- wiring

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("ask").addEventListener("change", (event) => {
  if (event.target === at("file")) return take(at("file").files);
  if (event.target === at("taxonomy")) showLabels();
  return ask();
});
at("coverage").addEventListener("input", drawSet);
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length > 0) take(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

loadModel().catch((error) => showFault(`The service cannot be used: ${error.message}`));
